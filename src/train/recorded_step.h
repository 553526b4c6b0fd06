// RecordedStep: forward and backward of a micro-batch, or of all of a pipeline rank's, recorded on
// a GPU and then launched.
//
// A micro-batch of a small model is thousands of kernels of a few microseconds each; recorded, they
// cost one launch. What the host decides is the same for all micro-batches of one shape (their
// tokens are data on the device), so the second of a shape is recorded and those after it are
// launched: the same kernels over the same addresses, the same bits. Batches of other shapes run
// call by call.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "model/batch.h"
#include "model/stage.h"

namespace hadal::train {

class RecordedStep {
 public:
  struct MicroBatch {
    const std::vector<Sequence>& sequences;
    const stage::LossScale& scale;
  };
  // Work for which the host waits for nothing and sends nothing; it may keep no memory of the
  // context's pool. The batches are those of its micro-batches.
  using Work = std::function<void(std::span<const Batch> batches)>;

  // REQUIRES: device::can_record(ctx.device); ctx and config outlive it.
  RecordedStep(Context& ctx, const Config& config, DType act);
  ~RecordedStep();
  RecordedStep(const RecordedStep&) = delete;
  RecordedStep& operator=(const RecordedStep&) = delete;

  // REQUIRES: the same work every time, but for its batches and their scales.
  void run(std::span<const MicroBatch> micro_batches, int64_t num_mtp, const Work& work);
  int64_t num_launched() const { return num_launched_; }

  // Where the temporaries lie; for other work of the stream that should not take memory besides.
  GraphMemory& temporaries() { return temporaries_; }

 private:
  using Key = std::vector<uint64_t>;  // everything that the host decides by
  Key key_of(std::span<const MicroBatch> micro_batches) const;
  void record(const std::function<void()>& work);

  Context& ctx_;
  const Config& config_;
  DType act_;
  GraphMemory temporaries_;
  std::vector<Batch> batches_;  // of the longest list so far
  Key last_, recorded_;
  Graph graph_;
  int64_t num_launched_ = 0;
};

}  // namespace hadal::train
