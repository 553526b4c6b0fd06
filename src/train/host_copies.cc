// HostCopies: pieces that threads take in turn.
// SPDX-License-Identifier: Apache-2.0
#include "train/host_copies.h"

#include <algorithm>
#include <cstring>

#include "core/transfer.h"

namespace hadal::train {
namespace {

constexpr size_t kPiece = size_t{1} << 20;  // bytes

}  // namespace

void HostCopies::clear() {
  used_ = 0;
  pieces_.clear();
  begun_.store(0);
  made_.store(0);
}

Tensor HostCopies::keep(Context& ctx, const Tensor& tensor) {
  HADAL_CHECK(tensor.is_dense(), "only dense tensors are copied to the host, got ", tensor.str());
  if (used_ == buffers_.size()) buffers_.emplace_back();
  Buffer& buffer = buffers_[used_++];
  const auto bytes = static_cast<size_t>(tensor.num_bytes());
  if (buffer.bytes < bytes) buffer = {std::make_unique_for_overwrite<std::byte[]>(bytes), bytes};
  if (ctx.device.kind == DeviceKind::kCpu) {
    const auto* from = static_cast<const std::byte*>(tensor.raw());
    for (size_t at = 0; at < bytes; at += kPiece)
      pieces_.push_back(
          {.from = from + at, .to = buffer.data.get() + at, .bytes = std::min(kPiece, bytes - at)});
  } else {
    download(ctx, tensor, buffer.data.get());
  }
  return Tensor(buffer.data.get(), tensor.dtype(), tensor.shape());
}

void HostCopies::work() {
  while (begun_.load() < pieces_.size()) {
    const size_t mine = begun_.fetch_add(1);
    if (mine >= pieces_.size()) return;
    std::memcpy(pieces_[mine].to, pieces_[mine].from, pieces_[mine].bytes);
    if (made_.fetch_add(1) + 1 == pieces_.size()) made_.notify_all();
  }
}

void HostCopies::wait() const {
  for (size_t made = made_.load(); made < pieces_.size(); made = made_.load()) made_.wait(made);
}

void HostCopies::finish(ThreadPool& threads) {
  if (begun_.load() < pieces_.size())
    threads.parallel_for(threads.num_threads(), [&](int64_t, int) { work(); });
  wait();
}

}  // namespace hadal::train
