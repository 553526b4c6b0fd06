// Routed experts and their backward in two halves.
//
//   P pages   D model width   F hidden width of an expert
// SPDX-License-Identifier: Apache-2.0
#include "model/experts.h"

#include <utility>

#include "model/bytes.h"
#include "model/linear.h"
#include "ops/activation.h"
#include "ops/gemm.h"
#include "ops/swiglu_tiles.h"

namespace hadal::experts {
namespace {

using ops::kPageRows;
using ops::PagedRows;

PagedRows cols(const PagedRows& rows, int64_t begin, int64_t count) {
  return {.slab = rows.slab.cols(begin, count), .page = rows.page};
}

// e4m3 rows of pages, and their scales.
ByteCount& add_tile_pages(ByteCount& bytes, int64_t P, int64_t W) {
  return bytes.add(DType::kE4M3, {P, kPageRows, W})
      .add(DType::kF32, {ops::num_tiles(W), P * kPageRows});
}
PagedRows tile_pages(Block& memory, int64_t P, int64_t W) {
  PagedRows rows;
  rows.slab = memory.tensor(DType::kE4M3, {P, kPageRows, W});
  rows.scale = memory.tensor(DType::kF32, {ops::num_tiles(W), P * kPageRows});
  return rows;
}

// What a product reads row by row: rows that are as they should be, or are made e4m3 here.
class TiledRows {
 public:
  explicit TiledRows(const PagedRows& x) : rows_(x) {}
  TiledRows(Context& ctx, const ops::ExpertLayout& layout, const PagedRows& x, bool fp8)
      : rows_(x) {
    if (!fp8 || x.slab.dtype() == DType::kE4M3) return;
    const int64_t P = x.page.empty() ? x.slab.dim(0) : x.page.dim(0), W = x.slab.dim(2);
    ByteCount bytes;
    memory_ = ctx.memory.take(add_tile_pages(bytes, P, W).total());
    rows_ = tile_pages(memory_, P, W);
    ops::grouped_quantise_rows(ctx, layout, x, {}, rows_);
  }
  const PagedRows& get() const { return rows_; }

 private:
  Block memory_;
  PagedRows rows_;
};

// What a weight gradient reads column by column.
class TiledColumns {
 public:
  TiledColumns(Context& ctx, const ops::ExpertLayout& layout, const PagedRows& x, bool fp8)
      : rows_(x) {
    if (!fp8) return;
    const int64_t P = x.page.empty() ? x.slab.dim(0) : x.page.dim(0), W = x.slab.dim(2);
    const Shape data{P, W, ops::kTileSize}, scale{P, W};
    memory_ = ctx.memory.take(ByteCount().add(DType::kE4M3, data).add(DType::kF32, scale).total());
    tiles_.data = memory_.tensor(DType::kE4M3, data);
    tiles_.scale = memory_.tensor(DType::kF32, scale);
    ops::grouped_quantise_columns(ctx, layout, x, tiles_);
  }
  const PagedRows& plain() const { return rows_; }
  const ops::TileColumns& tiles() const { return tiles_; }
  bool fp8() const { return !tiles_.data.empty(); }

 private:
  PagedRows rows_;
  Block memory_;
  ops::TileColumns tiles_;
};

using Matrices = std::vector<Operand>;

bool is_fp8(const Matrices& w) { return !w.empty() && linear::is_fp8(w[0]); }

void multiply(Context& ctx, const ops::ExpertLayout& layout, const TiledRows& x, const Matrices& w,
              const PagedRows& y) {
  if (is_fp8(w)) return ops::grouped_fp8_gemm_nt(ctx, layout, x.get(), w, y);
  ops::grouped_gemm_nt(ctx, layout, x.get(), w, y);
}

// The same rows times two weights.
void multiply_both(Context& ctx, const ops::ExpertLayout& layout, const TiledRows& x,
                   const Matrices& w1, const Matrices& w2, const PagedRows& y1,
                   const PagedRows& y2) {
  if (is_fp8(w1)) {
    multiply(ctx, layout, x, w1, y1);
    return multiply(ctx, layout, x, w2, y2);
  }
  const ops::WeightsTo both[] = {{w1, y1}, {w2, y2}};
  ops::grouped_gemm_nt_all(ctx, layout, x.get(), both);
}

void multiply_back(Context& ctx, const ops::ExpertLayout& layout, const TiledRows& dy,
                   const Matrices& w, const PagedRows& dx) {
  if (is_fp8(w)) return ops::grouped_fp8_gemm_nn(ctx, layout, dy.get(), w, dx);
  ops::grouped_gemm_nn(ctx, layout, dy.get(), w, dx);
}

void multiply_back_acc(Context& ctx, const ops::ExpertLayout& layout, const TiledRows& dy,
                       const Matrices& w, const PagedRows& dx) {
  if (is_fp8(w)) return ops::grouped_fp8_gemm_nn_acc(ctx, layout, dy.get(), w, dx);
  ops::grouped_gemm_nn_acc(ctx, layout, dy.get(), w, dx);
}

void add_gradient(Context& ctx, const ops::ExpertLayout& layout, const TiledColumns& dy,
                  const TiledColumns& x, std::vector<Tensor>& dw) {
  if (dy.fp8()) return ops::grouped_fp8_gemm_tn_acc(ctx, layout, dy.tiles(), x.tiles(), dw);
  ops::grouped_gemm_tn_acc(ctx, layout, dy.plain(), x.plain(), dw);
}

}  // namespace

void forward(Context& ctx, const Config& c, const Weights& w, const Rows& r, Saved& saved,
             const PagedRows& y) {
  const int64_t F = c.moe_intermediate_size;
  const bool fp8 = is_fp8(w.w1);
  const PagedRows kept = saved.rows.gate_up();
  PagedRows gate_up = kept;
  Block gate_up_memory;
  if (c.precision.e4m3_swiglu) {
    gate_up = {};
    gate_up_memory =
        ctx.memory.take_tensor(y.slab.dtype(), {r.num_pages, kPageRows, 2 * F}, &gate_up.slab);
  }
  const TiledRows x(ctx, r.layout, saved.rows.x(), fp8);
  multiply_both(ctx, r.layout, x, w.w1, w.w3, cols(gate_up, 0, F),
                cols(gate_up, F, F));  // [rows, F] each
  if (fp8) {
    ByteCount bytes;
    Block memory = ctx.memory.take(add_tile_pages(bytes, r.num_pages, F).total());
    const PagedRows hidden = tile_pages(memory, r.num_pages, F);
    ops::grouped_swiglu_forward_tiles(ctx, r.layout, gate_up, r.row_weight,
                                      c.precision.e4m3_swiglu ? kept : PagedRows{},
                                      hidden);                   // [rows, F]
    return multiply(ctx, r.layout, TiledRows(hidden), w.w2, y);  // [rows, D]
  }
  PagedRows hidden;
  const Block memory =
      ctx.memory.take_tensor(y.slab.dtype(), {r.num_pages, kPageRows, F}, &hidden.slab);
  ops::grouped_swiglu_forward(ctx, r.layout, gate_up, r.row_weight, hidden);  // [rows, F]
  multiply(ctx, r.layout, TiledRows(hidden), w.w2, y);                        // [rows, D]
}

Deferred make_deferred(Context& ctx, const Config& c, const ops::ExpertLayout& layout,
                       int64_t num_pages, DType act) {
  const int64_t D = c.hidden_size, F = c.moe_intermediate_size, P = num_pages;
  Deferred d;
  d.layout = layout;
  d.fp8 = c.precision.fp8;
  ByteCount bytes;
  if (d.fp8)
    add_tile_pages(bytes, P, D);
  else
    bytes.add(act, {P, kPageRows, D});
  bytes.add(act, {P, kPageRows, F}).add(act, {P, kPageRows, 2 * F});
  d.memory = ctx.memory.take(bytes.total());
  if (d.fp8)
    d.dy = tile_pages(d.memory, P, D);
  else
    d.dy.slab = d.memory.tensor(act, {P, kPageRows, D});
  d.hidden.slab = d.memory.tensor(act, {P, kPageRows, F});
  d.dgate_up.slab = d.memory.tensor(act, {P, kPageRows, 2 * F});
  return d;
}

void backward_input(Context& ctx, const Config& c, const Weights& w, const Rows& r, Saved&& saved,
                    Deferred& d, const PagedRows& dx, Out drow_weight) {
  d.rows = std::move(saved.rows);
  const int64_t F = c.moe_intermediate_size;
  const DType act = dx.slab.dtype();
  PagedRows dhidden, dgate = cols(d.dgate_up, 0, F), dup = cols(d.dgate_up, F, F);
  const PagedRows gate_up = d.rows.gate_up();
  const Block memory = ctx.memory.take_tensor(act, {r.num_pages, kPageRows, F}, &dhidden.slab);
  multiply_back(ctx, r.layout, TiledRows(ctx, r.layout, d.dy, d.fp8), w.w2, dhidden);  // [rows, F]
  Block tiles;
  if (d.fp8) {
    ByteCount bytes;
    add_tile_pages(add_tile_pages(bytes, r.num_pages, F), r.num_pages, F);
    tiles = ctx.memory.take(bytes.total());
    dgate = tile_pages(tiles, r.num_pages, F);
    dup = tile_pages(tiles, r.num_pages, F);
    ops::grouped_swiglu_backward_tiles(ctx, r.layout, gate_up, r.row_weight, dhidden,
                                       linear::gradient_rule(c.precision), d.dgate_up, dgate, dup,
                                       d.hidden, drow_weight);  // [rows, 2F]
  } else {
    ops::grouped_swiglu_backward(ctx, r.layout, gate_up, r.row_weight, dhidden, d.dgate_up,
                                 d.hidden, drow_weight);  // [rows, 2F]
  }
  multiply_back(ctx, r.layout, TiledRows(dgate), w.w1, dx);    // [rows, D]
  multiply_back_acc(ctx, r.layout, TiledRows(dup), w.w3, dx);  // [rows, D]
}

void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw) {
  const Deferred d = std::move(deferred);
  const int64_t F = d.hidden.slab.dim(2);
  const auto columns = [&](const PagedRows& rows) {
    return TiledColumns(ctx, d.layout, rows, d.fp8);
  };
  {
    const TiledColumns x = columns(d.rows.x());
    add_gradient(ctx, d.layout, columns(cols(d.dgate_up, 0, F)), x, dw.w1);  // [F, D] each
    add_gradient(ctx, d.layout, columns(cols(d.dgate_up, F, F)), x, dw.w3);  // [F, D]
  }
  add_gradient(ctx, d.layout, columns(d.dy), columns(d.hidden), dw.w2);  // [D, F]
}

}  // namespace hadal::experts
