// train.precision of a run's config: which formats training uses beside its dtype.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "io/json.h"
#include "model/precision.h"

namespace hadal::train {

// "compute" (the default), "fp8" (the report's recipe), or an object that says where the run
// departs from the recipe: "products": compute | fp8, "gradient_tiles": 1x128 | 128x128, "swiglu":
// compute | e4m3, "attention_output": compute | e5m6.
Precision read_precision(const io::JsonObject& train);
io::Json to_json(const Precision& precision);

}  // namespace hadal::train
