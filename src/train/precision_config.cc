// train.precision: names and their meaning, both ways.
// SPDX-License-Identifier: Apache-2.0
#include "train/precision_config.h"

#include <nlohmann/json.hpp>

#include "core/check.h"

namespace hadal::train {
namespace {

// True for `on`, false for `off`; what else is an error.
bool read_choice(const io::JsonObject& o, const char* key, const char* off, const char* on,
                 bool otherwise) {
  const std::string value = o.string(key, otherwise ? on : off);
  HADAL_CHECK(value == on || value == off, o.where(), ": ", key, " is \"", value,
              "\"; allowed: ", off, ", ", on);
  return value == on;
}

}  // namespace

Precision read_precision(const io::JsonObject& train) {
  const io::Json& json = train.json();
  if (!json.contains("precision")) return {};
  if (!json["precision"].is_object()) {
    const std::string name = train.string("precision");
    HADAL_CHECK(name == "compute" || name == "fp8", train.where(), ": precision is \"", name,
                "\"; allowed: compute, fp8, or an object");
    return name == "fp8" ? kFp8Recipe : Precision{};
  }
  const io::JsonObject o = train.object("precision");
  Precision p = kFp8Recipe;
  p.fp8 = read_choice(o, "products", "compute", "fp8", p.fp8);
  if (read_choice(o, "gradient_tiles", "1x128", "128x128", false))
    p.gradient_tiles = GradientTiles::kSquare;
  p.e4m3_swiglu = read_choice(o, "swiglu", "compute", "e4m3", p.e4m3_swiglu);
  p.e5m6_attention = read_choice(o, "attention_output", "compute", "e5m6", p.e5m6_attention);
  o.check_no_unknown();
  return p;
}

io::Json to_json(const Precision& p) {
  const bool square = p.gradient_tiles == GradientTiles::kSquare;
  return {{"products", p.fp8 ? "fp8" : "compute"},
          {"gradient_tiles", square ? "128x128" : "1x128"},
          {"swiglu", p.e4m3_swiglu ? "e4m3" : "compute"},
          {"attention_output", p.e5m6_attention ? "e5m6" : "compute"}};
}

}  // namespace hadal::train
