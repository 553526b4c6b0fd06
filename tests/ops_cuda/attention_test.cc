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

// Head widths that Hopper's kernels take. P and dS are rounded to bf16 there and not on the CPU,
// and delta comes from a rounded out: each of these errors is below one unit of the largest
// element.
struct HopperHead {
  int64_t H, Dn, Dr, Dv;
};
const HopperHead kHopperHeads[] = {{3, 128, 64, 128}, {9, 64, 32, 64}, {6, 32, 16, 32}};

struct AttentionTensors {
  Tensor q, kv, k_pe, dout, out, lse, dq, dkv, dk_pe;
  AttentionTensors(Side& s, const HopperHead& head, int64_t T)
      : q(s.random("q", DType::kBF16, {T, head.H, head.Dn + head.Dr})),
        kv(s.random("kv", DType::kBF16, {T, head.H, head.Dn + head.Dv})),
        // Columns of a wider tensor, as the projection of the latent gives it.
        k_pe(s.random("k_pe", DType::kBF16, {T, 32 + head.Dr}).cols(32, head.Dr)),
        dout(s.random("dout", DType::kBF16, {T, head.H, head.Dv})),
        out(s.out(DType::kBF16, dout.shape())),
        lse(s.out(DType::kF32, {head.H, T})),
        dq(s.out(DType::kBF16, q.shape())),
        dkv(s.out(DType::kBF16, kv.shape())),
        dk_pe(s.out(DType::kBF16, {T, head.Dr})) {}
  void run(Side& s, const Packed& seq, int64_t begin) {
    const int64_t T = seq.num_tokens;
    const auto rows = [&](const Tensor& t) { return t.rows(begin, T); };
    const double scale = 1.0 / std::sqrt(static_cast<double>(q.dim(2)));
    ops::mla_attention_forward(s.ctx, seq, scale, rows(q), rows(kv), rows(k_pe), rows(out),
                               lse.cols(begin, T));
    ops::mla_attention_backward(s.ctx, seq, scale,
                                {rows(q), rows(kv), rows(k_pe), rows(out), lse.cols(begin, T)},
                                rows(dout), {rows(dq), rows(dkv), rows(dk_pe)});
  }
};

TEST(OpsCuda, TrainingAttentionOfHopper) {
  const std::vector<std::vector<int32_t>> cases = {
      {64, 65}, {1, 63, 129}, {300, 3, 1, 191}, {128, 256}, {513}};
  for (const HopperHead& head : kHopperHeads)
    for (const auto& lengths : cases)
      for (bool statistics : {false, true})
        expect_twins(
            concat("attention of ", head.Dn, " wide heads, ", lengths.size(), " of ",
                   lengths.back()),
            [&](Side& s) {
              const Packed seq = packed(s, lengths, std::vector<int32_t>(lengths.size(), 0));
              AttentionTensors t(s, head, seq.num_tokens);
              t.run(s, seq, 0);
              if (statistics) return std::vector<Tensor>{t.lse};
              return std::vector<Tensor>{t.out, t.dq, t.dkv, t.dk_pe};
            },
            statistics ? kLibraryRoundings : 4.0);
}

// A sequence gives the same bits alone as packed with others, wherever it lies.
TEST(OpsCuda, TrainingAttentionDoesNotDependOnThePack) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  const std::vector<int32_t> lengths = {200, 77, 1, 385, 64};
  for (const HopperHead& head : kHopperHeads) {
    Side s({DeviceKind::kCuda, 0});
    const Packed all = packed(s, lengths, std::vector<int32_t>(lengths.size(), 0));
    AttentionTensors together(s, head, all.num_tokens), alone(s, head, all.num_tokens);
    together.run(s, all, 0);
    int64_t begin = 0;
    for (int32_t n : lengths) {
      alone.run(s, packed(s, {n}, {0}), begin);
      begin += n;
    }
    const auto same = [&](const char* name, const Tensor& got, const Tensor& want) {
      const HostRead a(s.ctx, got), b(s.ctx, want);
      expect_bits_equal(concat(name, " of ", head.Dn, " wide heads"), a.tensor(), b.tensor());
    };
    same("out", alone.out, together.out);
    same("lse", alone.lse, together.lse);
    same("dq", alone.dq, together.dq);
    same("dkv", alone.dkv, together.dkv);
    same("dk_pe", alone.dk_pe, together.dk_pe);
  }
}

// A cache of rows of `type`, or of FP8 ones.
struct CacheCase {
  DType type;
  bool fp8;
  std::string name() const { return concat(dtype_name(type), fp8 ? " over an FP8 cache" : ""); }
  // Pages of random numbers, or, where rows are FP8, of NaN.
  ops::LatentPages make(Side& s, int64_t num_pages, ops::Fp8LatentRow widths,
                        const Tensor& table) const {
    if (!fp8)
      return {s.random("pages", type, {num_pages, ops::kCachePageTokens, widths.R + widths.Dr}),
              table};
    return {s.out(DType::kE4M3, {num_pages, ops::kCachePageTokens, widths.bytes()}), table, widths};
  }
};

// The bytes of a cache, to be compared as such.
Tensor bits_of(const ops::LatentPages& cache) {
  if (!cache.fp8) return cache.pages;
  const Shape& shape = cache.pages.shape();
  return {cache.pages.raw(), DType::kI32, {shape[0], shape[1], shape[2] / 4}};
}

// Writes two sequences in pieces, then attends: pages of both lie mixed in the cache.
TEST(OpsCuda, LatentAttention) {
  for (DType type : kTypes)
    for (bool fp8 : {false, true})
      for (int64_t H : {1, 3, 70}) {
        const CacheCase format{type, fp8};
        expect_twins(
            concat("latent ", format.name(), " ", H, " heads"),
            [&](Side& s) {
              // An FP8 row of a whole tile and a part of one.
              const int64_t R = fp8 ? 149 : 21, Dr = 4, W = R + Dr;
              const Tensor table = s.make(DType::kI32, {2, 3}, [](int64_t i) {
                return std::vector<double>{6, 0, 3, 1, 7, -1}[static_cast<size_t>(i)];
              });
              const ops::LatentPages cache = format.make(s, 8, {R, Dr}, table);
              const Packed old = packed(s, {130, 63}, {0, 0}), now = packed(s, {3, 2}, {130, 63});
              const Tensor before = s.random("before", type, {193, W});
              const Tensor latent = s.random("latent", type, {5, W + 2}).cols(0, W);
              const Tensor q = s.random("q", type, {5, H, W}), out = s.out(type, {5, H, R});
              ops::latent_cache_write(s.ctx, old, before, cache);
              ops::latent_cache_write(s.ctx, now, latent, cache);
              ops::latent_attention(s.ctx, now, 0.3 / std::sqrt(static_cast<double>(R) / 21.0), q,
                                    cache, Tensor(out));
              return std::vector<Tensor>{bits_of(cache), out};
            },
            kLibraryRoundings);
      }
}

// DeepSeek-V3's own latent size, which Hopper's kernel takes: a chunk over a split's end, two
// sequences of one token, few tokens of short contexts, and many splits; then chunks and decode
// rows of several sequences in one call, with few and with many rows a sequence.
std::vector<int32_t> several() {  // 1 to 4 tokens of 70 sequences
  std::vector<int32_t> lengths;
  for (int32_t i = 0; i < 70; ++i) lengths.push_back(1 + i * i % 4);
  return lengths;
}
TEST(OpsCuda, LatentAttentionOfV3) {
  const int64_t R = 512, W = 576;
  struct Case {
    int64_t H;
    std::vector<int32_t> old, added;
  };
  const Case cases[] = {{5, {980}, {130}},
                        {16, {1100, 63}, {1, 1}},
                        {128, {30, 1}, {2, 2}},
                        {64, {127, 128, 5}, {1, 1, 1}},
                        {128, {1023}, {3}},
                        {16, {980, 5, 1100, 63, 1}, {130, 1, 1, 70, 3}},
                        {5, {1, 1023, 40}, {300, 1, 2}},
                        {128, {700, 1, 20}, {3, 130, 1}},
                        {64, {1, 1060, 640}, {1, 1, 5}},
                        {16, std::vector<int32_t>(70, 9), several()}};
  for (Numerics numerics : {Numerics::kInvariant, Numerics::kFastest})
    for (const Case& test : cases)
      for (bool fp8 : {false, true}) {
        const CacheCase format{DType::kBF16, fp8};
        expect_twins(
            concat("latent attention of ", test.H, " heads, ", format.name()),
            [&](Side& s) {
              s.ctx.numerics = numerics;
              const DType type = DType::kBF16;
              const auto S = static_cast<int64_t>(test.old.size());
              int64_t before = 0, T = 0;
              for (int32_t n : test.old) before += n;
              for (int32_t n : test.added) T += n;
              // Every page once: 11 divides no number of them.
              const int64_t P = S > 10 ? 2 : 20;
              const Tensor table =
                  s.make(DType::kI32, {S, P}, [&](int64_t i) { return (11 * i) % (P * S); });
              const ops::LatentPages cache = format.make(s, P * S, {R, W - R}, table);
              const std::vector<int32_t> none(test.old.size(), 0);
              ops::latent_cache_write(s.ctx, packed(s, test.old, none),
                                      s.random("before", type, {before, W}), cache);
              const Packed now = packed(s, test.added, test.old);
              ops::latent_cache_write(s.ctx, now, s.random("latent", type, {T, W}), cache);
              const Tensor q = s.random("q", type, {T, test.H, W});
              const Tensor out = s.out(type, {T, test.H, R});
              ops::latent_attention(s.ctx, now, 0.03, q, cache, Tensor(out));
              return std::vector<Tensor>{out};
            },
            4.0);
      }
}

// Hopper's kernel over FP8 rows has the bits of the same kernel over what they hold in bf16.
TEST(OpsCuda, LatentAttentionOfFp8RowsIsThatOfTheirValues) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  const ops::Fp8LatentRow widths{512, 64};
  const int64_t W = widths.R + widths.Dr;
  const int32_t length = 1300;
  for (int64_t H : {16, 64}) {
    Side s({DeviceKind::kCuda, 0});
    const Tensor table = s.make(DType::kI32, {1, 21}, [&](int64_t i) { return (5 * i) % 21; });
    const ops::LatentPages fp8 = CacheCase{DType::kBF16, true}.make(s, 21, widths, table);
    const ops::LatentPages plain = CacheCase{DType::kBF16, false}.make(s, 21, widths, table);
    const Packed all = packed(s, {length}, {0});
    ops::latent_cache_write(s.ctx, all, s.random("latent", DType::kBF16, {length, W}), fp8);
    const HostRead bytes(s.ctx, fp8.pages);
    const Tensor held = s.make(DType::kBF16, {length, W}, [&](int64_t i) {
      const int64_t position = i / W, column = i % W;
      const int64_t page = (5 * (position / 64)) % 21;
      const char* row = static_cast<const char*>(bytes.tensor().raw()) +
                        (page * 64 + position % 64) * widths.bytes();
      if (column >= widths.R)
        return load_element(row + widths.key_at(), DType::kBF16, column - widths.R);
      return load_element(row, DType::kE4M3, column) *
             load_element(row + widths.scale_at(), DType::kF32, column / 128);
    });
    ops::latent_cache_write(s.ctx, all, held, plain);
    const Packed now = packed(s, {1}, {length - 1});
    const Tensor q = s.random("q", DType::kBF16, {1, H, W});
    const Tensor got = s.out(DType::kBF16, {1, H, widths.R}),
                 want = s.out(DType::kBF16, got.shape());
    ops::latent_attention(s.ctx, now, 0.03, q, fp8, Tensor(got));
    ops::latent_attention(s.ctx, now, 0.03, q, plain, Tensor(want));
    const HostRead a(s.ctx, got), b(s.ctx, want);
    expect_bits_equal(concat(H, " heads"), a.tensor(), b.tensor());
  }
}

// In the invariant mode a token's bits are the same in a chunk and alone, also where the chunk
// crosses the end of a split.
TEST(OpsCuda, LatentAttentionDoesNotDependOnTheChunk) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  const int64_t H = 16, R = 512, W = 576;
  const int32_t begin = 1000, T = 60;
  for (bool fp8 : {false, true}) {
    Side s({DeviceKind::kCuda, 0});
    const CacheCase format{DType::kBF16, fp8};
    const Tensor table = s.make(DType::kI32, {1, 20}, [&](int64_t i) { return (7 * i) % 20; });
    const ops::LatentPages cache = format.make(s, 20, {R, W - R}, table);
    ops::latent_cache_write(s.ctx, packed(s, {begin + T}, {0}),
                            s.random("latent", DType::kBF16, {begin + T, W}), cache);
    const Tensor q = s.random("q", DType::kBF16, {T, H, W});
    const Tensor all = s.out(DType::kBF16, {T, H, R});
    ops::latent_attention(s.ctx, packed(s, {T}, {begin}), 0.03, q, cache, Tensor(all));
    for (int32_t t : {0, 23, 24, 25, 40, 59}) {
      const Tensor one = s.out(DType::kBF16, {1, H, R});
      ops::latent_attention(s.ctx, packed(s, {1}, {begin + t}), 0.03, q.rows(t, 1), cache,
                            Tensor(one));
      const HostRead want(s.ctx, all.rows(t, 1)), got(s.ctx, one);
      expect_bits_equal(concat("token ", t, " alone, ", format.name()), got.tensor(),
                        want.tensor());
    }
  }
}

// Nor does it depend on the sequences beside it, whatever their lengths.
TEST(OpsCuda, LatentAttentionDoesNotDependOnTheOthers) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  const int64_t R = 512, W = 576, P = 24;
  const std::vector<int32_t> old = {1000, 7, 1300, 1, 90, 1020}, added = {60, 1, 1, 500, 2, 8};
  const auto S = static_cast<int64_t>(old.size());
  for (int64_t H : {16, 5, 128})
    for (bool fp8 : {false, true}) {
      Side s({DeviceKind::kCuda, 0});
      const CacheCase format{DType::kBF16, fp8};
      const Tensor table =
          s.make(DType::kI32, {S, P}, [&](int64_t i) { return (7 * i) % (P * S); });
      const ops::LatentPages cache = format.make(s, P * S, {R, W - R}, table);
      const Packed before = packed(s, old, std::vector<int32_t>(old.size(), 0));
      ops::latent_cache_write(s.ctx, before,
                              s.random("before", DType::kBF16, {before.num_tokens, W}), cache);
      const Packed now = packed(s, added, old);
      const int64_t T = now.num_tokens;
      ops::latent_cache_write(s.ctx, now, s.random("latent", DType::kBF16, {T, W}), cache);
      const Tensor q = s.random("q", DType::kBF16, {T, H, W});
      const Tensor all = s.out(DType::kBF16, {T, H, R});
      ops::latent_attention(s.ctx, now, 0.03, q, cache, Tensor(all));
      int64_t begin = 0;
      for (int64_t i = 0; i < S; begin += added[static_cast<size_t>(i)], ++i) {
        const auto at = static_cast<size_t>(i);
        ops::LatentPages own = cache;
        own.table = table.rows(i, 1);
        const Tensor one = s.out(DType::kBF16, {added[at], H, R});
        ops::latent_attention(s.ctx, packed(s, {added[at]}, {old[at]}), 0.03,
                              q.rows(begin, added[at]), own, Tensor(one));
        const HostRead want(s.ctx, one), got(s.ctx, all.rows(begin, added[at]));
        expect_bits_equal(concat("sequence ", i, " of ", H, " heads, ", format.name()),
                          got.tensor(), want.tensor());
      }
    }
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
