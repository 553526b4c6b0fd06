// Copies of the base checkpoint that a test may damage or complete.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>

#include "tests/cli/run.h"

namespace hadal::test {

inline std::string copy_of_base(const TempDir& dir) {
  const std::string model = dir / "model";
  std::filesystem::create_directories(model);
  for (const char* name : {"config.json", "model.safetensors"})
    std::filesystem::copy_file(std::string("tests/goldens/base/") + name, model + "/" + name);
  return model;
}

}  // namespace hadal::test
