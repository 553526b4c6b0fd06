// Movement of tokens to experts' rows and back on the CPU, and the stack of free pages.
//
//   T tokens   K choices of a token   E experts   D model width   P pages in the list
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "ops/cpu/pages.h"
#include "ops/routing.h"

namespace hadal::ops::cpu {
namespace {

const int32_t* choices_of(const Tensor& t, int64_t token) {
  return t.data<int32_t>() + token * t.stride(0);
}

int64_t checked_expert(const Tensor& topk_idx, int64_t t, int64_t k, int64_t E) {
  const int64_t expert = choices_of(topk_idx, t)[k];
  HADAL_CHECK(expert >= 0 && expert < E, "choice ", k, " of token ", t, " is expert ", expert,
              ", but there are ", E, " experts");
  return expert;
}

bool is_left_out(const Tensor& t, int64_t token, int64_t k) {
  return choices_of(t, token)[k] == -1;
}

// Calls fn(choice, row) for the T*K values; both are addresses of R, the row's null where the
// choice is left out.
template <class R, class Fn>
void for_choices(Context& ctx, const Tensor& choice_value, const Tensor& row_of_choice,
                 const Tensor& row_value, const Fn& fn) {
  const int64_t T = row_of_choice.dim(0), K = row_of_choice.dim(1), num_rows = row_value.dim(0);
  for_rows(ctx, T, K, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t k = 0; k < K; ++k) {
        const int64_t row = choices_of(row_of_choice, t)[k];
        R* choice = choice_value.data<R>() + t * choice_value.stride(0) + k;
        if (row == -1) {
          fn(choice, static_cast<R*>(nullptr));
          continue;
        }
        HADAL_CHECK(row >= 0 && row < num_rows, "choice ", k, " of token ", t, " is row ", row,
                    ", but row_value has ", num_rows, " rows");
        fn(choice, row_value.data<R>() + row);
      }
    }
  });
}

}  // namespace

void count_choices(Context&, In topk_idx, Acc counts) {
  const int64_t T = topk_idx.dim(0), K = topk_idx.dim(1), E = counts.dim(0);
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t k = 0; k < K; ++k) ++counts.data<int64_t>()[checked_expert(topk_idx, t, k, E)];
  }
}

void choices_here(Context&, In topk_idx, int64_t first, int64_t count, Out choices) {
  const int64_t T = topk_idx.dim(0), K = topk_idx.dim(1);
  for (int64_t t = 0; t < T; ++t) {
    int32_t* to = choices.data<int32_t>() + t * choices.stride(0);
    for (int64_t k = 0; k < K; ++k) {
      const int64_t expert = choices_of(topk_idx, t)[k] - first;
      to[k] = expert >= 0 && expert < count ? static_cast<int32_t>(expert) : -1;
    }
  }
}

void expert_layout(Context& ctx, In topk_idx, const ExpertLayout& layout, Out row_of_choice) {
  const int64_t T = topk_idx.dim(0), K = topk_idx.dim(1), E = layout.num_experts();
  int32_t* counts = layout.counts.data<int32_t>();
  int32_t* page_begin = layout.page_begin.data<int32_t>();

  // Count the rows of each expert.
  std::fill(counts, counts + E, 0);
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t k = 0; k < K; ++k)
      if (!is_left_out(topk_idx, t, k)) ++counts[checked_expert(topk_idx, t, k, E)];
  }
  page_begin[0] = 0;
  for (int64_t e = 0; e < E; ++e) {
    page_begin[e + 1] =
        page_begin[e] + static_cast<int32_t>((counts[e] + kPageRows - 1) / kPageRows);
  }

  // Give out row numbers in token order.
  Tensor next;
  const Block next_memory = ctx.memory.take_tensor(DType::kI32, {E}, &next);
  int32_t* next_row = next.data<int32_t>();
  for (int64_t e = 0; e < E; ++e) next_row[e] = page_begin[e] * static_cast<int32_t>(kPageRows);
  for (int64_t t = 0; t < T; ++t) {
    int32_t* rows = row_of_choice.data<int32_t>() + t * row_of_choice.stride(0);
    for (int64_t k = 0; k < K; ++k)
      rows[k] = is_left_out(topk_idx, t, k) ? -1 : next_row[choices_of(topk_idx, t)[k]]++;
  }
}

void scatter_rows(Context& ctx, In x, In row_of_choice, const PagedRows& rows) {
  const int64_t T = x.dim(0), D = x.dim(1), K = row_of_choice.dim(1);
  with_arithmetic({x.dtype(), rows.slab.dtype()}, [&]<class R>(R) {
    const ScratchRows<R> scratch(ctx, 1, D);
    for_rows(ctx, T, D * K, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t t = begin; t < end; ++t) {
        const bool same_type = x.dtype() == rows.slab.dtype();
        const void* from = address(x, t * x.stride(0));
        if (!same_type) from = read_row(x, t * x.stride(0), D, scratch.row(thread, 0));
        const DType from_dtype = same_type ? x.dtype() : DTypeOf<R>::value;
        for (int64_t k = 0; k < K; ++k) {
          if (is_left_out(row_of_choice, t, k)) continue;
          void* to = address(rows.slab, row_offset(rows, choices_of(row_of_choice, t)[k]));
          if (from_dtype == rows.slab.dtype()) {
            std::memcpy(to, from, static_cast<size_t>(D) * dtype_size(from_dtype));
          } else {
            write_elements(static_cast<const R*>(from), to, rows.slab.dtype(), D);
          }
        }
      }
    });
  });
}

void combine_rows(Context& ctx, const PagedRows& rows, In row_of_choice, Out y) {
  const int64_t T = y.dim(0), D = y.dim(1), K = row_of_choice.dim(1);
  with_arithmetic({y.dtype(), rows.slab.dtype()}, [&]<class R>(R) {
    const RowOps<R>& kernels = row_kernels().of<R>();
    const ScratchRows<R> scratch(ctx, 2, D);
    for_rows(ctx, T, D * K, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t t = begin; t < end; ++t) {
        R* sum = begin_row(y, t * y.stride(0), scratch.row(thread, 0));
        std::fill(sum, sum + D, R(0));
        for (int64_t k = 0; k < K; ++k) {
          if (is_left_out(row_of_choice, t, k)) continue;
          const int64_t at = row_offset(rows, choices_of(row_of_choice, t)[k]);
          kernels.add(sum, read_row(rows.slab, at, D, scratch.row(thread, 1)), sum, D);
        }
        end_row(sum, y, t * y.stride(0), D);
      }
    });
  });
}

void scatter_choices(Context& ctx, In choice_value, In row_of_choice, Out row_value) {
  with_arithmetic({row_value.dtype()}, [&]<class R>(R) {
    for_choices<R>(ctx, choice_value, row_of_choice, row_value, [](const R* choice, R* row) {
      if (row != nullptr) *row = *choice;
    });
  });
}

void gather_choices(Context& ctx, In row_value, In row_of_choice, Out choice_value) {
  with_arithmetic({row_value.dtype()}, [&]<class R>(R) {
    for_choices<R>(ctx, choice_value, row_of_choice, row_value,
                   [](R* choice, const R* row) { *choice = row == nullptr ? R(0) : *row; });
  });
}

void take_pages(Context&, const ExpertLayout& layout, const PageStack& stack, Out page) {
  const int64_t needed = num_positions(layout);
  int32_t* count = stack.count.data<int32_t>();
  const int64_t given = std::min<int64_t>(needed, *count);
  HADAL_CHECK(given == needed || !stack.missing.empty(), "the experts need ", needed, " pages of ",
              kPageRows, " rows, but only ", *count, " of ", stack.free.dim(0),
              " are free; give the pool more pages or use a smaller micro-batch");
  HADAL_CHECK(needed <= page.dim(0), "the experts need ", needed, " pages, but the page list has ",
              page.dim(0), " places");
  for (int64_t i = 0; i < given; ++i) {
    page.data<int32_t>()[i] = stack.free.data<int32_t>()[--*count];
  }
  if (given == needed) return;
  const auto spare = static_cast<int32_t>(stack.free.dim(0));
  std::fill(page.data<int32_t>() + given, page.data<int32_t>() + needed, spare);
  *stack.missing.data<int64_t>() += needed - given;
}

// Last taken, first back: the stack is then exactly as it was.
void give_back_pages(Context&, const ExpertLayout& layout, const PageStack& stack, In page) {
  const int32_t *pages = page.data<int32_t>(), spare = static_cast<int32_t>(stack.free.dim(0));
  int64_t returned = num_positions(layout);
  while (returned > 0 && pages[returned - 1] == spare) --returned;
  int32_t* count = stack.count.data<int32_t>();
  HADAL_CHECK(*count + returned <= stack.free.dim(0), returned, " pages are given back, but ",
              *count, " of ", stack.free.dim(0), " are free already");
  for (int64_t i = returned - 1; i >= 0; --i) {
    stack.free.data<int32_t>()[(*count)++] = pages[i];
  }
}

}  // namespace hadal::ops::cpu
