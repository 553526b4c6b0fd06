// Training and absorbed attention on CUDA against the CPU's.
//
//   T tokens   H heads   Dn, Dr, Dv head widths   R latent width
// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"

#include "tests/ops_cuda/twin.h"

namespace hadal::test {
namespace {

// The log of a sum, and exp in f64, come from libraries.
constexpr double kLibraryRoundings = 64.0;

Packed packed(Side& s, const std::vector<int32_t>& lengths, const std::vector<int32_t>& starts) {
  std::vector<int32_t> offsets = {0}, positions;
  Packed seq;
  for (size_t i = 0; i < lengths.size(); ++i) {
    for (int32_t t = 0; t < lengths[i]; ++t) positions.push_back(starts[i] + t);
    offsets.push_back(offsets.back() + lengths[i]);
    seq.max_len = std::max<int64_t>(seq.max_len, lengths[i]);
  }
  seq.num_tokens = offsets.back();
  seq.num_seqs = static_cast<int64_t>(lengths.size());
  seq.offsets = s.list(offsets);
  seq.positions = s.list(positions);
  return seq;
}

TEST(OpsCuda, TrainingAttention) {
  const std::vector<std::vector<int32_t>> cases = {{1}, {5, 1, 70}, {64, 65}, {200}};
  for (DType type : kTypes)
    for (const auto& lengths : cases)
      expect_twins(
          concat("attention ", dtype_name(type), " ", lengths.size(), " of ", lengths.back()),
          [&](Side& s) {
            const Packed seq = packed(s, lengths, std::vector<int32_t>(lengths.size(), 0));
            const int64_t T = seq.num_tokens, H = 3, Dn = 17, Dr = 6, Dv = 19;
            const Tensor q = s.random("q", type, {T, H, Dn + Dr});
            const Tensor kv = s.random("kv", type, {T, H, Dn + Dv});
            const Tensor k_pe = s.random("k_pe", type, {T, Dr});
            const Tensor dout = s.random("dout", type, {T, H, Dv});
            const Tensor out = s.out(type, {T, H, Dv}), lse = s.out(stat_dtype(type), {H, T});
            const Tensor dq = s.out(type, q.shape()), dkv = s.out(type, kv.shape());
            const Tensor dk_pe = s.out(type, k_pe.shape());
            ops::mla_attention_forward(s.ctx, seq, 0.2, q, kv, k_pe, Tensor(out), Tensor(lse));
            ops::mla_attention_backward(s.ctx, seq, 0.2, {q, kv, k_pe, out, lse}, dout,
                                        {dq, dkv, dk_pe});
            return std::vector<Tensor>{out, lse, dq, dkv, dk_pe};
          },
          kLibraryRoundings);
}

// Writes two sequences in pieces, then attends: pages of both lie mixed in the cache.
TEST(OpsCuda, LatentAttention) {
  for (DType type : kTypes)
    for (int64_t H : {1, 3, 70})
      expect_twins(
          concat("latent ", dtype_name(type), " ", H, " heads"),
          [&](Side& s) {
            const int64_t R = 21, Dr = 4, W = R + Dr;
            const Tensor pages = s.random("pages", type, {8, ops::kCachePageTokens, W});
            const Tensor table = s.make(DType::kI32, {2, 3}, [](int64_t i) {
              return std::vector<double>{6, 0, 3, 1, 7, -1}[static_cast<size_t>(i)];
            });
            const ops::LatentPages cache{pages, table};
            const Packed old = packed(s, {130, 63}, {0, 0}), now = packed(s, {3, 2}, {130, 63});
            const Tensor before = s.random("before", type, {193, W});
            const Tensor latent = s.random("latent", type, {5, W + 2}).cols(0, W);
            const Tensor q = s.random("q", type, {5, H, W}), out = s.out(type, {5, H, R});
            ops::latent_cache_write(s.ctx, old, before, cache);
            ops::latent_cache_write(s.ctx, now, latent, cache);
            ops::latent_attention(s.ctx, now, 0.3, q, cache, Tensor(out));
            return std::vector<Tensor>{pages, out};
          },
          kLibraryRoundings);
}

TEST(OpsCuda, CacheWithoutAPageIsAnError) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU";
  Side s({DeviceKind::kCuda, 0});
  const Tensor pages = s.random("pages", DType::kF32, {1, ops::kCachePageTokens, 4});
  const ops::LatentPages cache{pages, s.list({-1}).view({1, 1})};
  const Packed seq = packed(s, {1}, {5});
  ops::latent_cache_write(s.ctx, seq, s.random("x", DType::kF32, {1, 4}), cache);
  try {
    device::synchronize(s.ctx.device, s.ctx.stream);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "position 5 of sequence 0 has no page in the cache");
  }
  device::synchronize(s.ctx.device, s.ctx.stream);  // reported once
}

}  // namespace
}  // namespace hadal::test
