// Learning-rate schedule: linear warm-up, a constant stretch, cosine decay to a final value.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace hadal::train {

struct LrSchedule {
  double peak = 3e-4;
  double final = 3e-5;
  int64_t warmup_steps = 0;    // step 1 has peak / warmup_steps
  int64_t constant_steps = 0;  // at peak, after the warm-up
};

// Rate of `step` (1-based) in a run of num_steps.
inline double learning_rate(const LrSchedule& s, int64_t step, int64_t num_steps) {
  if (step <= s.warmup_steps)
    return s.peak * static_cast<double>(step) / static_cast<double>(s.warmup_steps);
  const int64_t begin = s.warmup_steps + s.constant_steps;
  if (step <= begin || num_steps <= begin) return s.peak;
  const double progress =
      std::fmin(1.0, static_cast<double>(step - begin) / static_cast<double>(num_steps - begin));
  return s.final + 0.5 * (s.peak - s.final) * (1.0 + std::cos(std::numbers::pi * progress));
}

}  // namespace hadal::train
