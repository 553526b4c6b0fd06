// The operations whose time is that of their bytes, one by one, at the widths of a config: time,
// bytes over time, and the percentage of a copy's rate in the same run. On a GPU.
//
//   T tokens   D model width   F hidden width of an expert   V vocabulary   K choices of a token
//
// Each is called many times in one recorded graph, over sets of tensors in turn that are together
// larger than the L2. Bytes count each input once and each output once.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include "cli/bench.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "ops/activation.h"
#include "ops/copy.h"
#include "ops/loss.h"
#include "ops/norm.h"
#include "ops/optim.h"
#include "ops/rope.h"
#include "ops/routing.h"
#include "ops/swiglu_tiles.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

constexpr int kCalls = 32;             // in a graph
constexpr double kLeastBytes = 256e6;  // of all sets
constexpr int64_t kLocalExperts = 4;
constexpr int64_t kVocabularyChunk = 1024;  // tokens whose logits exist at once

// One set of everything that the operations read and write.
class RowSet {
 public:
  RowSet(Context& ctx, const Config& c, int64_t tokens) : ctx_(ctx), T(tokens) {
    const int64_t D = c.hidden_size, K = c.num_experts_per_tok, P = T * K / ops::kPageRows;
    std::vector<int32_t> idx;
    for (int64_t i = 0; i < T * K; ++i) idx.push_back(static_cast<int32_t>(i % K % kLocalExperts));
    topk_idx = take(DType::kI32, {T, K});
    upload(ctx, idx, topk_idx);
    layout = {take(DType::kI32, {kLocalExperts}), take(DType::kI32, {kLocalExperts + 1})};
    row_of_choice = take(DType::kI32, {T, K});
    ops::expert_layout(ctx, topk_idx, layout, row_of_choice);
    x = random(DType::kBF16, {T, D});
    y = random(DType::kBF16, {T, D});
    dx = take(DType::kBF16, {T, D});
    gain = random(DType::kF32, {D});
    dgain = take(DType::kF32, {D});
    rstd = take(DType::kF32, {T});
    rows = pages(DType::kBF16, P, D);
    row_tiles = tile_pages(P, D);
    row_columns = columns(P, D);
    row_weight = random(DType::kF32, {P * ops::kPageRows});
  }
  Tensor take(DType dtype, const Shape& shape) {
    Tensor t;
    memory_.push_back(ctx_.memory.take_tensor(dtype, shape, &t));
    return t;
  }
  // Standard normal over the first million elements, again and again.
  Tensor random(DType dtype, const Shape& shape) {
    const Tensor t = take(dtype, shape);
    const int64_t count = std::min<int64_t>(t.num_elements(), int64_t{1} << 20);
    const Rng rng(7, stream_id("rows"));
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i)
      values.push_back(static_cast<float>(rng.normal(static_cast<uint64_t>(i))));
    Tensor f32;
    const Block memory = ctx_.memory.take_tensor(DType::kF32, {count}, &f32);
    upload(ctx_, values, f32);
    for (int64_t at = 0; at < t.num_elements(); at += count) {
      const int64_t n = std::min(count, t.num_elements() - at);
      ops::cast(ctx_, f32.rows(0, n), Tensor(t.view({t.num_elements()}).rows(at, n)));
    }
    device::synchronize(ctx_.device, ctx_.stream);
    return t;
  }
  ops::PagedRows pages(DType dtype, int64_t P, int64_t W) {
    return {random(dtype, {P, ops::kPageRows, W}), Tensor()};
  }
  ops::PagedRows tile_pages(int64_t P, int64_t W) {
    ops::PagedRows q{take(DType::kE4M3, {P, ops::kPageRows, W}), Tensor()};
    q.scale = take(DType::kF32, {ops::num_tiles(W), P * ops::kPageRows});
    ops::grouped_quantise_rows(ctx_, layout, pages(DType::kBF16, P, W), {}, q);
    return q;
  }
  ops::TileRows tiles(int64_t W) {
    return {take(DType::kE4M3, {T, W}),
            take(DType::kF32, {ops::num_tiles(W), ops::num_tiles(T) * ops::kPageRows})};
  }
  ops::TileColumns columns(int64_t P, int64_t W) {
    return {take(DType::kE4M3, {P, W, ops::kTileSize}), take(DType::kF32, {P, W})};
  }

 private:
  Context& ctx_;
  std::vector<Block> memory_;

 public:
  int64_t T;
  ops::ExpertLayout layout;
  Tensor topk_idx, row_of_choice, x, y, dx, gain, dgain, rstd, row_weight;
  ops::PagedRows rows, row_tiles;
  ops::TileColumns row_columns;
};

// Seconds of one call: kCalls of them recorded, the median of `count` launches.
double time_of(Context& ctx, int64_t count, const std::function<void(int call)>& fn) {
  for (int call = 0; call < 2; ++call) fn(call);  // to warm up, and to fill the pool
  device::begin_recording(ctx.device, ctx.stream);
  for (int call = 0; call < kCalls; ++call) fn(call);
  const Graph graph = device::end_recording(ctx.device, ctx.stream);
  const Event begin = device::make_event(ctx.device), end = device::make_event(ctx.device);
  std::vector<double> times;
  for (int64_t i = 0; i < count + 1; ++i) {
    device::record(ctx.device, ctx.stream, begin);
    device::launch(ctx.device, ctx.stream, graph);
    device::record(ctx.device, ctx.stream, end);
    const double ms = device::elapsed_ms(ctx.device, begin, end);
    if (i > 0) times.push_back(1e-3 * ms / kCalls);
  }
  device::synchronize(ctx.device, ctx.stream);
  device::destroy(ctx.device, begin);
  device::destroy(ctx.device, end);
  device::destroy(ctx.device, graph);
  return quantile(times, 0.5);
}

}  // namespace

void bench_rows(Context& ctx, const Config& c, int64_t T, int64_t count, const json& row) {
  HADAL_CHECK(device::can_record(ctx.device),
              "bench rows records graphs on a GPU; use --device cuda, without HADAL_PROFILE");
  const int64_t D = c.hidden_size, F = c.moe_intermediate_size, V = c.vocab_size;
  const int64_t K = c.num_experts_per_tok, H = c.num_attention_heads, Dr = c.qk_rope_head_dim;
  HADAL_CHECK(T % ops::kPageRows == 0 && K % kLocalExperts == 0, "bench rows: ", T,
              " tokens must be a multiple of ", ops::kPageRows, " and ", K, " choices of ",
              kLocalExperts);
  const int64_t Do = H * c.v_head_dim, P = T * K / ops::kPageRows;
  const auto n = [](int64_t rows, int64_t width) {
    return static_cast<double>(rows) * static_cast<double>(width);
  };
  const double TD = n(T, D), RD = n(T * K, D), TF = n(T, F), RF = n(T * K, F), TO = n(T, Do);

  double copy = 0.0;
  // make(set) returns a call of the operation on tensors of its own.
  using Call = std::function<void()>;
  const auto bench = [&](const char* op, const std::vector<int64_t>& shape, double bytes,
                         const std::function<Call(RowSet&)>& make) {
    std::vector<std::unique_ptr<RowSet>> sets;
    std::vector<Call> calls;
    const int wanted = static_cast<int>(kLeastBytes / bytes) + 1;
    for (int i = 0; i < wanted; ++i) {
      sets.push_back(std::make_unique<RowSet>(ctx, c, T));
      calls.push_back(make(*sets.back()));
    }
    const double seconds =
        time_of(ctx, count, [&](int call) { calls[static_cast<size_t>(call) % calls.size()](); });
    if (copy == 0.0) copy = bytes / seconds;
    json result = row;
    result.update({{"bench", "rows"},
                   {"device", device::name(ctx.device)},
                   {"op", op},
                   {"shape", shape},
                   {"us", 1e6 * seconds},
                   {"gb_per_s", 1e-9 * bytes / seconds},
                   {"percent_of_copy", 100.0 * bytes / seconds / copy}});
    fmt::print("{}\n", result.dump());
  };

  bench("cast", {8 * T, D}, 8.0 * 4.0 * TD, [&](RowSet& s) -> Call {
    const Tensor from = s.random(DType::kBF16, {8 * T, D}), to = s.take(DType::kBF16, {8 * T, D});
    return [&ctx, from, to] { ops::cast(ctx, from, Tensor(to)); };
  });
  bench("rmsnorm_forward", {T, D}, 4.0 * TD, [&](RowSet& s) -> Call {
    return [&ctx, &s] { ops::rmsnorm_forward(ctx, s.x, s.gain, 1e-6, s.y, s.rstd); };
  });
  bench("rmsnorm_backward", {T, D}, 6.0 * TD, [&](RowSet& s) -> Call {
    ops::fill(ctx, 1.0, s.rstd);
    return [&ctx, &s] { ops::rmsnorm_backward(ctx, s.x, s.gain, s.rstd, s.y, s.dx, s.dgain); };
  });
  bench("add", {T, D}, 6.0 * TD,
        [&](RowSet& s) -> Call { return [&ctx, &s] { ops::add(ctx, s.x, s.y, s.dx); }; });
  bench("rope_apply", {T, H, Dr}, 4.0 * n(T * H, Dr), [&](RowSet& s) -> Call {
    Tensor q = s.random(DType::kBF16, {T, H, c.qk_head_dim()}).cols(c.qk_nope_head_dim, Dr);
    const Tensor table = s.random(DType::kF32, {T, Dr});
    return [&ctx, q, table]() mutable {
      ops::rope_apply(ctx, ops::RopeLayout::kInterleaved, ops::RopeDirection::kForward, table, q);
    };
  });
  bench("quantise_rows", {T, Do}, 3.0 * TO, [&](RowSet& s) -> Call {
    const Tensor from = s.random(DType::kBF16, {T, Do});
    const ops::TileRows to = s.tiles(Do);
    return [&ctx, from, to] { ops::quantise_rows(ctx, from, {}, to); };
  });
  bench("dequantise_rows", {T, Do}, 3.0 * TO, [&](RowSet& s) -> Call {
    const Tensor to = s.random(DType::kBF16, {T, Do});
    const ops::TileRows from = s.tiles(Do);
    ops::quantise_rows(ctx, to, {}, from);
    return [&ctx, from, to] { ops::dequantise_rows(ctx, from, Tensor(to)); };
  });
  bench("quantise_columns", {T, Do}, 3.0 * TO, [&](RowSet& s) -> Call {
    const Tensor from = s.random(DType::kBF16, {T, Do});
    const ops::TileColumns to = s.columns(T / ops::kPageRows, Do);
    return [&ctx, from, to] { ops::quantise_columns(ctx, from, to); };
  });
  bench("grouped_quantise_columns", {T * K, D}, 2.0 * RD, [&](RowSet& s) -> Call {
    return [&ctx, &s] { ops::grouped_quantise_columns(ctx, s.layout, s.row_tiles, s.row_columns); };
  });
  bench("pack_e5m6", {T, Do}, 3.5 * TO, [&](RowSet& s) -> Call {
    const Tensor from = s.random(DType::kBF16, {T, Do});
    const Tensor words = s.take(DType::kI32, {T, ops::e5m6_words(Do)});
    const Tensor scale = s.take(DType::kF32, {T, ops::num_tiles(Do)});
    return [&ctx, from, words, scale] { ops::pack_e5m6(ctx, from, Tensor(words), Tensor(scale)); };
  });
  bench("unpack_e5m6", {T, Do}, 3.5 * TO, [&](RowSet& s) -> Call {
    const Tensor to = s.random(DType::kBF16, {T, Do});
    const Tensor words = s.take(DType::kI32, {T, ops::e5m6_words(Do)});
    const Tensor scale = s.take(DType::kF32, {T, ops::num_tiles(Do)});
    ops::pack_e5m6(ctx, to, Tensor(words), Tensor(scale));
    return [&ctx, to, words, scale] { ops::unpack_e5m6(ctx, words, scale, Tensor(to)); };
  });
  bench("swiglu_forward", {T, F}, 6.0 * TF, [&](RowSet& s) -> Call {
    const Tensor gate_up = s.random(DType::kBF16, {T, 2 * F}), y = s.take(DType::kBF16, {T, F});
    return [&ctx, gate_up, y] { ops::swiglu_forward(ctx, gate_up, Tensor(y)); };
  });
  bench("grouped_swiglu_forward_tiles", {T * K, F}, 7.0 * RF, [&](RowSet& s) -> Call {
    const ops::PagedRows gate_up = s.pages(DType::kBF16, P, 2 * F);
    const ops::PagedRows kept = s.tile_pages(P, 2 * F), y = s.tile_pages(P, F);
    return [&ctx, &s, gate_up, kept, y] {
      ops::grouped_swiglu_forward_tiles(ctx, s.layout, gate_up, s.row_weight, kept, y);
    };
  });
  bench("grouped_swiglu_backward_tiles", {T * K, F}, 12.0 * RF, [&](RowSet& s) -> Call {
    const ops::PagedRows kept = s.tile_pages(P, 2 * F), dy = s.pages(DType::kBF16, P, F);
    const ops::PagedRows dgate_up = s.pages(DType::kBF16, P, 2 * F);
    const ops::PagedRows dgate = s.tile_pages(P, F), dup = s.tile_pages(P, F);
    const ops::PagedRows y = s.pages(DType::kBF16, P, F);
    const Tensor dweight = s.take(DType::kF32, s.row_weight.shape());
    return [&ctx, &s, kept, dy, dgate_up, dgate, dup, y, dweight] {
      ops::grouped_swiglu_backward_tiles(ctx, s.layout, kept, s.row_weight, dy, {}, dgate_up, dgate,
                                         dup, y, Tensor(dweight));
    };
  });
  bench("scatter_rows", {T, K, D}, 2.0 * (TD + RD), [&](RowSet& s) -> Call {
    return [&ctx, &s] { ops::scatter_rows(ctx, s.x, s.row_of_choice, s.rows); };
  });
  bench("scatter_quantised_rows", {T, K, D}, 2.0 * TD + RD, [&](RowSet& s) -> Call {
    return [&ctx, &s] { ops::scatter_quantised_rows(ctx, s.x, s.row_of_choice, s.row_tiles); };
  });
  bench("combine_rows", {T, K, D}, 2.0 * (TD + RD), [&](RowSet& s) -> Call {
    return [&ctx, &s] { ops::combine_rows(ctx, s.rows, s.row_of_choice, s.y); };
  });
  const double chunk = n(kVocabularyChunk, V);
  const auto losses = [&](RowSet& s, bool backward) -> Call {
    const Tensor logits = s.random(DType::kF32, {kVocabularyChunk, V});
    const Tensor targets = s.take(DType::kI32, {kVocabularyChunk});
    upload(ctx, std::vector<int32_t>(kVocabularyChunk, 7), targets);
    const Tensor lse = s.take(DType::kF32, {kVocabularyChunk});
    const Tensor loss = s.take(DType::kF32, {kVocabularyChunk});
    ops::cross_entropy_forward(ctx, logits, targets, Tensor(lse), Tensor(loss));
    return [&ctx, logits, targets, lse, loss, backward] {
      if (backward)
        ops::cross_entropy_backward(ctx, logits, targets, lse, 1e-3, Tensor(logits));
      else
        ops::cross_entropy_forward(ctx, logits, targets, Tensor(lse), Tensor(loss));
    };
  };
  bench("cross_entropy_forward", {kVocabularyChunk, V}, 4.0 * chunk,
        [&](RowSet& s) { return losses(s, false); });
  bench("cross_entropy_backward", {kVocabularyChunk, V}, 8.0 * chunk,
        [&](RowSet& s) { return losses(s, true); });
  const Shape weight{8 * F, D};
  const auto count_of = static_cast<double>(weight.num_elements());
  for (const DType moment : {DType::kF32, DType::kBF16})
    bench(moment == DType::kF32 ? "adamw" : "adamw, bf16 moments", {8 * F, D},
          count_of * (12.0 + 4.0 * static_cast<double>(dtype_size(moment))),
          [&](RowSet& s) -> Call {
            const Tensor grad = s.random(DType::kF32, weight);
            Tensor w = s.random(DType::kF32, weight);
            Tensor m = s.random(moment, weight), v = s.take(moment, weight);
            ops::fill(ctx, 0.5, v);
            return [&ctx, grad, w, m, v]() mutable {
              ops::adamw(ctx, {1e-6, 0.9, 0.95, 1e-8, 0.1, 1, 1.0}, grad, w, m, v);
            };
          });
  bench("sum_squares_acc", {8 * F, D}, 4.0 * count_of, [&](RowSet& s) -> Call {
    const Tensor grad = s.random(DType::kF32, weight);
    Tensor total = s.take(DType::kF64, {1});
    ops::fill(ctx, 0.0, total);
    return [&ctx, grad, total]() mutable { ops::sum_squares_acc(ctx, grad, total); };
  });
  bench("fill", {8 * F, D}, 4.0 * count_of, [&](RowSet& s) -> Call {
    const Tensor w = s.take(DType::kF32, weight);
    return [&ctx, w] { ops::fill(ctx, 0.0, Tensor(w)); };
  });
}

}  // namespace hadal::cli
