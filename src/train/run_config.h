// RunConfig: one JSON file that describes a training run completely: model, data, train, parallel.
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
#include "parallel/parallel_config.h"
#include "train/guard.h"
#include "train/schedule.h"
#include "train/token_source.h"

namespace hadal::train {

struct DataConfig {
  std::string text;                        // a UTF-8 text file
  std::vector<SourceConfig> sources = {};  // or a mixture of token shards
  std::string tokenizer;                   // a directory with tokenizer.json
  double held_out = 0.05;                  // last share of the text's bytes, never trained on
};

struct TrainConfig {
  std::string output;     // directory of the run
  std::string init_from;  // checkpoint directory to start from; empty: random weights
  int64_t steps = 1000;   // length of the run,
  int64_t tokens = 0;     // or in tokens; 0: in steps
  int64_t sequence_length = 256;
  Schedule batch_sequences{8.0};      // of one step; see batch_of()
  int64_t micro_batch_sequences = 0;  // of one forward and backward; 0: the largest batch
  uint64_t seed = 1;
  DType dtype = DType::kF32;    // compute: f32 or bf16
  Precision precision = {};     // formats beside it
  std::string device = "cpu";   // or cuda
  int64_t threads = 0;          // 0: one per core
  DType moments = DType::kF32;  // of AdamW, as stored: f32 or bf16
  Schedule lr;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double clip_norm = 1.0;
  Schedule mtp_weight{0.3};      // lambda
  Schedule balance_alpha{1e-4};  // of the sequence-wise balance loss
  Schedule bias_gamma{1e-3};     // speed of the bias update
  double ema_decay = 0.0;        // of the moving average of the weights; 0: none
  GuardConfig guard;
  int64_t eval_every = 0;        // steps between held-out evaluations; 0: at the end alone
  int64_t eval_tokens = 0;       // held-out tokens of those on the way; 0: all
  int64_t checkpoint_every = 0;  // steps; 0: at the end alone
  // Checkpoints are written beside the steps, from a copy; else steps wait, and nothing is copied.
  bool background_checkpoints = true;
  int64_t keep_checkpoints = 2;  // newest ones kept; 0: all

  // Sequences of the step that begins at `begin`: a batch that grows is a whole number of
  // micro-batches on each of `dp` data-parallel ranks.
  int64_t batch_of(Moment begin, int64_t dp = 1) const;
  bool is_over(Moment done) const {
    return tokens > 0 ? done.tokens >= tokens : done.steps >= steps;
  }
};

struct RunConfig {
  Config model;
  DataConfig data;
  TrainConfig train;
  ParallelConfig parallel = {};  // one rank where the file has no "parallel"
};

// The model with the precision that it is trained in.
Config trained_model(const RunConfig& run);
// Of a step on one data-parallel rank.
int64_t most_micro_batches(const RunConfig& run);

// A run, or one of several that follow each other: each begins with the weights of the one before.
struct Phase {
  std::string name;  // "" where there are no phases
  RunConfig run;
};

// Reads PATH, applies the assignments in order, and checks every value. "phases" is a list of
// objects: "name" and what the phase has otherwise than the rest of the file (a JSON merge patch,
// RFC 7396). Its output is train.output/NAME, and init_from the newest checkpoint of the phase
// before.
std::vector<Phase> read_phases(const std::string& path,
                               const std::vector<std::string>& assignments);
// The same for a file without phases.
RunConfig read_run_config(const std::string& path, const std::vector<std::string>& assignments);
RunConfig run_config_of(const io::JsonObject& object);
// The resolved config; run_config_of() reads it back.
io::Json to_json(const RunConfig& config);

}  // namespace hadal::train
