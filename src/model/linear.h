// Products with weights, in the compute type or in FP8 (report, figure 6).
//
//   T tokens   N, K widths of a weight [N, K]
//
// A weight that has a transposed copy is multiplied in FP8: its inputs are quantised once, however
// many weights read them. Per micro-batch: forward -> backward_input -> backward_weight.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "model/bytes.h"
#include "model/precision.h"
#include "ops/fp8.h"

namespace hadal::linear {

inline bool is_fp8(const Operand& w) { return !w.transposed.empty(); }

// How gradients are cut into tiles.
inline ops::TileRule gradient_rule(const Precision& precision) {
  const bool square = precision.gradient_tiles == GradientTiles::kSquare;
  return {.shape = square ? ops::TileShape::kSquare : ops::TileShape::kRow};
}

// Tiles of [T, K] in a Block that ByteCount::add_tile_rows made room in.
ops::TileRows tile_rows(Block& memory, int64_t T, int64_t K);

// What a product reads row by row: x of y = x w^T, dy of dx = dy w.
class Rows {
 public:
  Rows(Context& ctx, In x, bool fp8, ops::TileRule rule = {});
  explicit Rows(const ops::TileRows& tiles) : tiles_(tiles) {}  // made by who computed them
  // Of x, or of its tiles where there are some already.
  static Rows of(Context& ctx, In x, bool fp8, const ops::TileRows& tiles) {
    return fp8 && !tiles.data.empty() ? Rows(tiles) : Rows(ctx, x, fp8);
  }
  const Tensor& plain() const { return x_; }
  const ops::TileRows& tiles() const { return tiles_; }

 private:
  Tensor x_;
  Block memory_;
  ops::TileRows tiles_;
};

// What a weight gradient reads column by column: dy and x of dw += dy^T x.
class Columns {
 public:
  Columns(Context& ctx, In x, bool fp8);
  const Tensor& plain() const { return x_; }
  const ops::TileColumns& tiles() const { return tiles_; }
  bool fp8() const { return !tiles_.data.empty(); }

 private:
  Tensor x_;
  Block memory_;
  ops::TileColumns tiles_;
};

void forward(Context& ctx, const Rows& x, const Operand& w, Out y);  // [T,N] = [T,K] [N,K]^T
// Two products of the same rows: y1 of w1, y2 of w2.
void forward_both(Context& ctx, const Rows& x, const Operand& w1, const Operand& w2, Out y1,
                  Out y2);
void backward_input(Context& ctx, const Rows& dy, const Operand& w, Out dx);  // [T,K] = [T,N] [N,K]
void backward_input_acc(Context& ctx, const Rows& dy, const Operand& w, Acc dx);  // [T,K] += ...
void backward_weight(Context& ctx, const Columns& dy, const Columns& x,
                     Acc dw);  // [N,K] += [T,N]^T [T,K]

}  // namespace hadal::linear
