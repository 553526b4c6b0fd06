// Schedule: a value that changes with the steps and tokens of a run, as a start and pieces.
//
//   {"start": 0, "pieces": [{"shape": "linear", "to": 2.2e-4, "until_steps": 2000},
//                           {"until_tokens": 10e12},
//                           {"shape": "cosine", "to": 2.2e-5, "until_tokens": 14.3e12},
//                           {"to": 7.3e-6}]}
// A piece holds until its end, in steps or in tokens; the last may be without one. A constant piece
// (the default) keeps the value or jumps to `to`; the others arrive at `to` where they end.
// A pure function of where a step begins and ends.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "io/json.h"

namespace hadal::train {

// A place in a run: steps and tokens done.
struct Moment {
  int64_t steps = 0, tokens = 0;
};

struct Schedule {
  enum class Shape : uint8_t { kConstant, kLinear, kCosine };
  enum class Unit : uint8_t { kSteps, kTokens };
  struct Piece {
    Shape shape = Shape::kConstant;
    double to = 0.0;
    bool keeps = false;  // a constant piece without `to`
    Unit unit = Unit::kSteps;
    int64_t until = 0;  // kForever: to the end of the run
  };
  static constexpr int64_t kForever = INT64_MAX;

  double start = 0.0;
  std::vector<Piece> pieces;

  Schedule() = default;
  explicit Schedule(double constant) : start(constant) {}

  // Of a step that goes from `before` to `after`: the first step of a linear warm-up over n steps
  // has 1/n of the rise.
  double at(Moment before, Moment after) const;
  double largest() const;  // of start and all `to`
};

// The usual form: warm-up to `peak`, a constant stretch, cosine to `final` at num_steps.
struct WarmupCosine {
  double peak = 3e-4, final = 3e-5;
  int64_t warmup_steps = 0, constant_steps = 0;
};
Schedule warmup_cosine(const WarmupCosine& s, int64_t num_steps);

// A number, or an object as above; values from `low` to `high`. `key` is known to `object`.
Schedule read_schedule(const io::JsonObject& object, const char* key, double low, double high);
io::Json to_json(const Schedule& schedule);

}  // namespace hadal::train
