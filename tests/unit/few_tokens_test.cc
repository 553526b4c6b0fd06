// The fused ops for a few tokens: against plain loops, and against their parts bit for bit.
//
//   T tokens   D model width   F hidden width   K choices   H heads   R latent width   Dr rope
//   width
// SPDX-License-Identifier: Apache-2.0
#include "ops/few_tokens.h"

#include "ops/copy.h"
#include "ops/norm.h"
#include "tests/unit/ops.h"

namespace hadal::test {
namespace {

constexpr int64_t kD = 7, kF = 5, kFs = 9, kE = 4;

struct Mlp {
  Array<double> w1, w3, w2;
};
Mlp random_mlp(const std::string& name, int64_t F, DType dtype) {
  return {random_in(name + "1", {F, kD}, dtype), random_in(name + "3", {F, kD}, dtype),
          random_in(name + "2", {kD, F}, dtype)};
}

// y[t] += weight * w2 swiglu(w1 x, w3 x)
void add_mlp(const Mlp& w, const Array<double>& x, int64_t t, double weight, Array<double>& y) {
  for (int64_t f = 0; f < w.w1.shape[0]; ++f) {
    double gate = 0, up = 0;
    for (int64_t d = 0; d < kD; ++d) {
      gate += w.w1(f, d) * x(t, d);
      up += w.w3(f, d) * x(t, d);
    }
    const double hidden = weight * gate / (1.0 + std::exp(-gate)) * up;
    for (int64_t d = 0; d < kD; ++d) y(t, d) += w.w2(d, f) * hidden;
  }
}

TEST(FewTokens, MoeIsTheSumOfItsExperts) {
  for (DType dtype : kOpTypes)
    for (int64_t K : {0, 2}) {
      const int64_t T = 3;
      Machine machine(2);
      std::vector<Mlp> experts;
      std::vector<Operand> w1, w3, w2;
      for (int64_t e = 0; e < kE; ++e) {
        experts.push_back(random_mlp(concat("expert", e), kF, dtype));
        w1.emplace_back(machine.put(experts.back().w1, dtype));
        w3.emplace_back(machine.put(experts.back().w3, dtype));
        w2.emplace_back(machine.put(experts.back().w2, dtype));
      }
      const Mlp shared = random_mlp("shared", kFs, dtype);
      const ops::MoeWeights w{.w1 = w1,
                              .w3 = w3,
                              .w2 = w2,
                              .shared_w1 = machine.put(shared.w1, dtype),
                              .shared_w3 = machine.put(shared.w3, dtype),
                              .shared_w2 = machine.put(shared.w2, dtype)};
      const Array<double> x = random_in("x", {T, kD}, dtype);
      const Array<double> weight = random_in("weight", {T, K}, stat_dtype(dtype));
      const std::vector<int32_t> choices = {3, 0, 1, 2, 0, 1};
      const std::vector<int32_t> used(choices.begin(), choices.begin() + T * K);
      Array<double> want = random_in("y", {T, kD}, dtype);
      Tensor y = machine.put(want, dtype);
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t k = 0; k < K; ++k)
          add_mlp(experts[static_cast<size_t>(used[static_cast<size_t>(t * K + k)])], x, t,
                  weight(t, k), want);
        add_mlp(shared, x, t, 1.0, want);
      }
      bool pays = true;
      ops::moe_of_few_pays(machine.ctx, w, machine.put(x, dtype), &pays);
      EXPECT_FALSE(pays);
      ops::moe_of_few(machine.ctx, w, machine.put(x, dtype), machine.put(used, {T, K}),
                      machine.put(weight, stat_dtype(dtype)), y);
      double largest = 0;
      for (double v : want.data) largest = std::max(largest, std::fabs(v));
      // Hidden rows are rounded to the type of x on the way.
      expect_close(concat("moe in ", dtype_name(dtype)), y, machine.put(want, DType::kF64),
                   op_bound(dtype, 200, largest) + 40 * unit_roundoff(dtype) * largest);
    }
}

TEST(FewTokens, MoeRefusesWhatDoesNotFit) {
  Machine machine(2);
  const std::vector<Operand> w1(2, Operand(machine.tensor(DType::kF32, {kF, kD}))), w3 = w1;
  const std::vector<Operand> w2(2, Operand(machine.tensor(DType::kF32, {kD, kF})));
  const auto with = [&](const std::vector<Operand>& down) {
    ops::MoeWeights w;
    w.w1 = w1;
    w.w3 = w3;
    w.w2 = down;
    return w;
  };
  const Tensor x = machine.put(random_in("x", {1, kD}, DType::kF32), DType::kF32);
  Tensor y = machine.tensor(DType::kF32, {1, kD});
  const Tensor weight = machine.put(random_in("w", {1, 1}, DType::kF32), DType::kF32);
  const Tensor first = machine.put(std::vector<int32_t>{0}, {1, 1});
  const Tensor outside = machine.put(std::vector<int32_t>{2}, {1, 1});
  EXPECT_ERROR(ops::moe_of_few(machine.ctx, with(w1), x, first, weight, y),
               "moe_of_few: w1 is f32 [5, 7], w3 f32 [5, 7], w2 f32 [5, 7] for rows of 7");
  EXPECT_ERROR(ops::moe_of_few(machine.ctx, with(w2), x, outside, weight, y),
               "expert 2 of token 0 is outside 0 .. 1");
}

// Two runs of experts, one after the other, are all of them.
TEST(FewTokens, MoeLeavesOutWhatIsElsewhere) {
  Machine machine(2);
  const DType dtype = DType::kF64;
  std::vector<Operand> w1, w3, w2;
  for (int64_t e = 0; e < kE; ++e) {
    const Mlp m = random_mlp(concat("expert ", e), kF, dtype);
    w1.emplace_back(machine.put(m.w1, dtype));
    w3.emplace_back(machine.put(m.w3, dtype));
    w2.emplace_back(machine.put(m.w2, dtype));
  }
  const Tensor x = machine.put(random_in("x", {2, kD}, dtype), dtype);
  const Tensor idx = machine.put(std::vector<int32_t>{3, 0, 1, 2}, {2, 2});
  const Tensor weight = machine.put(random_in("w", {2, 2}, dtype), dtype);
  Tensor all = machine.tensor(dtype, {2, kD}), parts = machine.tensor(dtype, {2, kD});
  ops::fill(machine.ctx, 0.0, all);
  ops::fill(machine.ctx, 0.0, parts);
  ops::MoeWeights w;
  w.w1 = w1;
  w.w3 = w3;
  w.w2 = w2;
  ops::moe_of_few(machine.ctx, w, x, idx, weight, all);
  for (const auto& [first, count] : {std::pair<size_t, size_t>{0, 1}, {1, 3}}) {
    w.w1 = std::span<const Operand>(w1).subspan(first, count);
    w.w3 = std::span<const Operand>(w3).subspan(first, count);
    w.w2 = std::span<const Operand>(w2).subspan(first, count);
    w.first_expert = static_cast<int64_t>(first);
    ops::moe_of_few(machine.ctx, w, x, idx, weight, parts);
  }
  expect_close("two runs of experts", parts, all, 1e-14);
}

TEST(FewTokens, LatentInputsAreTheirParts) {
  const int64_t T = 3, H = 2, R = 6, Dr = 4, W = R + Dr;
  const ops::Fp8LatentRow fp8{R, Dr};
  for (DType dtype : kOpTypes)
    for (const auto& [layout, is_fp8] :
         {std::pair(ops::RopeLayout::kInterleaved, false),
          std::pair(ops::RopeLayout::kHalves, false), std::pair(ops::RopeLayout::kHalves, true)}) {
      Machine machine(2);
      Context& ctx = machine.ctx;
      Packed seq;
      seq.num_tokens = T;
      seq.num_seqs = 2;
      seq.max_len = 2;
      seq.offsets = machine.put(std::vector<int32_t>{0, 2, 3}, {3});
      seq.positions = machine.put(std::vector<int32_t>{63, 64, 5}, {3});
      seq.rope = machine.put(random_in("rope", {T, Dr}, dtype), stat_dtype(dtype));
      const ops::LatentNorm norm{layout, 1e-6, machine.put(random_in("gain", {R}, dtype), dtype)};
      const Tensor kv = put_strided(machine, random_in("kv", {T, W}, dtype), dtype);
      const Tensor q = machine.put(random_in("q", {T, H, Dr}, dtype), dtype);
      const Tensor table = machine.put(std::vector<int32_t>{2, 0, 3, 1}, {2, 2});
      const DType stored = is_fp8 ? DType::kE4M3 : dtype;
      const Shape pages{4, ops::kCachePageTokens, is_fp8 ? fp8.bytes() : W};
      const Array<double> old = random_in("pages", pages, stored);
      ops::LatentPages got{machine.put(old, stored), table};
      ops::LatentPages want{machine.put(old, stored), table};
      if (is_fp8) got.fp8 = want.fp8 = fp8;
      const Tensor q_got = machine.tensor(dtype, {T, H, Dr});
      ops::latent_inputs(ctx, seq, norm, kv, q, got, Tensor(q_got));

      const Tensor latent = machine.tensor(dtype, {T, W}),
                   rstd = machine.tensor(stat_dtype(dtype), {T});
      ops::rmsnorm_forward(ctx, kv.cols(0, R), norm.gain, norm.eps, latent.cols(0, R),
                           Tensor(rstd));
      Tensor key(latent.cols(R, Dr).raw(), dtype, {T, 1, Dr}, {W, Dr, 1, 0});
      ops::cast(ctx, kv.cols(R, Dr), latent.cols(R, Dr));
      ops::rope_apply(ctx, layout, ops::RopeDirection::kForward, seq.rope, key);
      ops::latent_cache_write(ctx, seq, latent, want);
      Tensor q_want = machine.tensor(dtype, {T, H, Dr});
      ops::cast(ctx, q, q_want);
      ops::rope_apply(ctx, layout, ops::RopeDirection::kForward, seq.rope, q_want);
      expect_bits_equal("cache", got.pages, want.pages);
      expect_bits_equal("query", q_got, q_want);
    }
}

}  // namespace
}  // namespace hadal::test
