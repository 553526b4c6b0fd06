// Element-wise and row-wise ops on CUDA against the CPU's.
//
//   T rows   D width   V vocabulary   F hidden width
// SPDX-License-Identifier: Apache-2.0
#include "ops/activation.h"
#include "ops/copy.h"
#include "ops/loss.h"
#include "ops/norm.h"
#include "ops/optim.h"
#include "ops/paced_copy.h"
#include "ops/quant.h"
#include "ops/rope.h"
#include "tests/ops_cuda/twin.h"

namespace hadal::test {
namespace {

TEST(OpsCuda, PacedCopy) {
  for (const int64_t n : {0, 4, 4 * 4096 * 3, 1000004})
    expect_twins(concat("paced copy ", n), [&](Side& s) {
      const Tensor y = s.out(DType::kF32, {n});
      ops::paced_copy(s.ctx, 1e12, 3, s.random("x", DType::kF32, {n}), Tensor(y));
      return std::vector<Tensor>{y};
    });
}

const int64_t kRows[][2] = {{0, 5}, {1, 1}, {3, 33}, {70, 7}, {17, 300}};

TEST(OpsCuda, Copy) {
  const DType all[] = {DType::kF64, DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3};
  for (DType from : all)
    for (DType to : all)
      for (const auto& [T, D] : kRows)
        expect_twins(concat("cast ", dtype_name(from), " to ", dtype_name(to)), [&](Side& s) {
          const Tensor x = s.random("x", from, {T, D}, 9.0), y = s.out(to, {T, D + 2});
          ops::cast(s.ctx, x, y.cols(1, D));
          return std::vector<Tensor>{y};
        });
  for (DType type : kTypes)
    for (const auto& [T, D] : kRows)
      expect_twins(concat("copy ", dtype_name(type), " ", T, " ", D), [&](Side& s) {
        const Tensor a = s.random("a", type, {T, D + 1}).cols(0, D),
                     b = s.random("b", type, {T, D});
        Tensor c = s.out(type, {T, D}), d = s.random("d", stat_dtype(type), {T, D});
        Tensor filled = s.out(type, {T, D + 1}), ones = s.out(DType::kI64, {D});
        ops::add(s.ctx, a, b, c);
        ops::add_acc(s.ctx, a, d);
        ops::fill(s.ctx, 0.3, filled.cols(0, D));
        ops::fill(s.ctx, 1.0, ones);
        const int64_t V = 11;
        const Tensor ids = s.integers("ids", {T}, V);
        const Tensor table = s.random("table", type, {V, D}), x = s.out(type, {T, D});
        Tensor dtable = s.random("dtable", stat_dtype(type), {V, D});
        ops::embed_forward(s.ctx, table, ids, Tensor(x));
        ops::embed_backward_acc(s.ctx, a, ids, dtable);
        return std::vector<Tensor>{c, d, filled, ones, x, dtable};
      });
}

TEST(OpsCuda, TokenOutsideTheVocabularyIsAnError) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU";
  Side s({DeviceKind::kCuda, 0});
  const Tensor table = s.random("table", DType::kF32, {4, 2}), x = s.out(DType::kF32, {2, 2});
  ops::embed_forward(s.ctx, table, s.list({1, 9}), Tensor(x));
  try {
    static_cast<void>(download<float>(s.ctx, x));
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "token id 9 at position 1 is outside the vocabulary of 4 ids");
  }
}

TEST(OpsCuda, Norm) {
  for (DType type : kTypes)
    for (const auto& [T, D] : kRows)
      expect_twins(concat("norm ", dtype_name(type), " ", T, " ", D), [&](Side& s) {
        const DType stat = stat_dtype(type);
        const Tensor x = s.random("x", type, {T, D + 3}).cols(2, D),
                     gain = s.random("g", stat, {D});
        const Tensor dy = s.random("dy", type, {T, D});
        const Tensor y = s.out(type, {T, D}), again = s.out(type, {T, D}), rstd = s.out(stat, {T});
        const Tensor dx = s.out(type, {T, D + 1}), dgain = s.out(stat, {D});
        ops::rmsnorm_forward(s.ctx, x, gain, 1e-6, Tensor(y), Tensor(rstd));
        ops::rmsnorm_recompute(s.ctx, x, gain, rstd, Tensor(again));
        ops::rmsnorm_backward(s.ctx, x, gain, rstd, dy, dx.cols(0, D), Tensor(dgain));
        return std::vector<Tensor>{y, again, rstd, dx, dgain};
      });
}

TEST(OpsCuda, Rope) {
  for (DType type : kTypes)
    for (int64_t T : {0, 1, 40})
      expect_twins(
          concat("rope ", dtype_name(type), " ", T),
          [&](Side& s) {
            const int64_t H = 3, Dr = 10;
            const Tensor freq =
                s.make(DType::kF64, {Dr / 2}, [](int64_t i) { return 1.0 / (1 + double(i)); });
            const Tensor table = s.out(stat_dtype(type), {T, Dr});
            const Tensor x = s.random("x", type, {T, H, Dr + 4});
            ops::rope_table(s.ctx, s.integers("p", {T}, 5000), freq, 1.2, Tensor(table));
            ops::rope_apply(s.ctx, ops::RopeLayout::kInterleaved, ops::RopeDirection::kForward,
                            table, x.cols(4, Dr));
            ops::rope_apply(s.ctx, ops::RopeLayout::kHalves, ops::RopeDirection::kBackward, table,
                            x.cols(4, Dr));
            return std::vector<Tensor>{table, x};
          },
          8.0);
}

TEST(OpsCuda, Swiglu) {
  for (DType type : kTypes)
    for (const auto& [T, F] : kRows)
      expect_twins(
          concat("swiglu ", dtype_name(type), " ", T, " ", F),
          [&](Side& s) {
            const Tensor gate_up = s.random("gate_up", type, {T, 2 * F}, 3.0);
            const Tensor dy = s.random("dy", type, {T, F}), y = s.out(type, {T, F});
            const Tensor dgate_up = s.out(type, {T, 2 * F}), again = s.out(type, {T, F});
            ops::swiglu_forward(s.ctx, gate_up, Tensor(y));
            ops::swiglu_backward(s.ctx, gate_up, dy, Tensor(dgate_up), Tensor(again));
            return std::vector<Tensor>{y, dgate_up, again};
          },
          type == DType::kF64 ? 8.0 : 0.0);
}

TEST(OpsCuda, GroupedSwiglu) {
  for (DType type : kTypes)
    for (int64_t F : {21, 64, 1040})
      expect_twins(
          concat("grouped swiglu ", dtype_name(type), " ", F),
          [&](Side& s) {
            const int64_t P = 4, rows = ops::kPageRows;
            const ops::ExpertLayout layout{s.list({130, 0, 3}), s.list({0, 2, 2, 3})};
            const ops::PagedRows gate_up{s.random("gu", type, {6, rows, 2 * F}),
                                         s.list({5, 2, 0, 1})};
            const ops::PagedRows dy{s.random("dy", type, {P, rows, F}), Tensor()};
            const Tensor weight = s.random("w", stat_dtype(type), {P * rows});
            const Tensor dweight = s.out(stat_dtype(type), {P * rows});
            const Tensor y = s.out(type, {P, rows, F}), again = s.out(type, {P, rows, F});
            const Tensor dgate_up = s.out(type, {P, rows, 2 * F});
            ops::grouped_swiglu_forward(s.ctx, layout, gate_up, weight, {y, Tensor()});
            ops::grouped_swiglu_backward(s.ctx, layout, gate_up, weight, dy, {dgate_up, Tensor()},
                                         {again, Tensor()}, Tensor(dweight));
            return std::vector<Tensor>{y, dgate_up, again, dweight};
          },
          type == DType::kF64              ? 64.0
          : type == DType::kBF16 && F > 21 ? 16.0
                                           : 0.0);
}

TEST(OpsCuda, CrossEntropy) {
  for (DType type : kTypes)
    for (const auto& [T, V] : kRows)
      expect_twins(
          concat("loss ", dtype_name(type), " ", T, " ", V),
          [&](Side& s) {
            const DType stat = stat_dtype(type);
            const Tensor logits = s.random("logits", type, {T, V}, 4.0);
            const Tensor targets = s.make(DType::kI32, {T}, [&](int64_t i) {
              return i % 5 == 2 ? -1.0 : static_cast<double>(i * 7 % V);
            });
            const Tensor lse = s.out(stat, {T}), loss = s.out(stat, {T});
            const Tensor total = s.make(DType::kF64, {1}, [](int64_t) { return 0.5; });
            ops::cross_entropy_forward(s.ctx, logits, targets, Tensor(lse), Tensor(loss));
            ops::cross_entropy_backward(s.ctx, logits, targets, lse, 0.25, Tensor(logits));
            ops::sum_acc(s.ctx, loss, Acc(Tensor(total)));
            const Tensor as_f32 = s.out(DType::kF32, {1});
            ops::cast(s.ctx, total, Tensor(as_f32));
            return std::vector<Tensor>{lse, loss, logits, as_f32};
          },
          64.0);
}

// Rows that a thread block takes; the gradient in place and in bf16.
TEST(OpsCuda, CrossEntropyOfLongRows) {
  expect_twins(
      "cross-entropy of long rows",
      [&](Side& s) {
        const int64_t T = 5, V = 4100;
        const Tensor logits = s.random("logits", DType::kF32, {T, V + 4}, 4.0).cols(0, V);
        const Tensor targets = s.list({0, -1, 4099, 7, 2048});
        const Tensor lse = s.out(DType::kF32, {T}), loss = s.out(DType::kF32, {T});
        const Tensor d16 = s.out(DType::kBF16, {T, V}), d32 = s.out(DType::kF32, {T, V});
        ops::cross_entropy_forward(s.ctx, logits, targets, Tensor(lse), Tensor(loss));
        ops::cross_entropy_backward(s.ctx, logits, targets, lse, 0.25, Tensor(d16));
        ops::cross_entropy_backward(s.ctx, logits, targets, lse, 0.25, Tensor(d32));
        return std::vector<Tensor>{lse, loss, d16, d32};
      },
      64.0);
}

// Widths that are read 16 bytes at a time.
TEST(OpsCuda, WideRowsOfBf16) {
  for (int64_t D : {int64_t{64}, int64_t{264}, int64_t{2048}})
    expect_twins(
        concat("wide rows ", D),
        [&](Side& s) {
          const int64_t T = 9;
          const DType type = DType::kBF16;
          const Tensor x = s.random("x", type, {T, D + 8}).cols(8, D);
          const Tensor dy = s.random("dy", type, {T, D});
          const Tensor gain = s.random("gain", DType::kF32, {D});
          const Tensor y = s.out(type, {T, D}), again = s.out(type, {T, D});
          const Tensor rstd = s.out(DType::kF32, {T});
          const Tensor dx = s.out(type, {T, D}), dgain = s.out(DType::kF32, {D});
          ops::rmsnorm_forward(s.ctx, x, gain, 1e-6, Tensor(y), Tensor(rstd));
          ops::rmsnorm_recompute(s.ctx, x, gain, rstd, Tensor(again));
          ops::rmsnorm_backward(s.ctx, x, gain, rstd, dy, Tensor(dx), Tensor(dgain));
          const Tensor gate_up = s.random("gate_up", type, {T, 2 * D});
          const Tensor h = s.out(type, {T, D}), h2 = s.out(type, {T, D});
          const Tensor dgate_up = s.out(type, {T, 2 * D});
          ops::swiglu_forward(s.ctx, gate_up, Tensor(h));
          ops::swiglu_backward(s.ctx, gate_up, dy, Tensor(dgate_up), Tensor(h2));
          Tensor sum = s.random("sum", type, {T, D});
          ops::add_acc(s.ctx, dy, sum);
          const Tensor wide = s.out(DType::kF32, {T, D});
          ops::cast(s.ctx, sum, Tensor(wide));
          return std::vector<Tensor>{y, again, rstd, dx, dgain, h, h2, dgate_up, sum, wide};
        },
        16.0);
}

TEST(OpsCuda, Optimizer) {
  for (DType type : {DType::kF64, DType::kF32})
    for (int64_t n : {0, 1, 4096, 10001})
      expect_twins(concat("adamw ", dtype_name(type), " ", n), [&](Side& s) {
        const Tensor grad = s.random("grad", type, {n});
        Tensor param = s.random("param", type, {n}), m = s.random("m", type, {n}, 0.1);
        Tensor v = s.make(type, {n}, [](int64_t i) { return 0.01 * double(i % 13); });
        Tensor m16 = s.random("m", DType::kBF16, {n}, 0.1), p16 = s.random("param", type, {n});
        Tensor total = s.make(DType::kF64, {1}, [](int64_t) { return 2.0; });
        const ops::AdamW rule{.lr = 1e-3,
                              .beta1 = 0.9,
                              .beta2 = 0.95,
                              .eps = 1e-8,
                              .weight_decay = 0.1,
                              .step = 7,
                              .grad_scale = 0.5};
        ops::adamw(s.ctx, rule, grad, param, m, v);
        ops::adamw(s.ctx, rule, grad, p16, m16, v);
        ops::sum_squares_acc(s.ctx, grad, total);
        Tensor average = s.random("average", type, {n});
        ops::ema_update(s.ctx, 0.99, param, average);
        return std::vector<Tensor>{param, m, v, p16, m16, total, average};
      });
}

TEST(OpsCuda, BlockFp8) {
  for (DType type : {DType::kF32, DType::kBF16})
    for (ops::ScaleFormat format : {ops::ScaleFormat::kF32, ops::ScaleFormat::kPowerOfTwo})
      for (const auto& [N, K] : {std::pair<int64_t, int64_t>{1, 1}, {128, 128}, {200, 300}})
        expect_twins(concat("fp8 ", dtype_name(type), " ", N, " ", K), [&](Side& s) {
          const Tensor w = s.random("w", type, {N, K}, 0.02), q = s.out(DType::kE4M3, {N, K});
          const Tensor scale = s.out(DType::kF32, {(N + 127) / 128, (K + 127) / 128});
          const Tensor y = s.out(type, {N, K});
          ops::quantise_blocks(s.ctx, w, format, Tensor(q), Tensor(scale));
          ops::dequantise_blocks(s.ctx, Operand(q, scale), Tensor(y));
          return std::vector<Tensor>{q, scale, y};
        });
}

}  // namespace
}  // namespace hadal::test
