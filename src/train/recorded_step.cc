// RecordedStep: one batch in one place, and the graph of what is done with it.
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

}  // namespace

RecordedStep::RecordedStep(Context& ctx, const Config& config, DType act)
    : ctx_(ctx), config_(config), act_(act), temporaries_(ctx.memory) {
  HADAL_CHECK(device::can_record(ctx.device), "this device cannot record a step");
}

RecordedStep::~RecordedStep() { device::destroy(ctx_.device, graph_); }

RecordedStep::Key RecordedStep::key_of(const stage::LossScale& scale) const {
  Key key;
  key.push_back(reinterpret_cast<uintptr_t>(batch_.memory.data()));
  append(key, batch_.seq);
  append(key, batch_.num_targets);
  for (const Batch::Depth& depth : batch_.mtp) {
    append(key, depth.seq);
    append(key, depth.num_before);
    append(key, depth.num_targets);
  }
  append(key, scale.main);
  append(key, scale.mtp);
  append(key, scale.balance);
  append(key, scale.mtp_balance);
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

void RecordedStep::run(const std::vector<Sequence>& sequences, int64_t num_mtp,
                       const stage::LossScale& scale, const Work& work) {
  batch_ = make_batch(ctx_, config_, sequences, num_mtp, act_, std::move(batch_.memory));
  Key key = key_of(scale);
  const GraphMemory::Scope scope(temporaries_);
  if (key == last_ && key != recorded_) {
    record([&] { work(batch_, scale); });
    recorded_ = key;
  }
  if (key == recorded_) {
    device::launch(ctx_.device, ctx_.stream, graph_);
    ++num_launched_;
  } else {
    work(batch_, scale);
  }
  last_ = std::move(key);
}

}  // namespace hadal::train
