// Copies between host values and tensors.
// SPDX-License-Identifier: Apache-2.0
#include "core/transfer.h"

namespace hadal {
namespace {

size_t checked_bytes(const Tensor& tensor) {
  HADAL_CHECK(tensor.is_dense(), "only dense tensors are copied to and from the host, got ",
              tensor.str());
  return static_cast<size_t>(tensor.num_bytes());
}

bool on_host(const Context& ctx) { return ctx.device.kind == DeviceKind::kCpu; }

}  // namespace

void upload(Context& ctx, const void* from, const Tensor& to) {
  device::copy_to_device(ctx.device, ctx.stream, from, to.raw(), checked_bytes(to));
}

void download(Context& ctx, const Tensor& from, void* to) {
  device::copy_to_host(ctx.device, ctx.stream, from.raw(), to, checked_bytes(from));
}

HostRead::HostRead(Context& ctx, const Tensor& tensor) : host_(tensor) {
  if (on_host(ctx)) return;
  copy_.resize(checked_bytes(tensor));
  host_ = Tensor(copy_.data(), tensor.dtype(), tensor.shape());
  download(ctx, tensor, copy_.data());
}

HostWrite::HostWrite(Context& ctx, const Tensor& tensor)
    : ctx_(ctx), target_(tensor), host_(tensor) {
  if (on_host(ctx)) return;
  copy_.resize(checked_bytes(tensor));
  host_ = Tensor(copy_.data(), tensor.dtype(), tensor.shape());
}

void HostWrite::finish() {
  if (!on_host(ctx_)) upload(ctx_, copy_.data(), target_);
}

}  // namespace hadal
