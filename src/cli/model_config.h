// Reads a model config for commands that need no weights.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "model/config.h"

namespace hadal::cli {

// A Hugging Face config.json, a file of the same keys, or a run config (its "model").
Config read_model_config(const std::string& path);

}  // namespace hadal::cli
