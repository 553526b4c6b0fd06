// Pool: size classes with free lists over aligned system memory, or over memory of a GPU.
// SPDX-License-Identifier: Apache-2.0
#include "core/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "core/size_class.h"

namespace hadal {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLargestFit = 2;  // times its class: the largest free block that a request takes

size_t align_up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

size_t tensor_bytes(DType dtype, const Shape& shape) {
  return align_up(static_cast<size_t>(shape.num_elements()) * dtype_size(dtype));
}

Block::Block(Block&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      capacity_(std::exchange(other.capacity_, 0)),
      used_(std::exchange(other.used_, 0)) {}

Block& Block::operator=(Block&& other) noexcept {
  if (this != &other) {
    const Block old(std::move(*this));  // goes back to its pool
    pool_ = std::exchange(other.pool_, nullptr);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    capacity_ = std::exchange(other.capacity_, 0);
    used_ = std::exchange(other.used_, 0);
  }
  return *this;
}

Block::~Block() {
  if (pool_ == nullptr) return;
  pool_->in_use_ -= size_class(size_);  // what it counted as, whatever block it got
  pool_->give_back(data_, capacity_);
}

Tensor Block::tensor(DType dtype, Shape shape) {
  const size_t bytes = tensor_bytes(dtype, shape);
  HADAL_CHECK(used_ + bytes <= size_, "a block of ", size_, " bytes has ", size_ - used_,
              " left and was asked for ", bytes, ": its _bytes function is wrong");
  Tensor view(static_cast<char*>(data_) + used_, dtype, shape);
  used_ += bytes;
  return view;
}

Pool::~Pool() {
  for (auto& [capacity, list] : free_)
    for (void* data : list) device::release(device_, data);
}

void* Pool::allocate(size_t capacity) {
  ++system_allocations_;
  if (device_.kind != DeviceKind::kCpu) return device::allocate(device_, capacity);
  const size_t alignment = capacity >= kHugePage ? kHugePage : kAlignment;
  const size_t rounded = (capacity + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(alignment, rounded);
  HADAL_CHECK(data != nullptr, "out of memory: could not get ", capacity >> 20,
              " MiB; use a smaller batch or model");
  if (capacity >= kHugePage) madvise(data, rounded, MADV_HUGEPAGE);
  return data;
}

Block Pool::take(size_t bytes) {
  const size_t wanted = size_class(bytes);
  // A free block of the class, or of the next larger ones, before the system is asked for more.
  const auto end = free_.upper_bound(kLargestFit * wanted);
  const auto found = std::find_if(free_.lower_bound(wanted), end,
                                  [](const auto& blocks) { return !blocks.second.empty(); });
  const bool is_free = found != end;
  const size_t capacity = is_free ? found->first : wanted;
  Block block;
  if (is_free) {
    block.data_ = found->second.back();
    found->second.pop_back();
  } else {
    block.data_ = allocate(capacity);
  }
#ifndef NDEBUG
  // NOTE: all-ones is NaN in every float type: a result that was never written shows up in tests.
  device::set_bytes(device_, block.data_, 0xff, capacity);
#endif
  block.pool_ = this;
  block.size_ = bytes;
  block.capacity_ = capacity;
  in_use_ += wanted;
  peak_ = std::max(peak_, in_use_);
  return block;
}

Block Pool::take_tensor(DType dtype, Shape shape, Tensor* out) {
  Block block = take(tensor_bytes(dtype, shape));
  *out = block.tensor(dtype, shape);
  return block;
}

void Pool::give_back(void* data, size_t capacity) { free_[capacity].push_back(data); }

}  // namespace hadal
