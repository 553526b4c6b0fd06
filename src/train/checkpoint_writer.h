// CheckpointWriter: writes the checkpoints of a run beside its steps.
//
// save() notes what this rank writes; a thread copies it to host memory while the next step
// computes its gradients, and then writes the copy. Before a step changes weights or moments it
// calls release_state(), which copies what is left. Once every rank has written its part (the ranks
// learn it from each other after each step), the first rank's thread joins the parts and publishes
// the checkpoint. So `latest` names the one before until then, whatever happens.
//
// A file that cannot be written ends the run with its sentence: after the next step, at the next
// checkpoint or at the end, whichever comes first. With train.background_checkpoints off nothing is
// copied, and save() itself writes.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "io/hf.h"
#include "train/checkpoint.h"
#include "train/host_copies.h"
#include "train/optimizer_state.h"

namespace hadal::train {

class CheckpointWriter {
 public:
  // REQUIRES: both outlive it.
  CheckpointWriter(const RunConfig& run, Learner& learner) : run_(run), learner_(learner) {}
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;
  ~CheckpointWriter();  // waits for its thread; what is not published is removed

  // Collective: the state as it is now. Waits for the checkpoint before, if it is not published.
  void save(const TrainerState& state);
  // After this the state may change: to be called before each change of it. Returns the seconds
  // that it took to copy what was left.
  double release_state();
  // Whether this rank still writes its part. Throws what its thread failed with.
  bool is_writing();
  // Collective: no rank still writes, so the first one may publish.
  void parts_are_written();
  // Collective: returns when the last checkpoint is published.
  void finish();

 private:
  // The same on every rank.
  enum class Stage : uint8_t { kIdle, kParts, kPublishing };
  // Weights of one store that this rank writes.
  struct ModelPart {
    std::string dir;
    ModelParams<Tensor> tree;
    std::vector<Block> memory;
  };

  ModelPart take_model(const std::string& dir, ParamStore& store, const io::CheckpointPart& part);
  bool copies() const;  // whether host memory holds what is written
  void write_part();
  void publish();
  void start(std::function<void()> work);
  void join();  // throws what the thread failed with

  const RunConfig& run_;
  Learner& learner_;
  HostCopies copies_;
  Stage stage_ = Stage::kIdle;
  std::string temporary_;
  TrainerState state_;
  io::CheckpointPart part_;
  std::vector<ModelPart> models_;  // the weights, then their average
  OptimizerPart optimizer_;
  std::thread thread_;
  std::atomic<bool> running_{false};
  std::exception_ptr failure_;
};

}  // namespace hadal::train
