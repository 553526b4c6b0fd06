// Rows of tensors of any float type as arrays of the arithmetic type R, and loops over rows.
//
// Rows that already are R are used in place; others are converted into scratch of the thread.
// R is double if a tensor of the op is f64, else float. How rows are shared among threads never
// changes a result.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "core/context.h"
#include "ops/cpu/isa/row_kernels.h"

namespace hadal::ops::cpu {

inline constexpr int64_t kTaskElements = 16384;  // smallest piece of work worth handing to a thread

// Calls fn(R{}) with the arithmetic type of the tensors.
template <class Fn>
void with_arithmetic(std::initializer_list<DType> dtypes, const Fn& fn) {
  const bool wide =
      std::any_of(dtypes.begin(), dtypes.end(), [](DType d) { return d == DType::kF64; });
  if (wide) {
    fn(double{});
  } else {
    fn(float{});
  }
}

// The address of an element.
inline void* address(const Tensor& t, int64_t offset) {
  return static_cast<char*>(t.raw()) + offset * static_cast<int64_t>(dtype_size(t.dtype()));
}

template <class R>
void read_elements(const void* from, DType dtype, R* to, int64_t count) {
  if constexpr (std::is_same_v<R, float>) {
    if (dtype == DType::kBF16)
      return row_kernels().widen(static_cast<const bf16*>(from), to, count);
  }
  convert(from, dtype, to, DTypeOf<R>::value, count);
}

template <class R>
void write_elements(const R* from, void* to, DType dtype, int64_t count) {
  if constexpr (std::is_same_v<R, float>) {
    if (dtype == DType::kBF16) return row_kernels().narrow(from, static_cast<bf16*>(to), count);
  }
  convert(from, DTypeOf<R>::value, to, dtype, count);
}

// `count` elements at `offset` of t, in place if t is R, else converted into scratch.
template <class R>
const R* read_row(const Tensor& t, int64_t offset, int64_t count, R* scratch) {
  const void* from = address(t, offset);
  if (t.dtype() == DTypeOf<R>::value) return static_cast<const R*>(from);
  read_elements(from, t.dtype(), scratch, count);
  return scratch;
}

// Where to put `count` elements of t at `offset`: t itself if it is R, else scratch.
template <class R>
R* begin_row(const Tensor& t, int64_t offset, R* scratch) {
  return t.dtype() == DTypeOf<R>::value ? static_cast<R*>(address(t, offset)) : scratch;
}

// Stores what begin_row gave; nothing to do if that was t itself.
template <class R>
void end_row(const R* row, const Tensor& t, int64_t offset, int64_t count) {
  if (t.dtype() != DTypeOf<R>::value) write_elements(row, address(t, offset), t.dtype(), count);
}

// Scratch rows of every thread; take before parallel_for.
template <class R>
class ScratchRows {
 public:
  ScratchRows(Context& ctx, int64_t rows_per_thread, int64_t width)
      : width_((width + 15) / 16 * 16), per_thread_(rows_per_thread * width_) {
    memory_ = ctx.memory.take_tensor(
        DTypeOf<R>::value, {std::max<int64_t>(ctx.threads.num_threads() * per_thread_, 1)}, &view_);
  }
  R* row(int thread, int64_t index) const {
    return static_cast<R*>(view_.raw()) + thread * per_thread_ + index * width_;
  }

 private:
  int64_t width_, per_thread_;
  Block memory_;
  Tensor view_;
};

// Calls fn(begin, end, thread) over pieces of [0, num_rows) of about kTaskElements elements.
template <class Fn>
void for_rows(Context& ctx, int64_t num_rows, int64_t width, const Fn& fn) {
  const int64_t step = std::max<int64_t>(kTaskElements / std::max<int64_t>(width, 1), 1);
  ctx.threads.parallel_for((num_rows + step - 1) / step, [&](int64_t task, int thread) {
    fn(task * step, std::min(num_rows, (task + 1) * step), thread);
  });
}

// The rows of a view of any rank: everything but the last dimension, in order. Scalars are one row.
class RowIndex {
 public:
  explicit RowIndex(const Tensor& t)
      : tensor_(&t), width_(t.rank() == 0 ? 1 : t.dim(t.rank() - 1)) {
    for (int d = 0; d + 1 < t.rank(); ++d) num_rows_ *= t.dim(d);
  }
  int64_t num_rows() const { return num_rows_; }
  int64_t width() const { return width_; }
  int64_t offset(int64_t row) const {
    int64_t offset = 0;
    for (int d = tensor_->rank() - 2; d >= 0; --d) {
      offset += row % tensor_->dim(d) * tensor_->stride(d);
      row /= tensor_->dim(d);
    }
    return offset;
  }

 private:
  const Tensor* tensor_;
  int64_t num_rows_ = 1, width_;
};

}  // namespace hadal::ops::cpu
