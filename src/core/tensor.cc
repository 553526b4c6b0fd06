// Tensor views: slicing, printing and shape checks.
// SPDX-License-Identifier: Apache-2.0
#include "core/tensor.h"

namespace hadal {

Shape::Shape(std::initializer_list<int64_t> list) {
  HADAL_CHECK(list.size() <= kMaxRank, "a tensor has at most 4 dimensions, got ", list.size());
  for (int64_t extent : list) {
    HADAL_CHECK(extent >= 0, "a tensor dimension cannot be negative, got ", extent);
    dims[static_cast<size_t>(rank++)] = extent;
  }
}

int64_t Shape::num_elements() const {
  int64_t count = 1;
  for (int i = 0; i < rank; ++i) count *= dims[static_cast<size_t>(i)];
  return count;
}

bool Shape::operator==(const Shape& other) const {
  if (rank != other.rank) return false;
  for (int i = 0; i < rank; ++i)
    if ((*this)[i] != other[i]) return false;
  return true;
}

std::string Shape::str() const {
  std::string text = "[";
  for (int i = 0; i < rank; ++i) text += (i > 0 ? ", " : "") + std::to_string((*this)[i]);
  return text + "]";
}

Tensor::Tensor(void* data, DType dtype, Shape shape) : data_(data), dtype_(dtype), shape_(shape) {
  int64_t stride = 1;
  for (int i = shape.rank - 1; i >= 0; --i) {
    strides_[static_cast<size_t>(i)] = stride;
    stride *= shape[i];
  }
}

Tensor::Tensor(void* data, DType dtype, Shape shape, std::array<int64_t, kMaxRank> strides)
    : data_(data), dtype_(dtype), shape_(shape), strides_(strides) {}

bool Tensor::is_dense() const {
  int64_t expected = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (dim(i) > 1 && stride(i) != expected) return false;
    expected *= dim(i);
  }
  return true;
}

namespace {
void* advance(void* data, DType dtype, int64_t elements) {
  return static_cast<char*>(data) + elements * static_cast<int64_t>(dtype_size(dtype));
}
}  // namespace

Tensor Tensor::view(Shape shape) const {
  HADAL_CHECK(is_dense(), "cannot reshape a strided view of ", str());
  HADAL_CHECK(shape.num_elements() == num_elements(), "cannot view ", str(), " as ", shape.str());
  return Tensor(data_, dtype_, shape);
}

Tensor Tensor::rows(int64_t begin, int64_t count) const {
  HADAL_CHECK(rank() >= 1 && begin >= 0 && count >= 0 && begin + count <= dim(0), "rows ", begin,
              " to ", begin + count, " are outside ", str());
  Shape shape = shape_;
  shape.dims[0] = count;
  return Tensor(advance(data_, dtype_, begin * stride(0)), dtype_, shape, strides_);
}

Tensor Tensor::cols(int64_t begin, int64_t count) const {
  const int last = rank() - 1;
  HADAL_CHECK(last >= 0 && begin >= 0 && count >= 0 && begin + count <= dim(last), "columns ",
              begin, " to ", begin + count, " are outside ", str());
  Shape shape = shape_;
  shape.dims[static_cast<size_t>(last)] = count;
  return Tensor(advance(data_, dtype_, begin * stride(last)), dtype_, shape, strides_);
}

Tensor Tensor::row(int64_t index) const {
  HADAL_CHECK(rank() >= 1 && index >= 0 && index < dim(0), "row ", index, " is outside ", str());
  Shape shape;
  std::array<int64_t, kMaxRank> strides{};
  shape.rank = rank() - 1;
  for (int i = 0; i < shape.rank; ++i) {
    shape.dims[static_cast<size_t>(i)] = dim(i + 1);
    strides[static_cast<size_t>(i)] = stride(i + 1);
  }
  return Tensor(advance(data_, dtype_, index * stride(0)), dtype_, shape, strides);
}

std::string Tensor::str() const { return concat(dtype_name(dtype_), " ", shape_.str()); }

Operand Operand::rows(int64_t begin, int64_t count) const {
  Operand slice(data.rows(begin, count), scale);
  slice.row_begin = row_begin + begin;
  return slice;
}

namespace detail {
void check_shape(const Tensor& t, const Shape& want, const char* name, const char* file, int line) {
  if (!(t.shape() == want))
    fail(file, line, nullptr,
         hadal::concat(name, " must have shape ", want.str(), ", has ", t.shape().str()));
}
}  // namespace detail

}  // namespace hadal
