// Training attention against plain loops over packed sequences, and its gradients against slopes.
//
//   T tokens   H heads   Dn, Dr, Dv  nope / rope / value width
// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"

#include "tests/unit/ops.h"
#include "tests/unit/other_isa.h"

namespace hadal::test {
namespace {

struct Sizes {
  std::vector<int32_t> offsets;
  int64_t H, Dn, Dr, Dv;
  int64_t num_tokens() const { return offsets.back(); }
};

// Around the 64 query rows of a block; sequences of one token and of none.
const Sizes kSizes[] = {
    {{0}, 2, 4, 2, 3},       {{0, 1}, 1, 1, 2, 1},       {{0, 5, 6, 6, 15}, 3, 5, 4, 7},
    {{0, 63}, 2, 16, 8, 16}, {{0, 64, 130}, 1, 8, 2, 8}, {{0, 1, 129}, 2, 7, 2, 9},
};
constexpr double kScale = 0.37;

Packed packed(Machine& machine, const Sizes& s) {
  Packed seq;
  seq.num_tokens = s.num_tokens();
  seq.num_seqs = static_cast<int64_t>(s.offsets.size()) - 1;
  seq.offsets = machine.put(s.offsets, {seq.num_seqs + 1});
  std::vector<int32_t> positions;
  for (size_t i = 0; i + 1 < s.offsets.size(); ++i)
    for (int32_t t = s.offsets[i]; t < s.offsets[i + 1]; ++t) positions.push_back(t - s.offsets[i]);
  seq.positions = machine.put(positions, {seq.num_tokens});
  return seq;
}

struct Arguments {
  Array<double> q, kv, k_pe, dout;
};
Arguments arguments(const Sizes& s, DType dtype) {
  const int64_t T = s.num_tokens();
  return {random_in("q", {T, s.H, s.Dn + s.Dr}, dtype),
          random_in("kv", {T, s.H, s.Dn + s.Dv}, dtype), random_in("k_pe", {T, s.Dr}, dtype),
          random_in("dout", {T, s.H, s.Dv}, dtype)};
}

struct Result {
  Array<double> out, lse, dq, dkv, dk_pe;
};

// Forward and backward, one query at a time.
Result reference(const Sizes& s, const Arguments& a) {
  const int64_t T = s.num_tokens(), H = s.H, Dn = s.Dn, Dr = s.Dr, Dv = s.Dv;
  Result r = {Array<double>({T, H, Dv}), Array<double>({H, T}), Array<double>(a.q.shape),
              Array<double>(a.kv.shape), Array<double>(a.k_pe.shape)};
  const auto q = [&](int64_t t, int64_t h) { return (t * H + h) * (Dn + Dr); };
  const auto kv = [&](int64_t t, int64_t h) { return (t * H + h) * (Dn + Dv); };
  const auto out = [&](int64_t t, int64_t h) { return (t * H + h) * Dv; };
  for (size_t i = 0; i + 1 < s.offsets.size(); ++i)
    for (int64_t t = s.offsets[i]; t < s.offsets[i + 1]; ++t)
      for (int64_t h = 0; h < H; ++h) {
        std::vector<double> p;
        double total = 0, top = -INFINITY;
        for (int64_t k = s.offsets[i]; k <= t; ++k) {
          double score = 0;
          for (int64_t d = 0; d < Dn; ++d) score += a.q[q(t, h) + d] * a.kv[kv(k, h) + d];
          for (int64_t d = 0; d < Dr; ++d) score += a.q[q(t, h) + Dn + d] * a.k_pe(k, d);
          p.push_back(score * kScale);
          top = std::max(top, p.back());
        }
        for (double& v : p) total += v = std::exp(v - top);
        r.lse(h, t) = top + std::log(total);
        double along = 0;
        std::vector<double> dp;
        for (size_t j = 0; j < p.size(); ++j) {
          const int64_t k = s.offsets[i] + static_cast<int64_t>(j);
          p[j] /= total;
          dp.push_back(0);
          for (int64_t d = 0; d < Dv; ++d) {
            r.out[out(t, h) + d] += p[j] * a.kv[kv(k, h) + Dn + d];
            dp[j] += a.dout[out(t, h) + d] * a.kv[kv(k, h) + Dn + d];
            r.dkv[kv(k, h) + Dn + d] += p[j] * a.dout[out(t, h) + d];
          }
          along += p[j] * dp[j];
        }
        for (size_t j = 0; j < p.size(); ++j) {
          const int64_t k = s.offsets[i] + static_cast<int64_t>(j);
          const double ds = p[j] * (dp[j] - along) * kScale;
          for (int64_t d = 0; d < Dn; ++d) {
            r.dq[q(t, h) + d] += ds * a.kv[kv(k, h) + d];
            r.dkv[kv(k, h) + d] += ds * a.q[q(t, h) + d];
          }
          for (int64_t d = 0; d < Dr; ++d) {
            r.dq[q(t, h) + Dn + d] += ds * a.k_pe(k, d);
            r.dk_pe(k, d) += ds * a.q[q(t, h) + Dn + d];
          }
        }
      }
  return r;
}

struct Attended {
  Tensor out, lse;
  ops::MlaAttentionGrads grads;
};
Attended run(Machine& machine, const Sizes& s, DType dtype) {
  const Arguments a = arguments(s, dtype);
  const Packed seq = packed(machine, s);
  const Tensor q = machine.put(a.q, dtype), kv = machine.put(a.kv, dtype),
               k_pe = machine.put(a.k_pe, dtype);
  Attended r = {machine.tensor(dtype, a.dout.shape),
                machine.tensor(stat_dtype(dtype), {s.H, s.num_tokens()}),
                {machine.put(ref::random("old", a.q.shape, 0, 1), dtype),
                 machine.put(ref::random("old", a.kv.shape, 0, 1), dtype),
                 machine.put(ref::random("old", a.k_pe.shape, 0, 1), dtype)}};
  ops::mla_attention_forward(machine.ctx, seq, kScale, q, kv, k_pe, r.out, r.lse);
  ops::mla_attention_backward(machine.ctx, seq, kScale, {q, kv, k_pe, r.out, r.lse},
                              machine.put(a.dout, dtype), r.grads);
  return r;
}

TEST(Attention, MatchesThePlainLoop) {
  Machine machine(2);
  for (const DType dtype : kOpTypes)
    for (const Sizes& s : kSizes) {
      const Result want = reference(s, arguments(s, dtype));
      const Attended got = run(machine, s, dtype);
      // Chains over the widths and over the keys; in bf16 the rounded output enters the gradients.
      const double terms = static_cast<double>(s.Dn + s.Dr + s.Dv + s.num_tokens());
      const double size = dtype == DType::kBF16 ? 12 : 4;
      expect_close("out", values(got.out), want.out, op_bound(dtype, terms, 4));
      expect_close("lse", values(got.lse), want.lse, op_bound(stat_dtype(dtype), terms, 4));
      expect_close("dq", values(got.grads.dq), want.dq, op_bound(dtype, terms, size));
      expect_close("dkv", values(got.grads.dkv), want.dkv, op_bound(dtype, terms, 3 * size));
      expect_close("dk_pe", values(got.grads.dk_pe), want.dk_pe, op_bound(dtype, terms, 3 * size));
    }
}

TEST(Attention, SameBitsTwiceAndAtAllThreadCounts) {
  for (const DType dtype : kOpTypes)
    expect_same_at_all_thread_counts([&](Machine& machine) {
      run(machine, kSizes[5], dtype);
      const Attended r = run(machine, kSizes[5], dtype);
      return std::vector<Tensor>{r.out, r.lse, r.grads.dq, r.grads.dkv, r.grads.dk_pe};
    });
}

// A sequence gets the bits that it gets alone.
TEST(Attention, DoesNotDependOnTheOtherSequences) {
  Machine machine(2);
  const Sizes all = {{0, 70, 71, 140}, 2, 8, 4, 6}, last = {{0, 69}, 2, 8, 4, 6};
  const Arguments a = arguments(all, DType::kF32);
  const Tensor q = machine.put(a.q, DType::kF32), kv = machine.put(a.kv, DType::kF32),
               k_pe = machine.put(a.k_pe, DType::kF32);
  Tensor out = machine.tensor(DType::kF32, a.dout.shape),
         lse = machine.tensor(DType::kF32, {2, 140});
  Tensor alone = machine.tensor(DType::kF32, {69, 2, 6}),
         lse1 = machine.tensor(DType::kF32, {2, 69});
  ops::mla_attention_forward(machine.ctx, packed(machine, all), kScale, q, kv, k_pe, out, lse);
  ops::mla_attention_forward(machine.ctx, packed(machine, last), kScale, q.rows(71, 69),
                             kv.rows(71, 69), k_pe.rows(71, 69), alone, lse1);
  expect_bits_equal("out", alone, out.rows(71, 69));
  expect_bits_equal("lse", lse1, lse.cols(71, 69));
}

// Scores far apart: no overflow, the largest wins.
TEST(Attention, LargeScores) {
  Machine machine(1);
  const Sizes s = {{0, 3}, 1, 1, 2, 1};
  Array<double> q({3, 1, 3}), kv({3, 1, 2}), k_pe({3, 2});
  for (int64_t t = 0; t < 3; ++t) {
    q[t * 3] = 1e3;
    kv[t * 2] = 1e3 * static_cast<double>(t - 1);
    kv[t * 2 + 1] = static_cast<double>(t);
  }
  Tensor out = machine.tensor(DType::kF32, {3, 1, 1}), lse = machine.tensor(DType::kF32, {1, 3});
  ops::mla_attention_forward(machine.ctx, packed(machine, s), 1.0, machine.put(q, DType::kF32),
                             machine.put(kv, DType::kF32), machine.put(k_pe, DType::kF32), out,
                             lse);
  EXPECT_EQ(values(out).data, (std::vector<double>{0, 1, 2}));
  EXPECT_EQ(values(lse).data, (std::vector<double>{-1e6, 0, 1e6}));
}

TEST(Attention, EveryInstructionSet) { expect_same_tests_pass_on_every_isa(); }

TEST(Attention, NamesTheWrongArgument) {
  Machine machine(1);
  const Sizes s = kSizes[2];
  const Arguments a = arguments(s, DType::kF32);
  const Packed seq = packed(machine, s);
  const Tensor q = machine.put(a.q, DType::kF32), kv = machine.put(a.kv, DType::kF32),
               k_pe = machine.put(a.k_pe, DType::kF32);
  Tensor out = machine.tensor(DType::kF32, {15, 3, 7}), lse = machine.tensor(DType::kF32, {3, 15});
  const auto forward = [&](const Tensor& q_t, const Tensor& kv_t, Out out_t, Out lse_t) {
    ops::mla_attention_forward(machine.ctx, seq, kScale, q_t, kv_t, k_pe, out_t, lse_t);
  };
  EXPECT_ERROR(forward(q.rows(0, 14), kv, out, lse),
               "mla_attention_forward: the sequences have 15 tokens, the tensors 14");
  EXPECT_ERROR(forward(q, machine.put(a.kv, DType::kF64), out, lse),
               "mla_attention_forward: kv is f64 [15, 3, 12]; it must be f32");
  EXPECT_ERROR(forward(q, kv, out.rows(0, 14), lse),
               "mla_attention_forward: out is f32 [14, 3, 7] for q f32 [15, 3, 9]");
  EXPECT_ERROR(forward(q, kv.cols(0, 11), out, lse),
               "kv must have shape [15, 3, 12], has [15, 3, 11]");
  EXPECT_ERROR(forward(q, kv, out, lse.cols(0, 3)), "lse must have shape [3, 15], has [3, 3]");
  EXPECT_ERROR(ops::mla_attention_backward(machine.ctx, seq, kScale, {q, kv, k_pe, out, lse}, out,
                                           {q, q, k_pe}),
               "mla_attention_backward: dkv is f32 [15, 3, 9]; it must be f32 [15, 3, 12]");
}

}  // namespace
}  // namespace hadal::test
