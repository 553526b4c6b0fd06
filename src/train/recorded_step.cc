// RecordedStep: batches that keep their places, and the graph of what is done with them.
// SPDX-License-Identifier: Apache-2.0
#include "train/recorded_step.h"

#include <bit>
#include <utility>

#include "core/check.h"

namespace hadal::train {
namespace {

void append(std::vector<uint64_t>& key, double value) {
  key.push_back(std::bit_cast<uint64_t>(value));
}
void append(std::vector<uint64_t>& key, int64_t value) {
  key.push_back(static_cast<uint64_t>(value));
}
void append(std::vector<uint64_t>& key, const std::vector<double>& values) {
  append(key, static_cast<int64_t>(values.size()));
  for (double value : values) append(key, value);
}
void append(std::vector<uint64_t>& key, const Packed& seq) {
  for (int64_t value : {seq.num_tokens, seq.num_seqs, seq.max_len, seq.num_rows})
    append(key, value);
}
void append(std::vector<uint64_t>& key, const Batch& batch) {
  key.push_back(reinterpret_cast<uintptr_t>(batch.memory.data()));
  append(key, batch.seq);
  append(key, batch.num_targets);
  for (const Batch::Depth& depth : batch.mtp) {
    append(key, depth.seq);
    append(key, depth.num_before);
    append(key, depth.num_targets);
  }
}
void append(std::vector<uint64_t>& key, const stage::LossScale& scale) {
  append(key, scale.main);
  append(key, scale.mtp);
  append(key, scale.balance);
  append(key, scale.mtp_balance);
}

}  // namespace

RecordedStep::RecordedStep(Context& ctx, const Config& config, DType act)
    : ctx_(ctx), config_(config), act_(act), temporaries_(ctx.memory) {
  HADAL_CHECK(device::can_record(ctx.device), "this device cannot record a step");
}

RecordedStep::~RecordedStep() { device::destroy(ctx_.device, graph_); }

RecordedStep::Key RecordedStep::key_of(std::span<const MicroBatch> micro_batches) const {
  Key key;
  for (size_t i = 0; i < micro_batches.size(); ++i) {
    append(key, batches_[i]);
    append(key, micro_batches[i].scale);
  }
  return key;
}

void RecordedStep::record(const std::function<void()>& work) {
  device::destroy(ctx_.device, std::exchange(graph_, Graph{}));
  recorded_.clear();
  device::begin_recording(ctx_.device, ctx_.stream);
  try {
    work();
  } catch (...) {
    device::destroy(ctx_.device, device::end_recording(ctx_.device, ctx_.stream));
    throw;
  }
  graph_ = device::end_recording(ctx_.device, ctx_.stream);
}

void RecordedStep::run(std::span<const MicroBatch> micro_batches, int64_t num_mtp,
                       const Work& work) {
  const size_t count = micro_batches.size();
  if (batches_.size() < count) batches_.resize(count);
  for (size_t i = 0; i < count; ++i)
    batches_[i] = make_batch(ctx_, config_, micro_batches[i].sequences, num_mtp, act_,
                             std::move(batches_[i].memory));
  const std::span<const Batch> batches(batches_.data(), count);
  Key key = key_of(micro_batches);
  const GraphMemory::Scope scope(temporaries_);
  if (key == last_ && key != recorded_) {
    record([&] { work(batches); });
    recorded_ = key;
  }
  if (key == recorded_) {
    device::launch(ctx_.device, ctx_.stream, graph_);
    ++num_launched_;
  } else {
    work(batches);
  }
  last_ = std::move(key);
}

}  // namespace hadal::train
