// RunConfig: one JSON file that describes a training run completely: model, data, train.
//
// Parsed once; unknown keys are errors that suggest the nearest known one. `--set train.steps=100`
// overrides. The resolved config is printed at the start and stored in every checkpoint.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "core/dtype.h"
#include "io/json.h"
#include "model/config.h"
#include "train/lr.h"

namespace hadal::train {

struct DataConfig {
  std::string text;        // a UTF-8 text file
  std::string tokenizer;   // a directory with tokenizer.json
  double held_out = 0.05;  // last share of the bytes, never trained on
};

struct TrainConfig {
  std::string output;     // directory of the run
  std::string init_from;  // checkpoint directory to start from; empty: random weights
  int64_t steps = 1000;
  int64_t sequence_length = 256;
  int64_t batch_sequences = 8;        // of one step
  int64_t micro_batch_sequences = 0;  // of one forward and backward; 0: batch_sequences
  uint64_t seed = 1;
  DType dtype = DType::kF32;   // compute: f32 or bf16
  std::string device = "cpu";  // or cuda
  int64_t threads = 0;         // 0: one per core
  LrSchedule lr;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double clip_norm = 1.0;
  double mtp_weight = 0.3;
  double mtp_weight_final = 0.3;      // from mtp_weight_final_step on
  int64_t mtp_weight_final_step = 0;  // 0: never
  double balance_alpha = 1e-4;
  double bias_gamma = 1e-3;
  int64_t bias_gamma_zero_step = 0;  // gamma is 0 from this step on; 0: never
  int64_t eval_every = 0;            // steps between held-out evaluations; 0: at the end alone
  int64_t eval_tokens = 0;           // held-out tokens of those on the way; 0: all
  int64_t checkpoint_every = 0;      // steps; 0: at the end alone
  int64_t keep_checkpoints = 2;      // newest ones kept; 0: all
};

struct RunConfig {
  Config model;
  DataConfig data;
  TrainConfig train;
};

// Reads PATH, applies the assignments in order, and checks every value.
RunConfig read_run_config(const std::string& path, const std::vector<std::string>& assignments);
RunConfig run_config_of(const io::JsonObject& object);
// The resolved config; run_config_of() reads it back.
io::Json to_json(const RunConfig& config);

}  // namespace hadal::train
