// The FP8 latent cache: what a row holds of what was written, and attention over what it holds.
//
//   T tokens   H heads   R latent width   Dr rope width
// SPDX-License-Identifier: Apache-2.0
#include "model/bytes.h"
#include "model/latent_cache.h"
#include "ops/attention.h"
#include "ops/few_tokens.h"
#include "tests/unit/ops.h"
#include "tests/unit/other_isa.h"

namespace hadal::test {
namespace {

using ops::Fp8LatentRow;
using ops::kCachePageTokens;

// Widths: V3's, whole tiles, a tail, less than a tile, an odd one.
const Fp8LatentRow kRows[] = {{512, 64}, {256, 6}, {130, 4}, {6, 4}, {13, 2}};

Packed tokens(Machine& machine, int32_t start, int64_t count) {
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < count; ++i) positions.push_back(start + static_cast<int32_t>(i));
  Packed seq;
  seq.num_tokens = count;
  seq.num_seqs = 1;
  seq.max_len = count;
  seq.offsets = machine.put({0, static_cast<int32_t>(count)}, {2});
  seq.positions = machine.put(positions, {count});
  return seq;
}

// Pages of one sequence in a scattered order; bytes of 0xff are NaN in every format.
ops::LatentPages fp8_cache(Machine& machine, const Fp8LatentRow& row, int64_t num_pages) {
  ops::LatentPages cache{machine.tensor(DType::kE4M3, {num_pages, kCachePageTokens, row.bytes()}),
                         Tensor(), row};
  std::memset(cache.pages.raw(), 0xff, static_cast<size_t>(cache.pages.num_bytes()));
  std::vector<int32_t> table;
  for (int64_t i = 0; i < num_pages; ++i)
    table.push_back(static_cast<int32_t>((i + 1) % num_pages));
  cache.table = machine.put(table, {1, num_pages});
  return cache;
}

// What the row of a position holds, computed from its bytes alone.     [R+Dr]
std::vector<double> held(const ops::LatentPages& cache, int64_t position) {
  const Fp8LatentRow row = *cache.fp8;
  const int64_t page = cache.table.data<int32_t>()[position / kCachePageTokens];
  const auto* bytes = static_cast<const char*>(cache.pages.raw()) +
                      (page * kCachePageTokens + position % kCachePageTokens) * row.bytes();
  std::vector<double> values;
  for (int64_t i = 0; i < row.R; ++i)
    values.push_back(load_element(bytes, DType::kE4M3, i) *
                     load_element(bytes + row.scale_at(), DType::kF32, i / 128));
  for (int64_t i = 0; i < row.Dr; ++i)
    values.push_back(load_element(bytes + row.key_at(), DType::kBF16, i));
  return values;
}

TEST(Fp8Cache, LaysRowsOutAsItSays) {
  const Fp8LatentRow v3{512, 64};
  EXPECT_EQ(v3.num_scales(), 4);
  EXPECT_EQ(v3.scale_at(), 512);
  EXPECT_EQ(v3.key_at(), 528);
  EXPECT_EQ(v3.bytes(), 656);
  const Fp8LatentRow tail{130, 4};
  EXPECT_EQ(tail.scale_at(), 132);
  EXPECT_EQ(tail.key_at(), 140);
  EXPECT_EQ(tail.bytes(), 160);
}

TEST(Fp8Cache, HoldsALatentWithinItsRoundingAndTheKeyInBf16) {
  const int64_t T = 70;
  for (const Fp8LatentRow& row : kRows)
    for (const DType dtype : kOpTypes) {
      Machine machine(1);
      const ops::LatentPages cache = fp8_cache(machine, row, 2);
      Array<double> latent = random_in("latent", {T, row.R + row.Dr}, dtype);
      // Tiles of small values, of none, and of one large value.
      for (int64_t i = 0; i < row.R; ++i) {
        latent(1, i) *= std::ldexp(1.0, -30);
        latent(2, i) = 0.0;
        latent(3, i) *= std::ldexp(1.0, i == row.R / 2 ? 40 : 2);
      }
      ops::latent_cache_write(machine.ctx, tokens(machine, 0, T),
                              put_strided(machine, latent, dtype), cache);
      for (int64_t t = 0; t < T; ++t) {
        const std::vector<double> got = held(cache, t);
        for (int64_t i = 0; i < row.R + row.Dr; ++i) {
          const double want = latent(t, i), error = std::fabs(got[static_cast<size_t>(i)] - want);
          if (i >= row.R) {
            double key = 0.0;
            store_element(&key, DType::kBF16, 0, want);
            ASSERT_EQ(got[static_cast<size_t>(i)], load_element(&key, DType::kBF16, 0));
            continue;
          }
          double amax = 0.0;
          for (int64_t j = i / 128 * 128; j < std::min(row.R, (i / 128 + 1) * 128); ++j)
            amax = std::max(amax, std::fabs(latent(t, j)));
          // Half a unit: 2^-4 of a normal element, 2^-10 of the scale below; the scale is at most
          // twice what amax, or 1e-4, needs.
          const double scale = 2.0 * std::max(amax, 1e-4) / 448.0;
          ASSERT_LE(error, std::max(std::ldexp(std::fabs(want), -4), std::ldexp(scale, -10)))
              << "R " << row.R << " token " << t << " column " << i << ": " << want << " became "
              << got[static_cast<size_t>(i)];
        }
      }
    }
}

TEST(Fp8Cache, ScalesArePowersOfTwoThatCoverTheirTile) {
  Machine machine(1);
  const Fp8LatentRow row{130, 4};
  const ops::LatentPages cache = fp8_cache(machine, row, 1);
  const Array<double> latent = random_in("latent", {9, 134}, DType::kF32);
  ops::latent_cache_write(machine.ctx, tokens(machine, 0, 9), machine.put(latent, DType::kF32),
                          cache);
  for (int64_t t = 0; t < 9; ++t) {
    const auto* bytes = static_cast<const char*>(cache.pages.raw()) + t * row.bytes();
    for (int64_t tile = 0; tile < 2; ++tile) {
      double amax = 1e-4;
      for (int64_t i = tile * 128; i < std::min<int64_t>(130, tile * 128 + 128); ++i)
        amax = std::max(amax, std::fabs(latent(t, i)));
      const double scale = load_element(bytes + row.scale_at(), DType::kF32, tile);
      EXPECT_EQ(std::exp2(std::round(std::log2(scale))), scale);
      EXPECT_GE(scale * 448.0, amax);
      EXPECT_LT(scale * 224.0, amax * (1 + 1e-6));
    }
  }
}

// What is not a number stays so, and does not reach the columns of other scales.
TEST(Fp8Cache, KeepsNanInItsTile) {
  Machine machine(1);
  const Fp8LatentRow row{256, 4};
  const ops::LatentPages cache = fp8_cache(machine, row, 1);
  Array<double> latent = random_in("latent", {1, 260}, DType::kF32);
  latent(0, 200) = NAN;
  ops::latent_cache_write(machine.ctx, tokens(machine, 0, 1), machine.put(latent, DType::kF32),
                          cache);
  const std::vector<double> got = held(cache, 0);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isnan(got[i]), i == 200) << i;
}

// Attention over FP8 rows has the bits of attention over a plain cache that holds the same values.
TEST(Fp8Cache, AttentionReadsWhatTheRowsHold) {
  for (const Fp8LatentRow& row : kRows)
    for (const DType dtype : kOpTypes)
      for (int64_t H : {1, 5}) {
        Machine machine(2);
        const int64_t T = 150, W = row.R + row.Dr;
        const ops::LatentPages cache = fp8_cache(machine, row, 3);
        const Packed seq = tokens(machine, 0, T);
        const Tensor latent = machine.put(random_in("latent", {T, W}, dtype), dtype);
        const Tensor q = machine.put(random_in("q", {T, H, W}, dtype), dtype);
        ops::latent_cache_write(machine.ctx, seq, latent, cache);
        Array<double> values({T, W});
        for (int64_t t = 0; t < T; ++t) {
          const std::vector<double> v = held(cache, t);
          std::copy(v.begin(), v.end(), values.data.begin() + t * W);
        }
        ops::LatentPages plain{machine.tensor(dtype, {3, kCachePageTokens, W}), cache.table};
        ops::latent_cache_write(machine.ctx, seq, machine.put(values, dtype), plain);
        Tensor got = machine.tensor(dtype, {T, H, row.R}),
               want = machine.tensor(dtype, got.shape());
        ops::latent_attention(machine.ctx, seq, 0.41, q, cache, got);
        ops::latent_attention(machine.ctx, seq, 0.41, q, plain, want);
        expect_bits_equal(concat("attention of ", H, " heads, R ", row.R), got, want);
      }
}

// The same bits whether tokens come one by one, in chunks, or all at once, at all thread counts.
TEST(Fp8Cache, DoesNotDependOnHowTokensCome) {
  const Fp8LatentRow row{130, 4};
  const int64_t T = 130, H = 3, W = 134;
  for (const DType dtype : kOpTypes) {
    const auto run = [&](Machine& machine, int64_t chunk) {
      const ops::LatentPages cache = fp8_cache(machine, row, 3);
      const Tensor latent = machine.put(random_in("latent", {T, W}, dtype), dtype);
      const Tensor q = machine.put(random_in("q", {T, H, W}, dtype), dtype);
      const Tensor out = machine.tensor(dtype, {T, H, row.R});
      for (int64_t t = 0; t < T; t += chunk) {
        const int64_t n = std::min(chunk, T - t);
        const Packed seq = tokens(machine, static_cast<int32_t>(t), n);
        ops::latent_cache_write(machine.ctx, seq, latent.rows(t, n), cache);
        ops::latent_attention(machine.ctx, seq, 0.41, q.rows(t, n), cache, out.rows(t, n));
      }
      return std::vector<Tensor>{out, cache.pages};
    };
    Machine machine(2);
    const std::vector<Tensor> want = run(machine, T);
    for (int64_t chunk : {1, 17, 64}) {
      const std::vector<Tensor> got = run(machine, chunk);
      expect_bits_equal(concat("in steps of ", chunk), got[0], want[0]);
      expect_bits_equal(concat("pages in steps of ", chunk), got[1], want[1]);
    }
    expect_same_at_all_thread_counts([&](Machine& m) { return run(m, 40); });
  }
}

// A plan of the memory is what the cache takes, to the byte.
TEST(Fp8Cache, TakesWhatWasPlanned) {
  Config c;
  for (const Fp8LatentRow& row : kRows)
    for (const DType act : kOpTypes)
      for (const CacheFormat format : {CacheFormat::kCompute, CacheFormat::kFp8}) {
        Machine machine(1);
        c.num_hidden_layers = 3;
        c.kv_lora_rank = row.R;
        c.qk_rope_head_dim = row.Dr;
        const LatentCache cache(
            machine.ctx, c, act, format,
            {.num_layers = 4, .num_pages = 5, .max_seqs = 2, .max_tokens = 128});
        EXPECT_EQ(4 * cache.layer(3).pages.num_bytes(),
                  5 * kCachePageTokens * cache_bytes_per_token(c, act, format, 1));
      }
  c.num_hidden_layers = 61;
  c.kv_lora_rank = 512;
  c.qk_rope_head_dim = 64;
  EXPECT_EQ(cache_bytes_per_token(c, DType::kBF16, CacheFormat::kFp8, 0), 40016);
  EXPECT_EQ(cache_bytes_per_token(c, DType::kF32, CacheFormat::kFp8, 1), 40016 + 656);
}

TEST(Fp8Cache, NamesTheWrongArgument) {
  Machine machine(1);
  const Fp8LatentRow row{6, 4};
  ops::LatentPages cache = fp8_cache(machine, row, 1);
  const Packed seq = tokens(machine, 0, 2);
  EXPECT_ERROR(
      ops::latent_cache_write(machine.ctx, seq, machine.tensor(DType::kF32, {2, 11}), cache),
      "latent_cache_write: the cache has FP8 rows of 6 + 4 columns, the tensors 11");
  Tensor q = machine.tensor(DType::kF32, {2, 1, 10}), out = machine.tensor(DType::kF32, {2, 1, 6});
  cache.fp8 = Fp8LatentRow{6, 12};
  EXPECT_ERROR(ops::latent_attention(machine.ctx, seq, 1.0, q, cache, out),
               "latent_attention: the cache is e4m3 [1, 64, 32]; it must be [pages, 64, 48]");
  cache.fp8.reset();
  EXPECT_ERROR(ops::latent_attention(machine.ctx, seq, 1.0, q, cache, out),
               "latent_attention: the cache is e4m3 [1, 64, 32]; it must be [pages, 64, 10]");
}

TEST(Fp8Cache, EveryInstructionSet) { expect_same_tests_pass_on_every_isa(); }

}  // namespace
}  // namespace hadal::test
