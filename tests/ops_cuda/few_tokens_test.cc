// The fused ops for a few tokens on CUDA against the CPU's.
//
//   T tokens   D model width   F hidden width   K choices   H heads   R latent width   Dr rope
//   width
// SPDX-License-Identifier: Apache-2.0
#include "ops/few_tokens.h"

#include "tests/ops_cuda/twin.h"

namespace hadal::test {
namespace {

// Hidden rows are rounded to bf16 on both sides, but from sums in different orders.
constexpr double kHiddenRoundings = 4.0;

TEST(OpsCuda, MoeOfFewTokens) {
  for (DType weight : {DType::kBF16, DType::kE4M3})
    for (int64_t K : {0, 3})
      for (int64_t T : {1, 5})
        expect_twins(
            concat("moe of few ", dtype_name(weight), " ", K, " choices of ", T),
            [&](Side& s) {
              const int64_t D = 272, F = 144, Fs = 304, E = 6, blocks = 3;
              const double size = 0.2;
              const auto matrices = [&](const std::string& name, int64_t count, int64_t rows,
                                        int64_t cols) {
                const Tensor data = s.random(name, weight, {count, rows, cols}, size);
                const Tensor scale =
                    s.random(name + " scale", DType::kF32, {count, blocks, blocks});
                std::vector<Operand> list;
                for (int64_t e = 0; e < count; ++e)
                  list.push_back(weight == DType::kE4M3 ? Operand(data.row(e), scale.row(e))
                                                        : Operand(data.row(e)));
                return list;
              };
              const auto w1 = matrices("w1", E, F, D), w3 = matrices("w3", E, F, D);
              const auto w2 = matrices("w2", E, D, F);
              const ops::MoeWeights w{.w1 = w1,
                                      .w3 = w3,
                                      .w2 = w2,
                                      .shared_w1 = matrices("s1", 1, Fs, D)[0],
                                      .shared_w3 = matrices("s3", 1, Fs, D)[0],
                                      .shared_w2 = matrices("s2", 1, D, Fs)[0]};
              const Tensor x = s.random("x", DType::kBF16, {T, D});
              const Tensor idx = s.integers("idx", {T, K}, E);
              const Tensor choice_weight = s.random("weight", DType::kF32, {T, K});
              Tensor y = s.random("y", DType::kF32, {T, D});
              bool pays = false;
              s.ctx.numerics = Numerics::kFastest;
              ops::moe_of_few_pays(s.ctx, w, x, &pays);
              EXPECT_EQ(pays, s.ctx.device.kind == DeviceKind::kCuda);
              ops::moe_of_few(s.ctx, w, x, idx, choice_weight, y);
              return std::vector<Tensor>{y};
            },
            kHiddenRoundings * 0x1p-9 / 0x1p-24);
}

// Two ranks with three experts each, of which the first has the shared one as well, are one rank.
TEST(OpsCuda, MoeOfFewTokensOnTwoRanks) {
  for (int64_t T : {1, 5})
    expect_twins(
        concat("moe of few on two ranks, ", T),
        [&](Side& s) {
          const int64_t D = 272, F = 144, Fs = 304, E = 6, K = 3;
          const auto matrices = [&](const std::string& name, int64_t count, int64_t rows,
                                    int64_t cols) {
            const Tensor data = s.random(name, DType::kBF16, {count, rows, cols}, 0.2);
            std::vector<Operand> list;
            for (int64_t e = 0; e < count; ++e) list.emplace_back(data.row(e));
            return list;
          };
          const auto w1 = matrices("w1", E, F, D), w3 = matrices("w3", E, F, D);
          const auto w2 = matrices("w2", E, D, F);
          ops::MoeWeights whole{.w1 = w1,
                                .w3 = w3,
                                .w2 = w2,
                                .shared_w1 = matrices("s1", 1, Fs, D)[0],
                                .shared_w3 = matrices("s3", 1, Fs, D)[0],
                                .shared_w2 = matrices("s2", 1, D, Fs)[0]};
          const Tensor x = s.random("x", DType::kBF16, {T, D});
          const Tensor idx = s.integers("idx", {T, K}, E);
          const Tensor weight = s.random("weight", DType::kF32, {T, K});
          std::vector<Tensor> y;
          for (int r = 0; r < 2; ++r) y.push_back(s.random("y", DType::kF32, {T, D}));
          s.ctx.numerics = Numerics::kFastest;
          if (s.ctx.device.kind == DeviceKind::kCpu) {
            for (Tensor& to : y) ops::moe_of_few(s.ctx, whole, x, idx, weight, to);
            return y;
          }
          const int64_t lines = T * D;
          std::vector<Tensor> windows;
          for (int r = 0; r < 2; ++r)
            windows.push_back(s.make(DType::kI32, {ops::peer_sums_bytes(2, lines) / 4},
                                     [](int64_t) { return 0.0; }));
          run_ranks(s, 2, [&](int r, Context& ctx) {
            const ops::PeerSums sums{
                .view = {.place = r, .size = 2, .window = {windows[0].raw(), windows[1].raw()}},
                .lines = lines};
            const auto run = [&](const std::vector<Operand>& w) {
              return std::span<const Operand>(w).subspan(static_cast<size_t>(3 * r), 3);
            };
            ops::MoeWeights w = r == 0 ? whole : ops::MoeWeights{};
            w.w1 = run(w1);
            w.w3 = run(w3);
            w.w2 = run(w2);
            w.first_expert = int64_t{3} * r;
            w.sums = &sums;
            bool pays = false;
            ops::moe_of_few_pays(ctx, w, x, &pays);
            EXPECT_TRUE(pays);
            ops::moe_of_few(ctx, w, x, idx, weight, Tensor(y[static_cast<size_t>(r)]));
          });
          return y;
        },
        kHiddenRoundings * 0x1p-9 / 0x1p-24);
}

TEST(OpsCuda, LatentInputs) {
  for (DType type : kTypes)
    for (ops::RopeLayout layout : {ops::RopeLayout::kInterleaved, ops::RopeLayout::kHalves})
      expect_twins(
          concat("latent inputs ", dtype_name(type)),
          [&](Side& s) {
            const int64_t T = 3, H = 2, R = 40, Dr = 6, W = R + Dr;
            Packed seq;
            seq.num_tokens = T;
            seq.num_seqs = 2;
            seq.max_len = 2;
            seq.offsets = s.list({0, 2, 3});
            seq.positions = s.list({63, 64, 5});
            seq.rope = s.random("rope", stat_dtype(type), {T, Dr});
            const Tensor pages = s.random("pages", type, {4, ops::kCachePageTokens, W});
            const ops::LatentPages cache{pages, s.list({2, 0, 3, -1}).view({2, 2})};
            const ops::LatentNorm norm{layout, 1e-6, s.random("gain", type, {R})};
            const Tensor kv = s.random("kv", type, {T, W + 2}).cols(0, W);
            const Tensor q = s.random("q", type, {T, H, 10 + Dr});
            const Tensor out = s.out(type, {T, H, Dr + 4});
            ops::latent_inputs(s.ctx, seq, norm, kv, q.cols(10, Dr), cache, out.cols(4, Dr));
            return std::vector<Tensor>{pages, out};
          },
          4.0);
}

// Latents of magnitude one have their norm exactly, so that FP8 rows have the same bits on both.
TEST(OpsCuda, LatentInputsOfAnFp8Cache) {
  for (DType type : kTypes)
    for (ops::RopeLayout layout : {ops::RopeLayout::kInterleaved, ops::RopeLayout::kHalves})
      for (int64_t R : {40, 512}) {
        expect_twins(concat("latent inputs ", dtype_name(type), " of ", R), [&](Side& s) {
          const int64_t T = 3, H = 2, Dr = 6, W = R + Dr;
          const ops::Fp8LatentRow row{R, Dr};
          Packed seq;
          seq.num_tokens = T;
          seq.num_seqs = 2;
          seq.max_len = 2;
          seq.offsets = s.list({0, 2, 3});
          seq.positions = s.list({63, 64, 5});
          seq.rope = s.random("rope", stat_dtype(type), {T, Dr});
          const Tensor pages = s.out(DType::kE4M3, {4, ops::kCachePageTokens, row.bytes()});
          const ops::LatentPages cache{pages, s.list({2, 0, 3, -1}).view({2, 2}), row};
          const ops::LatentNorm norm{layout, 0.0, s.random("gain", type, {R})};
          const Rng rng(33, stream_id("signs"));
          const Tensor kv = s.make(type, {T, W}, [&](int64_t i) {
            return (rng.u64(static_cast<uint64_t>(i)) & 1) != 0 ? 1.0 : -1.0;
          });
          const Tensor q = s.random("q", type, {T, H, Dr}), out = s.out(type, {T, H, Dr});
          ops::latent_inputs(s.ctx, seq, norm, kv, q, cache, Tensor(out));
          return std::vector<Tensor>{
              Tensor(pages.raw(), DType::kI32, {4, ops::kCachePageTokens, row.bytes() / 4}), out};
        });
      }
}

}  // namespace
}  // namespace hadal::test
