// The gate, the balance loss and the movement of rows on CUDA against the CPU's.
//
//   T tokens   E experts   G groups   K choices of a token   D width
// SPDX-License-Identifier: Apache-2.0
#include "ops/routing.h"

#include "tests/ops_cuda/twin.h"

namespace hadal::test {
namespace {

struct Case {
  int64_t T, E, G, topk_group, K;
};
constexpr Case kCases[] = {
    {0, 8, 1, 1, 2}, {1, 8, 4, 2, 3}, {37, 16, 4, 2, 4}, {130, 7, 1, 1, 7}, {70, 256, 8, 4, 8}};

ops::GateRule rule_of(const Case& c, ops::Scoring scoring) {
  return {.n_group = c.G,
          .topk_group = c.topk_group,
          .num_experts_per_tok = c.K,
          .scoring = scoring,
          .group_score = scoring == ops::Scoring::kSigmoid ? ops::GroupScore::kTopTwoSum
                                                           : ops::GroupScore::kMax,
          .norm_topk_prob = scoring == ops::Scoring::kSigmoid,
          .routed_scaling_factor = 2.5};
}

// Two sequences, the first a third of the tokens.
Packed two_sequences(Side& s, int64_t T) {
  Packed seq;
  seq.num_tokens = seq.max_len = T;
  seq.num_seqs = 2;
  seq.offsets = s.list({0, static_cast<int32_t>(T / 3), static_cast<int32_t>(T)});
  return seq;
}

TEST(OpsCuda, Gate) {
  for (DType type : {DType::kF64, DType::kF32})
    for (const Case& c : kCases)
      for (ops::Scoring scoring : {ops::Scoring::kSigmoid, ops::Scoring::kSoftmax})
        expect_twins(
            concat("gate ", dtype_name(type), " ", c.T, " ", c.E),
            [&](Side& s) {
              const ops::GateRule rule = rule_of(c, scoring);
              const Packed seq = two_sequences(s, c.T);
              const Tensor logits = s.random("logits", type, {c.T, c.E});
              const Tensor bias = s.random("bias", type, {c.E}, 0.3);
              const Tensor scores = s.out(type, {c.T, c.E}), weight = s.out(type, {c.T, c.K});
              const Tensor idx = s.out(DType::kI32, {c.T, c.K}), dlogits = s.out(type, {c.T, c.E});
              const Tensor dweight = s.random("dweight", type, {c.T, c.K});
              const Tensor loss = s.out(type, {2}), fraction = s.out(type, {2, c.E});
              ops::gate_forward(s.ctx, rule, logits, bias, Tensor(scores), Tensor(idx),
                                Tensor(weight));
              ops::gate_backward(s.ctx, rule, scores, idx, dweight, Tensor(dlogits));
              ops::balance_loss_forward(s.ctx, rule, seq, scores, Tensor(loss), Tensor(fraction));
              ops::balance_loss_backward(s.ctx, rule, seq, 0.7, scores, fraction, Tensor(dlogits));
              return std::vector<Tensor>{scores, idx, weight, loss, fraction, dlogits};
            },
            type == DType::kF64 ? 64.0 : 0.0);
}

TEST(OpsCuda, LayoutAndRows) {
  for (DType type : kTypes)
    for (const Case& c : kCases)
      expect_twins(concat("rows ", dtype_name(type), " ", c.T, " ", c.E), [&](Side& s) {
        // Of two cases one has rows that are read 16 bytes at a time.
        const int64_t D = c.T % 2 == 0 ? 64 : 19, P = ops::max_pages(c.T * c.K, c.E), slots = P + 3;
        // Expert 1 gets nothing.
        const Rng rng(5, 5);
        const Tensor idx = s.make(DType::kI32, {c.T, c.K}, [&](int64_t i) {
          const auto e =
              static_cast<int64_t>(rng.u64(static_cast<uint64_t>(i)) % static_cast<uint64_t>(c.E));
          return static_cast<double>(e == 1 ? 0 : e);
        });
        const ops::ExpertLayout layout{s.out(DType::kI32, {c.E}), s.out(DType::kI32, {c.E + 1})};
        const Tensor row = s.out(DType::kI32, {c.T, c.K}), page = s.out(DType::kI32, {P});
        const Tensor counts = s.make(DType::kI64, {c.E}, [](int64_t i) { return double(i); });
        Tensor bias = s.random("bias", stat_dtype(type), {c.E});
        const ops::PageStack stack{
            s.make(DType::kI32, {slots}, [&](int64_t i) { return double(slots - 1 - i); }),
            s.make(DType::kI32, {1}, [&](int64_t) { return double(slots); })};
        ops::count_choices(s.ctx, idx, Acc(Tensor(counts)));
        ops::bias_update(s.ctx, counts, 1e-3, bias);
        ops::expert_layout(s.ctx, idx, layout, Tensor(row));
        ops::take_pages(s.ctx, layout, stack, Tensor(page));
        const ops::PagedRows rows{s.out(type, {slots, ops::kPageRows, D}), page};
        const Tensor x = s.random("x", type, {c.T, D}), y = s.out(type, {c.T, D + 8});
        ops::scatter_rows(s.ctx, x, row, rows);
        ops::combine_rows(s.ctx, rows, row, y.cols(0, D));
        const DType stat = stat_dtype(type);
        const Tensor value = s.random("value", stat, {c.T, c.K}), back = s.out(stat, {c.T, c.K});
        const Tensor row_value = s.out(stat, {P * ops::kPageRows});
        ops::scatter_choices(s.ctx, value, row, Tensor(row_value));
        ops::gather_choices(s.ctx, row_value, row, Tensor(back));
        const Tensor taken = s.out(DType::kI32, {1});
        upload(s.ctx, download<int32_t>(s.ctx, stack.count), taken);
        ops::give_back_pages(s.ctx, layout, stack, page);
        return std::vector<Tensor>{layout.counts, layout.page_begin, row,       page, counts,
                                   bias,          rows.slab,         y,         back, row_value,
                                   taken,         stack.count,       stack.free};
      });
}

// The choices of a rank that has some of the experts: the others bring nothing and get nothing.
TEST(OpsCuda, ChoicesOfOthersAreLeftOut) {
  for (DType type : kTypes)
    for (const Case& c : kCases)
      expect_twins(concat("some experts ", dtype_name(type), " ", c.T, " ", c.E), [&](Side& s) {
        const int64_t D = c.T % 2 == 0 ? 64 : 19, first = c.E / 3, here = c.E / 2;
        const int64_t P = std::max<int64_t>(1, ops::max_pages(c.T * std::min(c.K, here), here));
        // Each token's choices differ, as a gate's do.
        const Tensor idx = s.make(DType::kI32, {c.T, c.K}, [&](int64_t i) {
          return static_cast<double>((i / c.K * 5 + i % c.K * (c.E / c.K)) % c.E);
        });
        const Tensor choices = s.out(DType::kI32, {c.T, c.K}), row = s.out(DType::kI32, {c.T, c.K});
        const ops::ExpertLayout layout{s.out(DType::kI32, {here}), s.out(DType::kI32, {here + 1})};
        ops::choices_here(s.ctx, idx, first, here, Tensor(choices));
        ops::expert_layout(s.ctx, choices, layout, Tensor(row));
        const ops::PagedRows rows{s.out(type, {P, ops::kPageRows, D}), Tensor()};
        const Tensor x = s.random("x", type, {c.T, D}), y = s.out(type, {c.T, D});
        ops::scatter_rows(s.ctx, x, row, rows);
        ops::combine_rows(s.ctx, rows, row, Tensor(y));
        const DType stat = stat_dtype(type);
        const Tensor value = s.random("value", stat, {c.T, c.K}), back = s.out(stat, {c.T, c.K});
        const Tensor row_value = s.out(stat, {P * ops::kPageRows});
        ops::scatter_choices(s.ctx, value, row, Tensor(row_value));
        ops::gather_choices(s.ctx, row_value, row, Tensor(back));
        return std::vector<Tensor>{choices,   layout.counts, layout.page_begin, row, rows.slab, y,
                                   row_value, back};
      });
}

// A pool that counts what is missing: 2 pages of 7, 0 of them, and all.
TEST(OpsCuda, MissingPagesAreCounted) {
  for (const int64_t have : {0, 5, 7, 9})
    expect_twins(concat("missing pages, of 7 there are ", have), [&](Side& s) {
      const ops::ExpertLayout layout{s.list({300, 0, 400}), s.list({0, 3, 3, 7})};
      const int64_t slots = std::max<int64_t>(have, 1);
      const ops::PageStack stack{
          s.make(DType::kI32, {slots}, [&](int64_t i) { return double(slots - 1 - i); }),
          s.make(DType::kI32, {1}, [&](int64_t) { return double(have); }),
          s.make(DType::kI64, {1}, [](int64_t) { return 3.0; })};
      const Tensor page = s.out(DType::kI32, {8}), taken = s.out(DType::kI32, {1});
      ops::take_pages(s.ctx, layout, stack, Tensor(page));
      upload(s.ctx, download<int32_t>(s.ctx, stack.count), taken);
      ops::give_back_pages(s.ctx, layout, stack, page);
      return std::vector<Tensor>{page, taken, stack.count, stack.free, stack.missing};
    });
}

TEST(OpsCuda, PoolWithoutPagesIsAnError) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU";
  Side s({DeviceKind::kCuda, 0});
  const ops::ExpertLayout layout{s.list({200}), s.list({0, 2})};
  const ops::PageStack stack{s.list({0}), s.list({1})};
  const Tensor page = s.list({0, 0});
  ops::take_pages(s.ctx, layout, stack, Tensor(page));
  try {
    device::synchronize(s.ctx.device, s.ctx.stream);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()).find("the experts need 2 pages of 128 rows, but only 1 are"),
              0u)
        << e.what();
  }
  ops::give_back_pages(s.ctx, layout, stack, page);  // nothing was taken
  EXPECT_EQ(download<int32_t>(s.ctx, stack.count)[0], 1);
}

}  // namespace
}  // namespace hadal::test
