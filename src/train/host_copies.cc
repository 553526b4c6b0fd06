// HostCopies: on the CPU all threads copy, since a step waits for it.
// SPDX-License-Identifier: Apache-2.0
#include "train/host_copies.h"

#include <algorithm>
#include <cstring>

#include "core/transfer.h"

namespace hadal::train {
namespace {

constexpr int64_t kTask = int64_t{1} << 20;  // bytes copied by one task

void copy(Context& ctx, const Tensor& from, std::byte* to) {
  if (ctx.device.kind != DeviceKind::kCpu) return download(ctx, from, to);
  const auto* bytes = static_cast<const std::byte*>(from.raw());
  const int64_t n = from.num_bytes();
  ctx.threads.parallel_for((n + kTask - 1) / kTask, [&](int64_t task, int) {
    const int64_t begin = task * kTask;
    std::memcpy(to + begin, bytes + begin, static_cast<size_t>(std::min(kTask, n - begin)));
  });
}

}  // namespace

Tensor HostCopies::keep(Context& ctx, const Tensor& tensor) {
  HADAL_CHECK(tensor.is_dense(), "only dense tensors are copied to the host, got ", tensor.str());
  if (used_ == buffers_.size()) buffers_.emplace_back();
  Buffer& buffer = buffers_[used_++];
  const auto bytes = static_cast<size_t>(tensor.num_bytes());
  if (buffer.bytes < bytes) buffer = {std::make_unique_for_overwrite<std::byte[]>(bytes), bytes};
  copy(ctx, tensor, buffer.data.get());
  return Tensor(buffer.data.get(), tensor.dtype(), tensor.shape());
}

}  // namespace hadal::train
