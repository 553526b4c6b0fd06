// BulkUpload: large amounts of host memory (a mapped file) to a device, at the rate of its link.
//
// All threads copy a piece into pinned memory while the piece before is on its way.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

#include "core/context.h"

namespace hadal {

class BulkUpload {
 public:
  // REQUIRES: ctx outlives it.
  explicit BulkUpload(Context& ctx);
  ~BulkUpload();  // waits for the copies under way
  BulkUpload(const BulkUpload&) = delete;
  BulkUpload& operator=(const BulkUpload&) = delete;

  // In stream order. `from` may be changed on return.
  void put(const void* from, const Tensor& to);

 private:
  struct Stage {
    void* pinned = nullptr;
    Event sent;
    bool is_sent = false;
  };
  Context& ctx_;
  std::array<Stage, 2> stages_;
  size_t next_ = 0;
};

}  // namespace hadal
