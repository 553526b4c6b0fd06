// Checkpoints of a training run: a Hugging Face checkpoint with the trainer's state beside it.
//
// OUTPUT/checkpoints/step_00000040/
//   config.json generation_config.json model.safetensors tokenizer.json   as any tool reads them
//   optimizer.safetensors    m.NAME and v.NAME of every trained parameter (optimizer_state.h)
//   trainer.json             step, data position, guard, run config
//   ema/                     the moving average of the weights, a checkpoint of its own
// OUTPUT/checkpoints/latest -> step_00000040
//
// Written under a temporary name, synced, renamed, and only then pointed to: kill -9 or a full disk
// at any moment leaves the previous checkpoint as it was.
//
// Written by CheckpointWriter. Of a team every rank writes a part: model-00001-of-00004.safetensors
// ... with an index, still one Hugging Face checkpoint, and optimizer-00001-of-00008.safetensors
// ... Any other team reads it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "train/learner.h"
#include "train/run_config.h"

namespace hadal::train {

struct TrainerState {
  int64_t step = 0;            // steps done
  int64_t updates = 0;         // of them not skipped
  int64_t position = 0;        // sequences consumed
  int64_t tokens = 0;          // tokens trained on
  std::string feed = "null";   // Feed::state() as text
  std::string guard = "null";  // Guard::state() as text
};

// The newest complete checkpoint of a run; none if there is none.
std::optional<std::string> latest_checkpoint(const std::string& output);

// The newest checkpoint of a step up to `step`; none if there is none.
std::optional<std::string> checkpoint_up_to(const std::string& output, int64_t step);

// Whether the newest checkpoint of a run is its last.
bool is_finished(const RunConfig& run);

// Points `latest` to the checkpoint of `step` and removes those of later steps.
void go_back_to(const std::string& output, int64_t step);

// Where the checkpoint of a step is written until it is whole.
std::string temporary_checkpoint(const std::string& output, int64_t step);
void write_trainer_state(const std::string& dir, const RunConfig& run, const TrainerState& state);
// Puts the whole directory `from` in the place of the checkpoint of `step`, points `latest` there
// and removes old ones. REQUIRES: its files are synced.
void publish_checkpoint(const RunConfig& run, const std::string& from, int64_t step);

// Collective: weights, moments, average and state. An Error if the checkpoint belongs to a run
// whose model differs. An average that the checkpoint does not have begins at its weights.
TrainerState load_run_checkpoint(Context& ctx, const std::string& dir, const RunConfig& run,
                                 Learner& learner);

}  // namespace hadal::train
