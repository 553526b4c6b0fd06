// Products with weights: the compute type's op, or FP8's.
//
//   T tokens   N, K widths of a weight [N, K]
// SPDX-License-Identifier: Apache-2.0
#include "model/linear.h"

#include "ops/gemm.h"

namespace hadal::linear {
namespace {

// Rows of e4m3 start at multiples of what the copy engine reads.
constexpr int64_t kRowUnit = 16;
static_assert(ops::kTileSize == 128 && ops::kPageRows == 128, "model/bytes.cc counts 128");
Shape padded(int64_t T, int64_t K) { return {T, (K + kRowUnit - 1) / kRowUnit * kRowUnit}; }
Shape scales(int64_t T, int64_t K) {
  return {ops::num_tiles(K), ops::num_tiles(T) * ops::kPageRows};
}

}  // namespace

ops::TileRows tile_rows(Block& memory, int64_t T, int64_t K) {
  ops::TileRows q;
  q.data = memory.tensor(DType::kE4M3, padded(T, K)).cols(0, K);
  q.scale = memory.tensor(DType::kF32, scales(T, K));
  return q;
}

Rows::Rows(Context& ctx, In x, bool fp8, ops::TileRule rule) : x_(x) {
  if (!fp8) return;
  const auto [T, K] = HADAL_SHAPE(x, 2);
  memory_ = ctx.memory.take(ByteCount().add_tile_rows(T, K).total());
  tiles_ = tile_rows(memory_, T, K);
  ops::quantise_rows(ctx, x, rule, tiles_);
}

Columns::Columns(Context& ctx, In x, bool fp8) : x_(x) {
  if (!fp8) return;
  const auto [T, W] = HADAL_SHAPE(x, 2);
  const Shape data{ops::num_tiles(T), W, ops::kTileSize}, scale{ops::num_tiles(T), W};
  memory_ = ctx.memory.take(ByteCount().add(DType::kE4M3, data).add(DType::kF32, scale).total());
  tiles_.data = memory_.tensor(DType::kE4M3, data);
  tiles_.scale = memory_.tensor(DType::kF32, scale);
  ops::quantise_columns(ctx, x, tiles_);
}

void forward(Context& ctx, const Rows& x, const Operand& w, Out y) {
  if (is_fp8(w)) return ops::fp8_gemm_nt(ctx, x.tiles(), w, y);
  ops::gemm_nt(ctx, x.plain(), w, y);
}

void forward_both(Context& ctx, const Rows& x, const Operand& w1, const Operand& w2, Out y1,
                  Out y2) {
  if (is_fp8(w1) || is_fp8(w2)) {
    forward(ctx, x, w1, y1);
    return forward(ctx, x, w2, y2);
  }
  const ops::WeightTo both[] = {{w1, y1}, {w2, y2}};
  ops::gemm_nt_all(ctx, x.plain(), both);
}

void backward_input(Context& ctx, const Rows& dy, const Operand& w, Out dx) {
  if (is_fp8(w)) return ops::fp8_gemm_nn(ctx, dy.tiles(), w, dx);
  ops::gemm_nn(ctx, dy.plain(), w, dx);
}

void backward_input_acc(Context& ctx, const Rows& dy, const Operand& w, Acc dx) {
  if (is_fp8(w)) return ops::fp8_gemm_nn_acc(ctx, dy.tiles(), w, dx);
  ops::gemm_nn_acc(ctx, dy.plain(), w, dx);
}

void backward_weight(Context& ctx, const Columns& dy, const Columns& x, Acc dw) {
  if (dy.fp8()) return ops::fp8_gemm_tn_acc(ctx, dy.tiles(), x.tiles(), dw);
  ops::gemm_tn_acc(ctx, dy.plain(), x.plain(), dw);
}

}  // namespace hadal::linear
