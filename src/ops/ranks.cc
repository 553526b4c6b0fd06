// Checks of what collectives and hops compute, then dispatch.
//
//   G ranks   n elements   T tokens   K choices of a token   E experts of a rank   N copies
// SPDX-License-Identifier: Apache-2.0
#include "ops/ranks.h"

#include <algorithm>

#include "ops/checks.h"

namespace hadal::ops {
namespace {

void check_value(const Tensor& t, const char* name) {
  HADAL_CHECK(t.dtype() == DType::kF32 || t.dtype() == DType::kF64, name,
              " must be f32 or f64, is ", t.str());
}

}  // namespace

void sum_of_ranks(Context& ctx, int64_t place, In own, In others, Out y) {
  const auto [n] = HADAL_SHAPE(own, 1);
  const auto [rest, n_others] = HADAL_SHAPE(others, 2);
  HADAL_CHECK_SHAPE(y, n);
  HADAL_CHECK(n == n_others && place >= 0 && place <= rest, "the part of rank ", place, " is ",
              own.str(), ", those of the others ", others.str());
  const DType type = own.dtype();
  HADAL_CHECK(
      type == DType::kF32 || type == DType::kF64 || type == DType::kBF16 || type == DType::kI64,
      "reductions add f32, f64, bf16 and i64, not ", dtype_name(type));
  check_dtype(others, type, "others");
  check_dtype(y, type, "y");
  HADAL_CHECK(own.stride(0) == 1 && y.stride(0) == 1 && others.stride(1) == 1,
              "sum_of_ranks adds dense rows, not ", own.str(), " and ", others.str());
  HADAL_DISPATCH(ctx, sum_of_ranks, place, own, others, y);
}

void hop_copies(Context& ctx, In ids, Out copy_of_rank, Out copy_of_choice, Out counts, Out most) {
  const auto [T, K] = HADAL_SHAPE(ids, 2);
  const auto [G, columns] = HADAL_SHAPE(counts, 2);
  HADAL_CHECK(G >= 1 && columns >= 2, "hop_copies: counts is ", counts.str(),
              "; it needs a row for each rank, of copies and of each expert");
  HADAL_CHECK_SHAPE(copy_of_rank, T, std::min(K, G));
  HADAL_CHECK_SHAPE(copy_of_choice, T, K);
  HADAL_CHECK_SHAPE(most, 1);
  check_dtype(ids, DType::kI32, "ids");
  check_dtype(copy_of_rank, DType::kI32, "copy_of_rank");
  check_dtype(copy_of_choice, DType::kI32, "copy_of_choice");
  check_dtype(counts, DType::kI64, "counts");
  check_dtype(most, DType::kI64, "most");
  check_dense(copy_of_rank, "copy_of_rank");
  check_dense(copy_of_choice, "copy_of_choice");
  check_dense(counts, "counts");
  HADAL_DISPATCH(ctx, hop_copies, ids, copy_of_rank, copy_of_choice, counts, most);
}

void hop_choices(Context& ctx, int64_t experts_of_rank, In ids, In weights, In copy_of_choice,
                 Out ids_out, Out weights_out) {
  const auto [T, K] = HADAL_SHAPE(ids, 2);
  const auto [N, K_out] = HADAL_SHAPE(ids_out, 2);
  HADAL_CHECK_SHAPE(weights, T, K);
  HADAL_CHECK_SHAPE(copy_of_choice, T, K);
  HADAL_CHECK(K_out == K && experts_of_rank > 0, "hop_choices: ids is ", ids.str(), ", ids_out ",
              ids_out.str());
  HADAL_CHECK_SHAPE(weights_out, N, K);
  check_dtype(ids, DType::kI32, "ids");
  check_dtype(copy_of_choice, DType::kI32, "copy_of_choice");
  check_dtype(ids_out, DType::kI32, "ids_out");
  check_value(weights, "weights");
  check_dtype(weights_out, weights.dtype(), "weights_out");
  check_dense(copy_of_choice, "copy_of_choice");
  check_dense(ids_out, "ids_out");
  check_dense(weights_out, "weights_out");
  HADAL_DISPATCH(ctx, hop_choices, experts_of_rank, ids, weights, copy_of_choice, ids_out,
                 weights_out);
}

void hop_values(Context& ctx, In back, In copy_of_choice, Out values) {
  const auto [T, K] = HADAL_SHAPE(values, 2);
  const auto [N, K_back] = HADAL_SHAPE(back, 2);
  HADAL_CHECK(K_back == K, "hop_values: back is ", back.str(), ", values ", values.str());
  HADAL_CHECK_SHAPE(copy_of_choice, T, K);
  check_dtype(copy_of_choice, DType::kI32, "copy_of_choice");
  check_value(back, "back");
  check_dtype(values, back.dtype(), "values");
  check_dense(copy_of_choice, "copy_of_choice");
  check_dense(back, "back");
  HADAL_DISPATCH(ctx, hop_values, back, copy_of_choice, values);
}

}  // namespace hadal::ops
