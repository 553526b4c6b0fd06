// TrainPlan: a training run to be planned, from a JSON file (configs/plans/*.json).
//
// What the paper's run does, and what our runtime does today, are two recipes of one plan:
//   fp8   DeepSeek-V3 report, 3.3: FP8 products and caches, BF16 moments, E5M6 output caches
//   bf16  bf16 products and activations, f32 masters, moments and gradients (hadal train, bf16)
//   f32   everything in f32 (hadal train's default)
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"
#include "model/config.h"
#include "parallel/mesh.h"
#include "parallel/schedule.h"
#include "plan/cluster.h"
#include "plan/rates.h"

namespace hadal::plan {

enum class Recipe : uint8_t { kFp8, kBf16, kF32 };
// What backward computes again instead of keeping it: nothing; norms, up-projections and SwiGLU
// (report, 3.2.3); everything but each layer's input.
enum class Recompute : uint8_t { kNone, kUpProjections, kFull };

const char* recipe_name(Recipe recipe);        // "fp8", "bf16", "f32"
const char* recompute_name(Recompute choice);  // "none", "up_projections", "full"
DType activation_dtype(Recipe recipe);         // of the residual stream
// What a recipe runs on: this project's f32 on a CPU, the others on a GPU.
DeviceKind device_of(Recipe recipe);

// Numbers that are fitted to a measured step because nothing that is known gives them; 1, 1 and 0
// where nothing is fitted.
struct Fitted {
  // An overlapped pair over the time of its kernels: what an isolated trace leaves out (pipeline
  // transfers, real routing).
  double overlap_stretch = 1.0;
  // A weight half that runs alone, over its kernels.
  double deferred_weight_stretch = 1.0;
  // Spread of chunk times: standard deviation of their logarithm, from routing and links that vary.
  double chunk_jitter = 0.0;
  std::string why;  // what they were fitted to; required where one differs from its default
  int num_fitted() const;
};

struct TrainPlan {
  std::string name;
  Config model;
  Cluster cluster;
  RateTable rates{std::vector<RateRow>{}};
  Mesh mesh;
  ScheduleKind schedule = ScheduleKind::k1F1B;
  int stages_per_rank = 2;  // of interleaved
  int64_t batch_sequences = 1, sequence_length = 4096, micro_batch_sequences = 1;
  Recipe recipe = Recipe::kBf16;
  Recompute recompute = Recompute::kUpProjections;
  double row_imbalance = 1.0;  // received routed rows of the fullest rank over their mean
  double tokens = 0.0;         // of the whole run; 0: no totals
  Fitted fitted;

  // What `hadal train` does today, on one device or on several CPU ranks: its own operations and
  // memory, not those of the paper's run.
  bool is_runtime() const {
    return recipe == Recipe::kF32 || (recipe == Recipe::kBf16 && cluster.num_devices() == 1);
  }
  int64_t micro_batch_tokens() const { return micro_batch_sequences * sequence_length; }
  double tokens_per_step() const {
    return static_cast<double>(batch_sequences) * static_cast<double>(sequence_length);
  }
  int num_microbatches() const {
    return static_cast<int>(batch_sequences / (mesh.dp * micro_batch_sequences));
  }
  ScheduleShape schedule_shape() const {
    return {.kind = schedule,
            .num_ranks = mesh.pp,
            .num_microbatches = num_microbatches(),
            .stages_per_rank = stages_per_rank};
  }
};

// Reads PATH, applies "mesh.pp=8" assignments in order. Paths in it are relative to it.
enum class Rates : uint8_t { kWith, kWithout };  // without: to measure them
TrainPlan read_train_plan(const std::string& path, const std::vector<std::string>& assignments,
                          Rates rates = Rates::kWith);

// Schedules whose backward is never cut in halves: those that plans of the runtime's own steps
// have.
bool has_whole_backwards(ScheduleKind kind);

// Throws an Error that names the number that does not divide.
void check_train_plan(const TrainPlan& plan);

}  // namespace hadal::plan
