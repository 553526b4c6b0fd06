// Checks of block FP8, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/quant.h"

#include "ops/checks.h"

namespace hadal::ops {
namespace {

int64_t blocks_of(int64_t size) { return (size + kScaleBlock - 1) / kScaleBlock; }

}  // namespace

void quantise_blocks(Context& ctx, In w, ScaleFormat format, Out q, Out scale) {
  const auto [N, K] = HADAL_SHAPE(w, 2);
  HADAL_CHECK_SHAPE(q, N, K);
  HADAL_CHECK_SHAPE(scale, blocks_of(N), blocks_of(K));
  check_float(w, "w");
  check_dtype(q, DType::kE4M3, "q");
  check_dtype(scale, DType::kF32, "scale");
  HADAL_DISPATCH(ctx, quantise_blocks, w, format, q, scale);
}

void dequantise_blocks(Context& ctx, const Operand& w, Out y) {
  const auto [N, K] = HADAL_SHAPE(y, 2);
  HADAL_CHECK_SHAPE(w.data, N, K);
  check_float(w.data, "w");
  check_float(y, "y");
  if (!w.scale.empty()) {
    const auto [num_block_rows, num_block_cols] = HADAL_SHAPE(w.scale, 2);
    check_dtype(w.scale, DType::kF32, "w.scale");
    HADAL_CHECK(num_block_cols == blocks_of(K) && w.row_begin >= 0 &&
                    num_block_rows >= blocks_of(w.row_begin + N),
                "w has rows ", w.row_begin, " to ", w.row_begin + N, " of ", K,
                " columns, which needs scales of shape [", blocks_of(w.row_begin + N), ", ",
                blocks_of(K), "] or more rows, has ", w.scale.str());
  }
  HADAL_DISPATCH(ctx, dequantise_blocks, w, y);
}

}  // namespace hadal::ops
