// config.json of a deepseek_v3 model in Hugging Face's layout, to and from Config.
//
// Both spellings of rope are read: rope_parameters, or the older rope_theta with rope_scaling. What
// cannot be honoured is an error; every message leads with the file and names the key.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "core/dtype.h"
#include "io/json.h"
#include "model/config.h"

namespace hadal::io {

enum class ScaleFormat : uint8_t { kF32, kPowerOfTwo };  // the latter is scale_fmt: ue8m0

// quantization_config: block FP8 with one scale per kScaleBlock x kScaleBlock, or none.
struct Quantization {
  bool fp8 = false;
  ScaleFormat scale_format = ScaleFormat::kF32;
};

struct HfConfig {
  Config config;  // validated
  Quantization quantization;
  std::vector<std::string> ignored;  // keys that hadal does not know, to be shown once
};

// A checkpoint's config.json.
HfConfig read_hf_config(const std::string& path);

// The "model" object of a run, or a file of its own: the same keys, but unknown ones are errors,
// and model_type may be left out. The result is validated.
Config model_from_json(const JsonObject& object);

// Keys as transformers writes them. `plain` is the dtype of what is not quantised: f32 or bf16.
Json hf_config_to_json(const Config& config, DType plain, const Quantization& quantization);
Json generation_config_to_json(const Config& config);

}  // namespace hadal::io
