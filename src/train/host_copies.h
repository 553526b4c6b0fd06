// HostCopies: tensors as they are now, in host memory that is used again for the next copies.
//
// keep() only notes what has to be copied. Any threads then make the copies piece by piece;
// finish() returns when all are made, and until then the tensors must not change. So a step waits
// only for what nobody has copied yet when it is about to change the weights.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "core/context.h"

namespace hadal::train {

class HostCopies {
 public:
  // Forgets the copies and keeps their memory. REQUIRES: all are made.
  void clear();
  // A copy of a dense tensor, valid until clear(). That of a device's tensor is made at once.
  // REQUIRES: nobody has begun to copy.
  Tensor keep(Context& ctx, const Tensor& tensor);
  // Makes copies until none is left to begin.
  void work();
  bool are_made() const { return made_.load() == pieces_.size(); }
  // Returns when all are made.
  void wait() const;
  // The same, and all threads of the pool make those that are left.
  void finish(ThreadPool& threads);

 private:
  struct Buffer {
    std::unique_ptr<std::byte[]> data;
    size_t bytes = 0;
  };
  struct Piece {
    const std::byte* from = nullptr;
    std::byte* to = nullptr;
    size_t bytes = 0;
  };
  std::vector<Buffer> buffers_;
  size_t used_ = 0;
  std::vector<Piece> pieces_;
  std::atomic<size_t> begun_{0}, made_{0};  // of the pieces; begun_ may pass their number
};

}  // namespace hadal::train
