// Movement of tokens to experts' rows and back on CUDA, and the stack of free pages.
//
//   T tokens   K choices of a token   E experts   D model width   P pages in the list
// SPDX-License-Identifier: Apache-2.0
#include "ops/copy.h"
#include "ops/cuda/detail/bf16_rows.cuh"
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/detail/pages.cuh"
#include "ops/cuda/detail/warp_counts.cuh"
#include "ops/routing.h"

namespace hadal::ops::cuda {
namespace {

constexpr int kWarp = 32;
constexpr const char* kNoExpert = "choice {0} of token {1} is expert {2}, which does not exist";
constexpr int32_t kLeftOut = -1;  // a choice whose expert is elsewhere, and its row

// Choice i of all tokens: token i / K, place i % K.
struct Choices {
  Array<const int32_t> rows;
  int64_t T, K;
  explicit Choices(const Tensor& t) : rows(t), T(t.dim(0)), K(t.dim(1)) {}
  __device__ int64_t count() const { return T * K; }
  __device__ int32_t operator[](int64_t i) const { return rows.row(i / K)[i % K]; }
};

// Adds the number of choices of each expert to counts: a histogram a block, then one addition an
// expert. Whole numbers, so exact in any order. Experts are `lowest` or more.
template <class Count>
__global__ void count_kernel(Choices choices, int64_t E, Count* counts, int64_t stride,
                             int32_t lowest, FaultSite fault) {
  extern __shared__ int32_t histogram[];
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x) histogram[e] = 0;
  __syncthreads();
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < choices.count();
       i += step) {
    const int32_t choice = choices[i];
    if (choice >= 0 && choice < E)
      atomicAdd(&histogram[choice], 1);
    else if (choice < lowest || choice >= E)
      fault.raise(static_cast<double>(i % choices.K), static_cast<double>(i / choices.K), choice);
  }
  __syncthreads();
  for (int64_t e = threadIdx.x; e < E; e += blockDim.x)
    if (histogram[e] > 0) atomicAdd(&counts[e * stride], static_cast<Count>(histogram[e]));
}

template <class Count>
void count(const Context& ctx, const Choices& choices, int64_t E, Count* counts, int64_t stride,
           int32_t lowest) {
  constexpr int64_t kPerBlock = 4096, kMostBlocks = 256;
  const int64_t n = choices.T * choices.K;
  const auto blocks =
      static_cast<unsigned>(std::clamp<int64_t>(ceil_div(n, kPerBlock), 1, kMostBlocks));
  const auto bytes = static_cast<unsigned>(E * static_cast<int64_t>(sizeof(int32_t)));
  count_kernel<<<blocks, kThreads, bytes, stream_of(ctx)>>>(choices, E, counts, stride, lowest,
                                                            FaultSite(ctx, kNoExpert));
}

__global__ void page_begin_kernel(int64_t E, const int32_t* counts, int32_t* page_begin) {
  page_begin[0] = 0;
  for (int64_t e = 0; e < E; ++e)
    page_begin[e + 1] =
        page_begin[e] + static_cast<int32_t>((counts[e] + kPageRows - 1) / kPageRows);
}

constexpr int kNumberThreads = 1024;  // of a block that numbers an expert's rows

// Which choices are of experts [first, first + count), counted from the first of them.
__global__ void choices_here_kernel(Choices from, int32_t first, int32_t count, Array<int32_t> to) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < from.count();
       i += step) {
    const int32_t expert = from[i] - first;
    to.row(i / from.K)[i % from.K] = expert >= 0 && expert < count ? expert : kLeftOut;
  }
}

// Gives the choices of expert blockIdx.x their row numbers in token order, and those that are left
// out, of which each block has some, theirs: a running count over pieces of kNumberEach choices a
// thread, and within a piece the matches of earlier threads.
__global__ void __launch_bounds__(kNumberThreads)
    row_numbers_kernel(Choices choices, const int32_t* page_begin, Array<int32_t> row_of_choice) {
  constexpr int kNumberEach = 16, kWarps = kNumberThreads / kWarp;
  __shared__ int in_warp[2][kWarps];
  const int64_t expert = blockIdx.x, n = choices.count();
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool in_fours = choices.rows.stride == choices.K && n % 4 == 0 &&
                        reinterpret_cast<uintptr_t>(choices.rows.data) % sizeof(int4) == 0;
  const bool is_dense = row_of_choice.stride == choices.K;
  const auto put = [&](int64_t at, int32_t row) {
    if (is_dense)
      row_of_choice.data[at] = row;
    else
      row_of_choice.row(at / choices.K)[at % choices.K] = row;
  };
  const bool has_left_out = threadIdx.x % gridDim.x == blockIdx.x;
  int64_t next = page_begin[expert] * kPageRows;
  int turn = 0;
  for (int64_t begin = 0; begin < n; begin += int64_t{kNumberThreads} * kNumberEach, turn ^= 1) {
    const int64_t i = begin + threadIdx.x * kNumberEach;
    alignas(int4) int32_t chosen[kNumberEach];
#pragma unroll
    for (int j = 0; j < kNumberEach; j += 4)
      if (in_fours && i + j < n) {
        *reinterpret_cast<int4*>(chosen + j) =
            *reinterpret_cast<const int4*>(choices.rows.data + i + j);
      } else {
#pragma unroll
        for (int k = j; k < j + 4; ++k) chosen[k] = i + k < n ? choices[i + k] : kLeftOut;
      }
    int mine = 0;
#pragma unroll
    for (int j = 0; j < kNumberEach; ++j) {
      mine += chosen[j] == expert ? 1 : 0;
      if (has_left_out && i + j < n && chosen[j] == kLeftOut) put(i + j, kLeftOut);
    }
    int before = mine;  // of the warp, this thread's included
#pragma unroll
    for (int d = 1; d < kWarp; d *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, before, d);
      if (lane >= d) before += other;
    }
    if (lane == kWarp - 1) in_warp[turn][warp] = before;
    __syncthreads();
    before -= mine;
    const WarpCounts counted = add_warp_counts(in_warp[turn], warp, lane);
    before += counted.before;
#pragma unroll
    for (int j = 0; j < kNumberEach; ++j)
      if (chosen[j] == expert) put(i + j, static_cast<int32_t>(next + before++));
    next += counted.all;
  }
}
static_assert(kNumberThreads / kWarp == kWarp);

constexpr int kMostKept = 16;  // rows of a token whose offsets a block looks up once

// Where the rows of a token's choices are, for all threads of its block.
__device__ inline void keep_offsets(const PagedView& rows, const Choices& row_of_choice, int64_t t,
                                    int64_t* offsets) {
  for (int64_t k = threadIdx.x; k < row_of_choice.K; k += blockDim.x)
    offsets[k] = rows.row_offset(row_of_choice.rows.row(t)[k]);
  __syncthreads();
}

// Sixteen bytes at a time: eight bf16. REQUIRES: K <= kMostKept.
__global__ void scatter_bf16_kernel(int64_t D, View x, Choices row_of_choice, PagedView rows) {
  __shared__ int64_t offsets[kMostKept];
  const int64_t t = blockIdx.x;
  const auto K = static_cast<int>(row_of_choice.K);
  keep_offsets(rows, row_of_choice, t, offsets);
  const auto* from = static_cast<const bf16*>(x.data) + t * x.stride0;
  for (int64_t j = threadIdx.x * 8; j < D; j += static_cast<int64_t>(blockDim.x) * 8) {
    uint4 eight{};
    bool is_held = false;
    for (int k = 0; k < K; ++k) {
      const int64_t at = offsets[k];
      if (at < 0) continue;
      if (!is_held) eight = *reinterpret_cast<const uint4*>(from + j);
      is_held = true;
      *reinterpret_cast<uint4*>(static_cast<bf16*>(rows.data) + at + j) = eight;
    }
  }
}

// REQUIRES: K <= kMostKept.
__global__ void combine_bf16_kernel(int64_t D, PagedView rows, Choices row_of_choice, View y) {
  __shared__ int64_t offsets[kMostKept];
  const int64_t t = blockIdx.x;
  const auto K = static_cast<int>(row_of_choice.K);
  keep_offsets(rows, row_of_choice, t, offsets);
  auto* const to = static_cast<bf16*>(y.data) + t * y.stride0;
  for (int64_t j = threadIdx.x * 8; j < D; j += static_cast<int64_t>(blockDim.x) * 8) {
    Eight sum{};
    for (int k = 0; k < K; ++k) {
      const int64_t at = offsets[k];
      if (at < 0) continue;
      const Eight part = Eight::load(static_cast<const bf16*>(rows.data) + at + j);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum.of[i] = sum.of[i] + part.of[i];
    }
    sum.store(to + j);
  }
}

// Threads that a row of D elements keeps busy.
unsigned threads_of_row(int64_t D) {
  return static_cast<unsigned>(
      std::clamp<int64_t>(ceil_div(D / 8, kWarp) * kWarp, kWarp, kThreads));
}

template <class R>
__global__ void scatter_kernel(int64_t D, View x, Choices row_of_choice, PagedView rows) {
  const int64_t t = blockIdx.x;
  for (int64_t k = 0; k < row_of_choice.K; ++k) {
    const int64_t at = rows.row_offset(row_of_choice.rows.row(t)[k]);
    if (at < 0) continue;
    for (int64_t j = threadIdx.x; j < D; j += blockDim.x)
      store(rows.data, rows.dtype, at + j, x.get<R>(t * x.stride0 + j));
  }
}

template <class R>
__global__ void combine_kernel(int64_t D, PagedView rows, Choices row_of_choice, View y) {
  const int64_t t = blockIdx.x;
  for (int64_t j = threadIdx.x; j < D; j += blockDim.x) {
    R sum = 0;
    for (int64_t k = 0; k < row_of_choice.K; ++k) {
      const int64_t at = rows.row_offset(row_of_choice.rows.row(t)[k]);
      if (at >= 0) sum = sum + load<R>(rows.data, rows.dtype, at + j);
    }
    y.put(t * y.stride0 + j, sum);
  }
}

enum class Way : uint8_t { kToRows, kToChoices };

template <class R>
__global__ void choices_kernel(Way way, Choices row_of_choice, int64_t num_rows, Array<R> choice,
                               Array<R> row_value, FaultSite fault) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < row_of_choice.count(); i += step) {
    const int64_t row = row_of_choice[i];
    if (row == kLeftOut) {
      if (way == Way::kToChoices) choice.row(i / row_of_choice.K)[i % row_of_choice.K] = 0;
      continue;
    }
    if (row < 0 || row >= num_rows) {
      fault.raise(static_cast<double>(i), static_cast<double>(row), static_cast<double>(num_rows));
      continue;
    }
    R& mine = choice.row(i / row_of_choice.K)[i % row_of_choice.K];
    if (way == Way::kToRows)
      row_value.data[row] = mine;
    else
      mine = row_value.data[row];
  }
}

void move_choices(Context& ctx, const char* op, Way way, const Tensor& choice_value,
                  const Tensor& row_of_choice, const Tensor& row_value) {
  const int64_t n = row_of_choice.num_elements();
  if (n == 0) return;
  with_arithmetic({row_value.dtype()}, [&]<class R>(R) {
    choices_kernel<R><<<blocks_for(n, kThreads), kThreads, 0, stream_of(ctx)>>>(
        way, Choices(row_of_choice), row_value.dim(0), Array<R>(choice_value), Array<R>(row_value),
        FaultSite(ctx, "choice {0} is row {1}, but row_value has {2} rows"));
  });
  check_launch(ctx, op, choice_value);
}

// NOTE: where nobody counts what is missing, a list that cannot be filled is -1 in every place;
// rows there are left out and give_back skips it.
__global__ void take_kernel(LayoutView layout, int64_t places, int64_t pages, int32_t* free,
                            int32_t* count, int64_t* missing, int32_t* page, FaultSite fault) {
  const int64_t needed = layout.num_positions(), before = *count;
  const int64_t given = needed < before ? needed : before;
  const bool valid = needed <= places && (given == needed || missing != nullptr);
  if (!valid && threadIdx.x == 0)
    fault.raise(static_cast<double>(needed), static_cast<double>(before),
                static_cast<double>(places));
  for (int64_t i = threadIdx.x; i < (valid ? needed : places); i += blockDim.x)
    page[i] = !valid ? -1 : i < given ? free[before - 1 - i] : static_cast<int32_t>(pages);
  __syncthreads();
  if (!valid || threadIdx.x != 0) return;
  *count = static_cast<int32_t>(before - given);
  if (given < needed) *missing += needed - given;
}

// Last taken, first back: the stack is then exactly as it was.
__global__ void give_back_kernel(LayoutView layout, int64_t pages, int32_t* free, int32_t* count,
                                 const int32_t* page, FaultSite fault) {
  const int64_t before = *count;
  int64_t low = 0, returned = layout.num_positions();
  if (returned == 0 || page[0] < 0) return;
  while (low < returned) {  // those that were given come first in the list
    const int64_t middle = (low + returned) / 2;
    if (page[middle] == pages)
      returned = middle;
    else
      low = middle + 1;
  }
  if (before + returned > pages) {
    if (threadIdx.x == 0)
      fault.raise(static_cast<double>(returned), static_cast<double>(before),
                  static_cast<double>(pages));
    return;
  }
  for (int64_t i = threadIdx.x; i < returned; i += blockDim.x)
    free[before + i] = page[returned - 1 - i];
  __syncthreads();
  if (threadIdx.x == 0) *count = static_cast<int32_t>(before + returned);
}

}  // namespace

void count_choices(Context& ctx, In topk_idx, Acc counts) {
  const int64_t E = counts.dim(0);
  if (E == 0) return;
  // NOTE: two's complement: adding an unsigned number adds the signed one.
  count(ctx, Choices(topk_idx), E, reinterpret_cast<unsigned long long*>(counts.data<int64_t>()),
        counts.stride(0), 0);
  check_launch(ctx, "count_choices", topk_idx);
}

void choices_here(Context& ctx, In topk_idx, int64_t first, int64_t count, Out choices) {
  const int64_t n = topk_idx.num_elements();
  if (n == 0) return;
  choices_here_kernel<<<blocks_for(n, kThreads), kThreads, 0, stream_of(ctx)>>>(
      Choices(topk_idx), static_cast<int32_t>(first), static_cast<int32_t>(count),
      Array<int32_t>(choices));
  check_launch(ctx, "choices_here", topk_idx);
}

void expert_layout(Context& ctx, In topk_idx, const ExpertLayout& layout, Out row_of_choice) {
  const int64_t E = layout.num_experts();
  const Choices choices(topk_idx);
  int32_t *counts = layout.counts.data<int32_t>(), *begin = layout.page_begin.data<int32_t>();
  if (E > 0) {
    fill(ctx, 0.0, Tensor(layout.counts));
    count(ctx, choices, E, counts, 1, kLeftOut);
  }
  check_launch(ctx, "expert_layout", topk_idx);
  page_begin_kernel<<<1, 1, 0, stream_of(ctx)>>>(E, counts, begin);
  check_launch(ctx, "expert_layout", topk_idx);
  if (E > 0)
    row_numbers_kernel<<<static_cast<unsigned>(E), kNumberThreads, 0, stream_of(ctx)>>>(
        choices, begin, Array<int32_t>(row_of_choice));
  check_launch(ctx, "expert_layout", topk_idx);
}

void scatter_rows(Context& ctx, In x, In row_of_choice, const PagedRows& rows) {
  const int64_t T = x.dim(0), D = x.dim(1);
  if (T == 0) return;
  if (has_bf16_rows(x) && has_bf16_pages(rows) && row_of_choice.dim(1) <= kMostKept) {
    scatter_bf16_kernel<<<static_cast<unsigned>(T), threads_of_row(D), 0, stream_of(ctx)>>>(
        D, View(x), Choices(row_of_choice), PagedView(rows));
    return check_launch(ctx, "scatter_rows", x);
  }
  with_arithmetic({x.dtype(), rows.slab.dtype()}, [&]<class R>(R) {
    scatter_kernel<R><<<static_cast<unsigned>(T), kThreads, 0, stream_of(ctx)>>>(
        D, View(x), Choices(row_of_choice), PagedView(rows));
  });
  check_launch(ctx, "scatter_rows", x);
}

void combine_rows(Context& ctx, const PagedRows& rows, In row_of_choice, Out y) {
  const int64_t T = y.dim(0), D = y.dim(1);
  if (T == 0) return;
  if (has_bf16_rows(y) && has_bf16_pages(rows) && row_of_choice.dim(1) <= kMostKept) {
    combine_bf16_kernel<<<static_cast<unsigned>(T), threads_of_row(D), 0, stream_of(ctx)>>>(
        D, PagedView(rows), Choices(row_of_choice), View(y));
    return check_launch(ctx, "combine_rows", y);
  }
  with_arithmetic({y.dtype(), rows.slab.dtype()}, [&]<class R>(R) {
    combine_kernel<R><<<static_cast<unsigned>(T), kThreads, 0, stream_of(ctx)>>>(
        D, PagedView(rows), Choices(row_of_choice), View(y));
  });
  check_launch(ctx, "combine_rows", y);
}

void scatter_choices(Context& ctx, In choice_value, In row_of_choice, Out row_value) {
  move_choices(ctx, "scatter_choices", Way::kToRows, choice_value, row_of_choice, row_value);
}

void gather_choices(Context& ctx, In row_value, In row_of_choice, Out choice_value) {
  move_choices(ctx, "gather_choices", Way::kToChoices, choice_value, row_of_choice, row_value);
}

void take_pages(Context& ctx, const ExpertLayout& layout, const PageStack& stack, Out page) {
  take_kernel<<<1, kThreads, 0, stream_of(ctx)>>>(
      LayoutView(layout), page.dim(0), stack.free.dim(0), stack.free.data<int32_t>(),
      stack.count.data<int32_t>(), stack.missing.empty() ? nullptr : stack.missing.data<int64_t>(),
      page.data<int32_t>(),
      FaultSite(ctx,
                "the experts need {0} pages of 128 rows, but only {1} are free and the page "
                "list has {2} places; give the pool more pages or use a smaller micro-batch"));
  check_launch(ctx, "take_pages", page);
}

void give_back_pages(Context& ctx, const ExpertLayout& layout, const PageStack& stack, In page) {
  give_back_kernel<<<1, kThreads, 0, stream_of(ctx)>>>(
      LayoutView(layout), stack.free.dim(0), stack.free.data<int32_t>(),
      stack.count.data<int32_t>(), page.data<int32_t>(),
      FaultSite(ctx, "{0} pages are given back, but {1} of {2} are free already"));
  check_launch(ctx, "give_back_pages", page);
}

}  // namespace hadal::ops::cuda
