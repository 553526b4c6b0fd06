// Pool: free lists by size class over aligned system memory, or a slab of a GPU.
// SPDX-License-Identifier: Apache-2.0
#include "core/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <utility>

namespace hadal {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLargestFit = 2;  // times its class: the largest free block that a request takes

size_t align_up(size_t bytes, size_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

// Four classes per power of two: at most a quarter is wasted and sizes that differ slightly share.
size_t size_class(size_t bytes) {
  bytes = std::max<size_t>(bytes, 256);
  return align_up(align_up(bytes, std::bit_floor(bytes - 1) / 4), kAlignment);
}

}  // namespace

size_t tensor_bytes(DType dtype, const Shape& shape) {
  return align_up(static_cast<size_t>(shape.num_elements()) * dtype_size(dtype), kAlignment);
}

size_t block_bytes(size_t bytes) { return Arena::piece_bytes(bytes); }

Block::Block(Block&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      slab_(std::exchange(other.slab_, nullptr)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      capacity_(std::exchange(other.capacity_, 0)),
      used_(std::exchange(other.used_, 0)) {}

Block& Block::operator=(Block&& other) noexcept {
  if (this != &other) {
    const Block old(std::move(*this));  // goes back to its pool
    pool_ = std::exchange(other.pool_, nullptr);
    slab_ = std::exchange(other.slab_, nullptr);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    capacity_ = std::exchange(other.capacity_, 0);
    used_ = std::exchange(other.used_, 0);
  }
  return *this;
}

Block::~Block() {
  if (pool_ == nullptr) return;
  pool_->in_use_ -= block_bytes(size_);
  if (slab_ != nullptr)
    slab_->give_back(data_, size_);
  else
    pool_->free_[capacity_].push_back(data_);
}

Tensor Block::tensor(DType dtype, Shape shape) {
  const size_t bytes = tensor_bytes(dtype, shape);
  HADAL_CHECK(used_ + bytes <= size_, "a block of ", size_, " bytes has ", size_ - used_,
              " left and was asked for ", bytes, ": its _bytes function is wrong");
  Tensor view(static_cast<char*>(data_) + used_, dtype, shape);
  used_ += bytes;
  return view;
}

Pool::Pool(Device device) : device_(device) {
  if (device.kind != DeviceKind::kCpu) slab_ = std::make_unique<Slab>(device);
  current_ = slab_.get();
}

Pool::~Pool() {
  for (auto& [capacity, list] : free_)
    for (void* data : list) std::free(data);
}

void* Pool::allocate(size_t capacity) {
  const size_t alignment = capacity >= kHugePage ? kHugePage : kAlignment;
  const size_t rounded = align_up(capacity, alignment);
  void* data = std::aligned_alloc(alignment, rounded);
  HADAL_CHECK(data != nullptr, "out of memory: could not get ", capacity >> 20,
              " MiB; use a smaller batch or model");
  if (capacity >= kHugePage) madvise(data, rounded, MADV_HUGEPAGE);
  ++system_allocations_;
  return data;
}

// A free block of the size's class, or of the next larger ones, before the system is asked for
// more.
void Pool::take_from_lists(Block& block) {
  const size_t wanted = size_class(block.size_);
  const auto end = free_.upper_bound(kLargestFit * wanted);
  const auto found = std::find_if(free_.lower_bound(wanted), end,
                                  [](const auto& blocks) { return !blocks.second.empty(); });
  if (found == end) {
    block.data_ = allocate(wanted);
    block.capacity_ = wanted;
  } else {
    block.data_ = found->second.back();
    block.capacity_ = found->first;
    found->second.pop_back();
  }
}

Block Pool::take(size_t bytes) {
  Block block;
  block.size_ = bytes;
  if (current_ != nullptr) {
    const size_t mapped = current_->mapped_bytes();
    block.data_ = current_->take(bytes);
    block.capacity_ = block_bytes(bytes);
    block.slab_ = current_;
    if (current_->mapped_bytes() != mapped) ++system_allocations_;
  } else {
    take_from_lists(block);
  }
  block.pool_ = this;
  in_use_ += block_bytes(bytes);
  peak_ = std::max(peak_, in_use_);
#ifndef NDEBUG
  // NOTE: all-ones is NaN in every float type: a result that was never written shows up in tests.
  device::set_bytes(device_, block.data_, 0xff, block.capacity_);
#endif
  return block;
}

Block Pool::take_tensor(DType dtype, Shape shape, Tensor* out) {
  Block block = take(tensor_bytes(dtype, shape));
  *out = block.tensor(dtype, shape);
  return block;
}

GraphMemory::GraphMemory(Pool& pool) : pool_(pool) {
  if (pool.slab_ != nullptr) slab_ = std::make_unique<Slab>(pool.device_);
}

GraphMemory::Scope::Scope(GraphMemory& memory) : pool_(memory.pool_) {
  HADAL_CHECK(pool_.current_ == pool_.slab_.get(),
              "internal error: two memories of graphs at once");
  pool_.current_ = memory.slab_.get();
}

GraphMemory::Scope::~Scope() { pool_.current_ = pool_.slab_.get(); }

}  // namespace hadal
