// Between host values and tensors of a context's device: copies on CUDA, the memory itself on CPU.
//
// upload() and download() take dense tensors and are in the order of the context's stream;
// download() waits. HostRead and HostWrite give code that works on host memory a tensor to work on.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "core/context.h"

namespace hadal {

// `from` may be changed on return.
void upload(Context& ctx, const void* from, const Tensor& to);
void download(Context& ctx, const Tensor& from, void* to);

template <class T>
void upload(Context& ctx, const std::vector<T>& from, const Tensor& to) {
  HADAL_CHECK(
      DTypeOf<T>::value == to.dtype() && static_cast<int64_t>(from.size()) == to.num_elements(),
      "cannot put ", from.size(), " values of ", dtype_name(DTypeOf<T>::value), " into ", to.str());
  upload(ctx, static_cast<const void*>(from.data()), to);
}

template <class T>
std::vector<T> download(Context& ctx, const Tensor& from) {
  HADAL_CHECK(DTypeOf<T>::value == from.dtype(), "tensor of ", dtype_name(from.dtype()),
              " read as ", dtype_name(DTypeOf<T>::value));
  std::vector<T> values(static_cast<size_t>(from.num_elements()));
  download(ctx, from, static_cast<void*>(values.data()));
  return values;
}

// A tensor's contents on the host, as they were at construction (on the CPU: the tensor).
class HostRead {
 public:
  HostRead(Context& ctx, const Tensor& tensor);
  const Tensor& tensor() const { return host_; }

 private:
  std::vector<std::byte> copy_;
  Tensor host_;
};

// Host memory for a tensor's new contents; finish() puts them into the tensor.
class HostWrite {
 public:
  HostWrite(Context& ctx, const Tensor& tensor);
  const Tensor& tensor() const { return host_; }
  void finish();

 private:
  Context& ctx_;
  Tensor target_;
  std::vector<std::byte> copy_;
  Tensor host_;
};

}  // namespace hadal
