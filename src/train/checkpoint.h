// Checkpoints of a training run: a Hugging Face checkpoint with the trainer's state beside it.
//
// OUTPUT/checkpoints/step_00000040/
//   config.json generation_config.json model.safetensors tokenizer.json   as any tool reads them
//   optimizer.safetensors    m.NAME and v.NAME of every trained parameter
//   trainer.json             step, data position, run config
// OUTPUT/checkpoints/latest -> step_00000040
//
// Written under a temporary name, synced, renamed, and only then pointed to: kill -9 or a full disk
// at any moment leaves the previous checkpoint as it was.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "train/learner.h"
#include "train/run_config.h"

namespace hadal::train {

struct TrainerState {
  int64_t step = 0;      // steps done
  int64_t position = 0;  // sequences consumed
  int64_t tokens = 0;    // tokens trained on
};

// The newest complete checkpoint of a run; none if there is none.
std::optional<std::string> latest_checkpoint(const std::string& output);

void save_run_checkpoint(const RunConfig& run, Learner& learner, const TrainerState& state);

// Weights, moments and state. An Error if the checkpoint belongs to a run whose model differs.
TrainerState load_run_checkpoint(Context& ctx, const std::string& dir, const RunConfig& run,
                                 Learner& learner);

}  // namespace hadal::train
