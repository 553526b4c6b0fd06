// Element-wise movement on the CPU.
//
//   T rows   D width   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "ops/copy.h"

#include "ops/cpu/rows.h"

namespace hadal::ops::cpu {
namespace {

constexpr int64_t kTile = 1024;  // elements that a thread converts at a time, on its stack

// Calls fn(offset of each tensor, count) over runs of elements that are dense in all the tensors.
template <size_t N, class Fn>
void for_runs(Context& ctx, const std::array<const Tensor*, N>& tensors, const Fn& fn) {
  const Tensor& first = *tensors[0];
  if (std::all_of(tensors.begin(), tensors.end(), [](const Tensor* t) { return t->is_dense(); })) {
    for_rows(ctx, first.num_elements(), 1, [&](int64_t begin, int64_t end, int) {
      std::array<int64_t, N> at{};
      at.fill(begin);
      fn(at, end - begin);
    });
    return;
  }
  const RowIndex rows(first);
  for_rows(ctx, rows.num_rows(), rows.width(), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      std::array<int64_t, N> at{};
      for (size_t i = 0; i < N; ++i) at[i] = RowIndex(*tensors[i]).offset(r);
      fn(at, rows.width());
    }
  });
}

// The id of token t, checked against the V rows of the table.
int64_t row_of(const Tensor& ids, int64_t t, int64_t V) {
  const int64_t id = ids.data<int32_t>()[t * ids.stride(0)];
  HADAL_CHECK(id >= 0 && id < V, "token id ", id, " at position ", t,
              " is outside the vocabulary of ", V, " ids");
  return id;
}

}  // namespace

void cast(Context& ctx, In x, Out y) {
  const std::array<const Tensor*, 2> tensors = {&x, &y};
  if (x.dtype() == y.dtype()) {
    const size_t size = dtype_size(x.dtype());
    return for_runs(ctx, tensors, [&](const auto& at, int64_t n) {
      std::memmove(address(y, at[1]), address(x, at[0]), static_cast<size_t>(n) * size);
    });
  }
  with_arithmetic({x.dtype(), y.dtype()}, [&]<class R>(R) {
    for_runs(ctx, tensors, [&](const auto& at, int64_t n) {
      R tile[kTile];
      for (int64_t i = 0; i < n; i += kTile) {
        const int64_t count = std::min(kTile, n - i);
        const R* from = read_row(x, at[0] + i, count, tile);
        write_elements(from, address(y, at[1] + i), y.dtype(), count);
      }
    });
  });
}

void add(Context& ctx, In a, In b, Out c) {
  const std::array<const Tensor*, 3> tensors = {&a, &b, &c};
  with_arithmetic({a.dtype(), b.dtype(), c.dtype()}, [&]<class R>(R) {
    const RowOps<R>& kernels = row_kernels().of<R>();
    for_runs(ctx, tensors, [&](const auto& at, int64_t n) {
      R tile[3][kTile];
      for (int64_t i = 0; i < n; i += kTile) {
        const int64_t count = std::min(kTile, n - i);
        const R* a_row = read_row(a, at[0] + i, count, tile[0]);
        const R* b_row = read_row(b, at[1] + i, count, tile[1]);
        R* c_row = begin_row(c, at[2] + i, tile[2]);
        kernels.add(a_row, b_row, c_row, count);
        end_row(c_row, c, at[2] + i, count);
      }
    });
  });
}

void add_acc(Context& ctx, In x, Acc y) { add(ctx, x, y, Out(static_cast<Tensor&>(y))); }

void fill(Context& ctx, double value, Out x) {
  const size_t size = dtype_size(x.dtype());
  uint64_t element = 0;
  store_element(&element, x.dtype(), 0, value);
  for_runs(ctx, std::array<const Tensor*, 1>{&x}, [&](const auto& at, int64_t n) {
    char* to = static_cast<char*>(address(x, at[0]));
    if (element == 0) {
      std::memset(to, 0, static_cast<size_t>(n) * size);
      return;
    }
    for (int64_t i = 0; i < n; ++i, to += size) std::memcpy(to, &element, size);
  });
}

void embed_forward(Context& ctx, In table, In ids, Out x) {
  const int64_t V = table.dim(0), D = table.dim(1), T = ids.dim(0);
  with_arithmetic({table.dtype(), x.dtype()}, [&]<class R>(R) {
    const ScratchRows<R> scratch(ctx, 1, D);
    for_rows(ctx, T, D, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t from = row_of(ids, t, V) * table.stride(0), to = t * x.stride(0);
        if (table.dtype() == x.dtype()) {
          std::memcpy(address(x, to), address(table, from),
                      static_cast<size_t>(D) * dtype_size(x.dtype()));
          continue;
        }
        const R* row = read_row(table, from, D, scratch.row(thread, 0));
        write_elements(row, address(x, to), x.dtype(), D);
      }
    });
  });
}

void embed_backward_acc(Context& ctx, In dx, In ids, Acc dtable) {
  constexpr int64_t kColumns = 64;  // a task adds these columns of every token, in token order
  const int64_t V = dtable.dim(0), D = dtable.dim(1), T = ids.dim(0);
  with_arithmetic({dx.dtype(), dtable.dtype()}, [&]<class R>(R) {
    const RowOps<R>& kernels = row_kernels().of<R>();
    ctx.threads.parallel_for((D + kColumns - 1) / kColumns, [&](int64_t task, int) {
      const int64_t begin = task * kColumns, count = std::min(kColumns, D - begin);
      R tile[2][kColumns];
      for (int64_t t = 0; t < T; ++t) {
        const int64_t to = row_of(ids, t, V) * dtable.stride(0) + begin;
        const R* dx_row = read_row(dx, t * dx.stride(0) + begin, count, tile[0]);
        const R* old = read_row(dtable, to, count, tile[1]);
        R* row = begin_row(dtable, to, tile[1]);
        kernels.add(old, dx_row, row, count);
        end_row(row, dtable, to, count);
      }
    });
  });
}

}  // namespace hadal::ops::cpu
