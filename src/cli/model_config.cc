// Reads a model config from a config.json or a run config.
// SPDX-License-Identifier: Apache-2.0
#include "cli/model_config.h"

#include <nlohmann/json.hpp>

#include "io/hf_config.h"

namespace hadal::cli {

Config read_model_config(const std::string& path) {
  const io::JsonObject object = io::JsonObject::read(path);
  if (object.json().contains("model")) return io::model_from_json(object.object("model"));
  return io::read_hf_config(path).config;
}

}  // namespace hadal::cli
