// Owned memory: Block (move-only) from a Pool that reuses what it has given out before.
//
// A step takes the same sizes again and again, so after its first step nothing on the step path
// allocates from the system. A Pool is used by one thread (the one that calls ops); kernels only
// see pointers. On CUDA a Block may be given back while kernels that use it still run: whoever
// takes it next is behind them in the same stream. REQUIRES: a Pool outlives its Blocks and serves
// one stream.
//
// On the CPU blocks come from the system and are kept in lists by size; on a GPU they are pieces of
// one range of addresses (core/slab.h).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "core/device.h"
#include "core/slab.h"
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
  // From the beginning again: the same requests give the same tensors.
  void rewind() { used_ = 0; }

 private:
  friend class Pool;
  Pool* pool_ = nullptr;
  Slab* slab_ = nullptr;  // that it is a piece of, on a GPU
  void* data_ = nullptr;
  size_t size_ = 0, capacity_ = 0, used_ = 0;
};

// Bytes that Block::tensor takes for one tensor, alignment included.
size_t tensor_bytes(DType dtype, const Shape& shape);
// Bytes that a block counts as in Pool::in_use_bytes.
size_t block_bytes(size_t bytes);

class Pool {
 public:
  explicit Pool(Device device = {});
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
  friend class GraphMemory;
  void take_from_lists(Block& block);
  void* allocate(size_t capacity);

  Device device_;
  std::unique_ptr<Slab> slab_;                 // on a GPU
  Slab* current_ = nullptr;                    // slab_, or that of a GraphMemory
  std::map<size_t, std::vector<void*>> free_;  // on the CPU, by capacity
  size_t in_use_ = 0, peak_ = 0;
  int64_t system_allocations_ = 0;
};

// The temporaries of recorded work (device::begin_recording), which lie at the same addresses every
// time it is launched: memory of their own, that nobody else gets. One may serve many graphs that
// are launched one after the other in one stream. On the CPU, where nothing is recorded, it is
// empty.
class GraphMemory {
 public:
  explicit GraphMemory(Pool& pool);  // REQUIRES: outlives it and the blocks taken in its scopes
  GraphMemory(const GraphMemory&) = delete;
  GraphMemory& operator=(const GraphMemory&) = delete;

  // While one lives, what the pool gives out lies in the memory. They do not nest.
  class Scope {
   public:
    explicit Scope(GraphMemory& memory);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Pool& pool_;
  };

 private:
  Pool& pool_;
  std::unique_ptr<Slab> slab_;
};

}  // namespace hadal
