// HostCopies: tensors as they are now, in host memory that is used again for the next copies.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "core/context.h"

namespace hadal::train {

class HostCopies {
 public:
  // Forgets the copies and keeps their memory.
  void clear() { used_ = 0; }
  // A copy of a dense tensor, valid until clear().
  Tensor keep(Context& ctx, const Tensor& tensor);

 private:
  struct Buffer {
    std::unique_ptr<std::byte[]> data;
    size_t bytes = 0;
  };
  std::vector<Buffer> buffers_;
  size_t used_ = 0;
};

}  // namespace hadal::train
