// What collectives add, and where tokens go among ranks, on the CPU.
//
//   G ranks   n elements   T tokens   K choices of a token   E experts of a rank   N copies
// SPDX-License-Identifier: Apache-2.0
#include "ops/ranks.h"

#include <type_traits>
#include <vector>

#include "ops/cpu/rows.h"

namespace hadal::ops::cpu {
namespace {

constexpr int64_t kAddBlock = 1024;  // elements converted at once

// Elements [begin, end) of the sum, in Sum's type.
template <class T, class Sum>
void add(int64_t place, const Tensor& own, const Tensor& others, const Tensor& y, int64_t begin,
         int64_t end) {
  const int64_t G = others.dim(0) + 1;
  Sum sum[kAddBlock];
  for (; begin < end; begin += kAddBlock) {
    const int64_t n = std::min(kAddBlock, end - begin);
    for (int64_t r = 0; r < G; ++r) {
      const T* from = r == place
                          ? own.data<T>() + begin
                          : others.data<T>() + (r < place ? r : r - 1) * others.stride(0) + begin;
      for (int64_t i = 0; i < n; ++i) {
        Sum value;
        if constexpr (std::is_same_v<T, bf16>)
          value = to_f32(from[i]);
        else
          value = from[i];
        sum[i] = r == 0 ? value : sum[i] + value;
      }
    }
    T* to = y.data<T>() + begin;
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (std::is_same_v<T, bf16>)
        to[i] = to_bf16(sum[i]);
      else
        to[i] = sum[i];
    }
  }
}

const int32_t* choices_of(const Tensor& t, int64_t token) {
  return t.data<int32_t>() + token * t.stride(0);
}

}  // namespace

void sum_of_ranks(Context& ctx, int64_t place, In own, In others, Out y) {
  const auto add_as = [&]<class T, class Sum>(T, Sum) {
    for_rows(ctx, own.dim(0), others.dim(0) + 1, [&](int64_t begin, int64_t end, int) {
      add<T, Sum>(place, own, others, y, begin, end);
    });
  };
  switch (own.dtype()) {
    case DType::kF32:
      return add_as(float{}, float{});
    case DType::kF64:
      return add_as(double{}, double{});
    case DType::kBF16:
      return add_as(bf16{}, float{});
    default:
      return add_as(int64_t{}, int64_t{});
  }
}

void hop_copies(Context&, In ids, Out copy_of_rank, Out copy_of_choice, Out counts, Out most) {
  const int64_t T = ids.dim(0), K = ids.dim(1), G = counts.dim(0), columns = counts.dim(1);
  const int64_t E = columns - 1, Kr = copy_of_rank.dim(1);
  int32_t *of_rank = copy_of_rank.data<int32_t>(), *of_choice = copy_of_choice.data<int32_t>();
  int64_t *count = counts.data<int64_t>(), &largest = *most.data<int64_t>();
  std::fill_n(of_rank, T * Kr, -1);
  std::fill_n(count, G * columns, 0);
  largest = 0;

  // First the rank itself in place of its copy. Choices ascend, and so do their ranks.
  for (int64_t t = 0; t < T; ++t) {
    int64_t num_ranks = 0;
    for (int64_t k = 0; k < K; ++k) {
      const int32_t expert = choices_of(ids, t)[k];
      of_choice[t * K + k] = -1;
      if (expert == -1) continue;
      const int64_t rank = expert / E;
      HADAL_CHECK(expert >= 0 && rank < G, "choice ", k, " of token ", t, " is expert ", expert,
                  ", but there are ", E * G);
      of_choice[t * K + k] = static_cast<int32_t>(rank);
      ++count[rank * columns + 1 + expert % E];
      if (num_ranks > 0 && of_rank[t * Kr + num_ranks - 1] == rank) continue;
      of_rank[t * Kr + num_ranks++] = static_cast<int32_t>(rank);
      ++count[rank * columns];
    }
    largest = std::max(largest, num_ranks);
  }
  std::vector<int32_t> next(static_cast<size_t>(G));
  for (int64_t g = 1; g < G; ++g)
    next[static_cast<size_t>(g)] =
        next[static_cast<size_t>(g - 1)] + static_cast<int32_t>(count[(g - 1) * columns]);
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t i = 0; i < Kr && of_rank[t * Kr + i] >= 0; ++i) {
      int32_t& entry = of_rank[t * Kr + i];
      entry = next[static_cast<size_t>(entry)]++;
    }
    int64_t i = -1;
    int32_t last = -1;
    for (int64_t k = 0; k < K; ++k) {
      int32_t& choice = of_choice[t * K + k];
      if (choice == -1) continue;
      if (choice != last) ++i;
      last = choice;
      choice = of_rank[t * Kr + i];
    }
  }
}

void hop_choices(Context&, int64_t experts_of_rank, In ids, In weights, In copy_of_choice,
                 Out ids_out, Out weights_out) {
  const int64_t T = ids.dim(0), K = ids.dim(1), N = ids_out.dim(0);
  const size_t size = dtype_size(weights.dtype());
  std::fill_n(ids_out.data<int32_t>(), N * K, -1);
  if (N > 0) std::memset(weights_out.raw(), 0, static_cast<size_t>(weights_out.num_bytes()));
  for (int64_t t = 0; t < T; ++t)
    for (int64_t k = 0; k < K; ++k) {
      const int64_t copy = copy_of_choice.data<int32_t>()[t * K + k];
      if (copy == -1) continue;
      HADAL_CHECK(copy >= 0 && copy < N, "choice ", k, " of token ", t, " is in copy ", copy,
                  ", but there are ", N);
      ids_out.data<int32_t>()[copy * K + k] =
          static_cast<int32_t>(choices_of(ids, t)[k] % experts_of_rank);
      std::memcpy(address(weights_out, copy * K + k), address(weights, t * weights.stride(0) + k),
                  size);
    }
}

void hop_values(Context&, In back, In copy_of_choice, Out values) {
  const int64_t T = values.dim(0), K = values.dim(1), N = back.dim(0);
  const size_t size = dtype_size(values.dtype());
  for (int64_t t = 0; t < T; ++t)
    for (int64_t k = 0; k < K; ++k) {
      const int64_t copy = copy_of_choice.data<int32_t>()[t * K + k];
      HADAL_CHECK(copy >= -1 && copy < N, "choice ", k, " of token ", t, " is in copy ", copy,
                  ", but there are ", N);
      void* at = address(values, t * values.stride(0) + k);
      if (copy == -1)
        std::memset(at, 0, size);
      else
        std::memcpy(at, address(back, copy * K + k), size);
    }
}

}  // namespace hadal::ops::cpu
