// BulkUpload: two pinned pieces in turn.
// SPDX-License-Identifier: Apache-2.0
#include "core/bulk_upload.h"

#include <algorithm>
#include <cstring>

namespace hadal {
namespace {

constexpr size_t kPieceBytes = size_t{64} << 20;
constexpr size_t kTaskBytes = size_t{1} << 20;  // of one thread's copy

}  // namespace

BulkUpload::BulkUpload(Context& ctx) : ctx_(ctx) {
  for (Stage& stage : stages_) {
    stage.pinned = device::allocate_pinned(ctx.device, kPieceBytes);
    stage.sent = device::make_event(ctx.device);
  }
}

BulkUpload::~BulkUpload() {
  for (Stage& stage : stages_) {
    if (stage.is_sent) device::wait(ctx_.device, stage.sent);
    device::destroy(ctx_.device, stage.sent);
    device::release_pinned(ctx_.device, stage.pinned);
  }
}

void BulkUpload::put(const void* from, const Tensor& to) {
  HADAL_CHECK(to.is_dense(), "only dense tensors are copied from the host, got ", to.str());
  const auto total = static_cast<size_t>(to.num_bytes());
  for (size_t begin = 0; begin < total; begin += kPieceBytes) {
    Stage& stage = stages_[next_];
    next_ = (next_ + 1) % stages_.size();
    if (stage.is_sent) device::wait(ctx_.device, stage.sent);
    const size_t bytes = std::min(kPieceBytes, total - begin);
    const char* piece = static_cast<const char*>(from) + begin;
    ctx_.threads.parallel_for(static_cast<int64_t>((bytes + kTaskBytes - 1) / kTaskBytes),
                              [&](int64_t task, int) {
                                const size_t at = static_cast<size_t>(task) * kTaskBytes;
                                std::memcpy(static_cast<char*>(stage.pinned) + at, piece + at,
                                            std::min(kTaskBytes, bytes - at));
                              });
    device::copy_to_device(ctx_.device, ctx_.stream, stage.pinned,
                           static_cast<char*>(to.raw()) + begin, bytes);
    device::record(ctx_.device, ctx_.stream, stage.sent);
    stage.is_sent = true;
  }
}

}  // namespace hadal
