// Tensor: a non-owning, typed, strided view of up to four dimensions, and In / Out / Acc around it.
//
// The last dimension is dense (stride 1) or has one element. Memory is owned by a Block
// (core/memory.h). Direction of a parameter is in its type: In reads, Out overwrites, Acc adds.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/check.h"
#include "core/dtype.h"

namespace hadal {

inline constexpr int kMaxRank = 4;

// Up to four extents. Empty (rank 0) is a scalar of one element.
struct Shape {
  std::array<int64_t, kMaxRank> dims{};
  int rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> list);
  int64_t operator[](int i) const { return dims[static_cast<size_t>(i)]; }
  int64_t num_elements() const;
  bool operator==(const Shape& other) const;
  std::string str() const;  // "[2, 96, 64]"
};

class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, DType dtype, Shape shape);  // dense
  Tensor(void* data, DType dtype, Shape shape, std::array<int64_t, kMaxRank> strides);

  bool empty() const { return data_ == nullptr; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank; }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t stride(int i) const { return strides_[static_cast<size_t>(i)]; }  // in elements
  int64_t num_elements() const { return shape_.num_elements(); }
  int64_t num_bytes() const { return num_elements() * static_cast<int64_t>(dtype_size(dtype_)); }
  bool is_dense() const;

  void* raw() const { return data_; }
  template <class T>
  T* data() const {
    HADAL_CHECK(DTypeOf<T>::value == dtype_, "tensor of ", dtype_name(dtype_), " read as ",
                dtype_name(DTypeOf<T>::value));
    return static_cast<T*>(data_);
  }

  Tensor view(Shape shape) const;                   // same elements; REQUIRES: is_dense()
  Tensor rows(int64_t begin, int64_t count) const;  // [begin, begin + count) of dim 0
  Tensor cols(int64_t begin, int64_t count) const;  // [begin, begin + count) of the last dim
  Tensor row(int64_t index) const;                  // dim 0 fixed; rank drops by one

  std::string str() const;  // "f32 [2, 96, 64]"

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  Shape shape_;
  std::array<int64_t, kMaxRank> strides_{};
};

// Read-only parameter.
class In : public Tensor {
 public:
  In() = default;
  In(const Tensor& t) : Tensor(t) {}
};
// Parameter that is overwritten. A const Tensor does not convert.
class Out : public Tensor {
 public:
  Out() = default;
  Out(Tensor& t) : Tensor(t) {}
  Out(Tensor&& t) : Tensor(t) {}
};
// Parameter that is added to.
class Acc : public Tensor {
 public:
  Acc() = default;
  Acc(Tensor& t) : Tensor(t) {}
  Acc(Tensor&& t) : Tensor(t) {}
};

// A weight as a matrix product reads it: elements and, for block FP8, one f32 scale per
// kScaleBlock x kScaleBlock block (real value = element * scale; report, 3.3.2). `row_begin` is the
// first row's index in the scaled matrix, so that a slice of rows keeps its scales.
inline constexpr int64_t kScaleBlock = 128;
struct Operand {
  Tensor data;            // [N, K]
  Tensor scale;           // [ceil(N_full/128), ceil(K/128)] f32, or empty
  int64_t row_begin = 0;  // row of `data` within the scaled matrix
  // Of weights that FP8 training multiplies with (ops/fp8.h): the same elements as [K, N] and
  // their scales as [ceil(K/128), ceil(N/128)]; else empty.
  Tensor transposed, transposed_scale;

  Operand() = default;
  Operand(const Tensor& t) : data(t) {}
  Operand(const Tensor& t, const Tensor& s) : data(t), scale(s) {}
  bool empty() const { return data.empty(); }
  Operand rows(int64_t begin, int64_t count) const;
};

namespace detail {
template <size_t N>
std::array<int64_t, N> checked_shape(const Tensor& t, const char* name, const char* file,
                                     int line) {
  if (t.rank() != static_cast<int>(N))
    fail(
        file, line, nullptr,
        join({Part(name), Part(" must have "), Part(N), Part(" dimensions, has "), Part(t.str())}));
  std::array<int64_t, N> dims{};
  for (size_t i = 0; i < N; ++i) dims[i] = t.dim(static_cast<int>(i));
  return dims;
}
void check_shape(const Tensor& t, const Shape& want, const char* name, const char* file, int line);
}  // namespace detail

}  // namespace hadal

// const auto [T, D] = HADAL_SHAPE(x, 2);
#define HADAL_SHAPE(tensor, rank) \
  ::hadal::detail::checked_shape<rank>(tensor, #tensor, __FILE__, __LINE__)

// HADAL_CHECK_SHAPE(gain, D);
#define HADAL_CHECK_SHAPE(tensor, ...) \
  ::hadal::detail::check_shape(tensor, ::hadal::Shape{__VA_ARGS__}, #tensor, __FILE__, __LINE__)
