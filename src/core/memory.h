// Owned memory: Block (move-only) from a Pool that reuses what it has given out before.
//
// A step takes the same sizes again and again, so after its first step nothing on the step path
// allocates from the system. A Pool is used by one thread (the one that calls ops); kernels only
// see pointers. On CUDA a Block may be given back while kernels that use it still run: whoever
// takes it next is behind them in the same stream. REQUIRES: a Pool outlives its Blocks and serves
// one stream.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "core/device.h"
#include "core/tensor.h"

namespace hadal {

inline constexpr size_t kAlignment = 64;  // bytes; every tensor in a Block starts at a multiple

class Pool;

// Owns `size()` bytes and gives them back to its pool when destroyed.
class [[nodiscard]] Block {
 public:
  Block() = default;
  Block(Block&& other) noexcept;
  Block& operator=(Block&& other) noexcept;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block();

  void* data() const { return data_; }
  size_t size() const { return size_; }

  // Gives out consecutive aligned tensors; an error when the block is used up.
  Tensor tensor(DType dtype, Shape shape);

 private:
  friend class Pool;
  Pool* pool_ = nullptr;
  void* data_ = nullptr;
  size_t size_ = 0, capacity_ = 0, used_ = 0;
};

// Bytes that Block::tensor takes for one tensor, alignment included.
size_t tensor_bytes(DType dtype, const Shape& shape);

class Pool {
 public:
  explicit Pool(Device device = {}) : device_(device) {}
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool();

  Block take(size_t bytes);
  // A block that holds exactly one tensor; *out is the view of it.
  Block take_tensor(DType dtype, Shape shape, Tensor* out);

  size_t in_use_bytes() const { return in_use_; }
  size_t peak_bytes() const { return peak_; }
  int64_t system_allocations() const { return system_allocations_; }

 private:
  friend class Block;
  void* allocate(size_t capacity);
  void give_back(void* data, size_t capacity);

  Device device_;
  std::map<size_t, std::vector<void*>> free_;
  size_t in_use_ = 0, peak_ = 0;
  int64_t system_allocations_ = 0;
};

}  // namespace hadal
