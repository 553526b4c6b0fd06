// Absorbed attention over the paged latent cache against plain loops, however tokens come.
//
//   T tokens   S sequences   H heads   R latent width   Dr rope width
// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"
#include "tests/unit/ops.h"
#include "tests/unit/other_isa.h"

namespace hadal::test {
namespace {

constexpr int64_t kR = 6, kDr = 4, kW = kR + kDr;
constexpr int64_t kWholeR = 32;  // of whole vectors: a few rows have a way of their own
constexpr double kScale = 0.41;

// Sequence s adds tokens at positions [start, start + count).
struct Part {
  int64_t start, count;
};

Packed packed(Machine& machine, const std::vector<Part>& parts) {
  Packed seq;
  std::vector<int32_t> offsets = {0}, positions;
  for (const Part& p : parts) {
    for (int64_t i = 0; i < p.count; ++i) positions.push_back(static_cast<int32_t>(p.start + i));
    offsets.push_back(static_cast<int32_t>(positions.size()));
  }
  seq.num_tokens = static_cast<int64_t>(positions.size());
  seq.num_seqs = static_cast<int64_t>(parts.size());
  seq.offsets = machine.put(offsets, {seq.num_seqs + 1});
  seq.positions = machine.put(positions, {seq.num_tokens});
  return seq;
}

// A cache whose pages are given to sequences in a scattered order; unused memory is NaN.
ops::LatentPages make_cache(Machine& machine, DType dtype, int64_t num_seqs, int64_t pages_per_seq,
                            int64_t W = kW) {
  const int64_t num_pages = num_seqs * pages_per_seq + 1;
  ops::LatentPages cache{machine.tensor(dtype, {num_pages, ops::kCachePageTokens, W}), Tensor()};
  for (int64_t i = 0; i < cache.pages.num_elements(); ++i)
    store_element(cache.pages.raw(), dtype, i, NAN);
  std::vector<int32_t> table;
  for (int64_t i = 0; i < num_seqs * pages_per_seq; ++i)
    table.push_back(static_cast<int32_t>(num_pages - 1 - i));
  cache.table = machine.put(table, {num_seqs, pages_per_seq});
  return cache;
}

// latent [n, W] and q [n, H, W] of a whole sequence.
Array<double> latent_of(int64_t s, int64_t n, DType dtype, int64_t W = kW) {
  return random_in(concat("latent", s), {n, W}, dtype);
}
Array<double> query_of(int64_t s, int64_t n, int64_t H, DType dtype, int64_t W = kW) {
  return random_in(concat("q", s), {n, H, W}, dtype);
}

Array<double> reference(const Array<double>& q, const Array<double>& latent) {
  const int64_t n = q.shape[0], H = q.shape[1], W = q.shape[2], R = W - kDr;
  Array<double> out({n, H, R});
  for (int64_t t = 0; t < n; ++t)
    for (int64_t h = 0; h < H; ++h) {
      std::vector<double> p;
      double top = -INFINITY, total = 0;
      for (int64_t k = 0; k <= t; ++k) {
        double score = 0;
        for (int64_t d = 0; d < W; ++d) score += q[(t * H + h) * W + d] * latent(k, d);
        p.push_back(score * kScale);
        top = std::max(top, p.back());
      }
      for (double& v : p) total += v = std::exp(v - top);
      for (int64_t k = 0; k <= t; ++k)
        for (int64_t d = 0; d < R; ++d)
          out[(t * H + h) * R + d] += p[static_cast<size_t>(k)] / total * latent(k, d);
    }
  return out;
}

// Runs sequences of the given lengths in steps of at most `chunk` tokens each; out of each [n,H,R].
std::vector<Tensor> run(Machine& machine, DType dtype, const std::vector<int64_t>& lengths,
                        int64_t H, int64_t chunk, int64_t R = kR) {
  const auto S = static_cast<int64_t>(lengths.size()), W = R + kDr;
  const ops::LatentPages cache = make_cache(machine, dtype, S, 4, W);
  std::vector<Tensor> out, q, latent;
  for (int64_t s = 0; s < S; ++s) {
    const int64_t n = lengths[static_cast<size_t>(s)];
    out.push_back(machine.tensor(dtype, {n, H, R}));
    q.push_back(machine.put(query_of(s, n, H, dtype, W), dtype));
    latent.push_back(machine.put(latent_of(s, n, dtype, W), dtype));
  }
  const auto copy = [](const Tensor& from, const Tensor& to) {
    if (from.num_bytes() > 0)
      std::memcpy(to.raw(), from.raw(), static_cast<size_t>(from.num_bytes()));
  };
  for (int64_t start = 0; start < 256; start += chunk) {
    std::vector<Part> parts;
    int64_t T = 0;
    for (int64_t n : lengths) {
      parts.push_back({start, std::max<int64_t>(0, std::min(chunk, n - start))});
      T += parts.back().count;
    }
    if (T == 0) break;
    const Packed seq = packed(machine, parts);
    Tensor step_q = machine.tensor(dtype, {T, H, W}), step_out = machine.tensor(dtype, {T, H, R});
    Tensor step_latent = machine.tensor(dtype, {T, W});
    int64_t at = 0;
    for (size_t s = 0; s < parts.size(); at += parts[s++].count) {
      if (parts[s].count == 0) continue;
      copy(q[s].rows(start, parts[s].count), step_q.rows(at, parts[s].count));
      copy(latent[s].rows(start, parts[s].count), step_latent.rows(at, parts[s].count));
    }
    ops::latent_cache_write(machine.ctx, seq, step_latent, cache);
    ops::latent_attention(machine.ctx, seq, kScale, step_q, cache, step_out);
    at = 0;
    for (size_t s = 0; s < parts.size(); at += parts[s++].count)
      if (parts[s].count > 0)
        copy(step_out.rows(at, parts[s].count), out[s].rows(start, parts[s].count));
  }
  return out;
}

TEST(LatentAttention, MatchesThePlainLoop) {
  Machine machine(2);
  for (const DType dtype : kOpTypes)
    for (int64_t H : {1, 3, 100}) {
      if (H == 100 && dtype == DType::kF64) continue;  // more heads than rows of a task: once
      const std::vector<int64_t> lengths =
          H == 100 ? std::vector<int64_t>{3, 66} : std::vector<int64_t>{1, 63, 64, 65, 150, 0};
      // By themselves, tokens of up to 32 heads are a few rows.
      for (int64_t R : {kR, kWholeR})
        for (int64_t chunk : {1, 256}) {
          if (R == kR && chunk == 1) continue;
          const int64_t W = R + kDr;
          const std::vector<Tensor> out = run(machine, dtype, lengths, H, chunk, R);
          for (size_t s = 0; s < lengths.size(); ++s) {
            const auto i = static_cast<int64_t>(s);
            expect_close(
                concat("sequence ", i), values(out[s]),
                reference(query_of(i, lengths[s], H, dtype, W), latent_of(i, lengths[s], dtype, W)),
                op_bound(dtype, static_cast<double>(W + lengths[s]), 4));
          }
        }
    }
}

// The same bits whether tokens come one by one, in chunks, or all at once; alone or together.
TEST(LatentAttention, DoesNotDependOnHowTokensCome) {
  Machine machine(2);
  const std::vector<int64_t> lengths = {130, 7, 64};
  for (const DType dtype : kOpTypes)
    for (int64_t R : {kR, kWholeR})
      for (int64_t H : {3, 17}) {
        const std::vector<Tensor> want = run(machine, dtype, lengths, H, 256, R);
        for (int64_t chunk : {1, 3, 17, 64, 65}) {
          const std::vector<Tensor> got = run(machine, dtype, lengths, H, chunk, R);
          for (size_t s = 0; s < lengths.size(); ++s)
            expect_bits_equal(concat("in steps of ", chunk, ", sequence ", s), got[s], want[s]);
        }
        for (int64_t chunk : {1, 256})
          expect_bits_equal("sequence 0 alone", run(machine, dtype, {130}, H, chunk, R)[0],
                            want[0]);
      }
}

TEST(LatentAttention, SameBitsAtAllThreadCounts) {
  for (const DType dtype : kOpTypes)
    expect_same_at_all_thread_counts([&](Machine& machine) {
      return run(machine, dtype, {100, 1, 70}, 2, 256);
    });
  // One sequence, token by token: the threads share a token's pages and columns.
  for (const DType dtype : kOpTypes)
    expect_same_at_all_thread_counts(
        [&](Machine& machine) { return run(machine, dtype, {140}, 16, 1, kWholeR); });
}

// A later write to a position replaces what was there, as a rejected draft is replaced.
TEST(LatentAttention, WritingAgainReplaces) {
  Machine machine(1);
  const ops::LatentPages cache = make_cache(machine, DType::kF32, 1, 2);
  const Packed seq = packed(machine, {{0, 70}});
  const Tensor wrong = machine.put(latent_of(5, 70, DType::kF32), DType::kF32),
               right = machine.put(latent_of(0, 70, DType::kF32), DType::kF32);
  ops::latent_cache_write(machine.ctx, seq, wrong, cache);
  ops::latent_cache_write(machine.ctx, seq, right, cache);
  Tensor out = machine.tensor(DType::kF32, {70, 2, kR});
  ops::latent_attention(machine.ctx, seq, kScale,
                        machine.put(query_of(0, 70, 2, DType::kF32), DType::kF32), cache, out);
  expect_bits_equal("out", out, run(machine, DType::kF32, {70}, 2, 256)[0]);
}

TEST(LatentAttention, EveryInstructionSet) { expect_same_tests_pass_on_every_isa(); }

TEST(LatentAttention, NamesTheWrongArgument) {
  Machine machine(1);
  const ops::LatentPages cache = make_cache(machine, DType::kF32, 1, 1);
  const Packed seq = packed(machine, {{0, 2}});
  Tensor q = machine.tensor(DType::kF32, {2, 1, kW}), out = machine.tensor(DType::kF32, {2, 1, kR});
  EXPECT_ERROR(
      ops::latent_cache_write(machine.ctx, seq, machine.tensor(DType::kF32, {2, kW + 1}), cache),
      "latent_cache_write: the cache is f32 [2, 64, 10]; it must be [pages, 64, 11]");
  EXPECT_ERROR(
      ops::latent_cache_write(machine.ctx, seq, machine.tensor(DType::kF32, {3, kW}), cache),
      "latent_cache_write: the sequences have 2 tokens, the tensors 3");
  EXPECT_ERROR(ops::latent_attention(machine.ctx, seq, kScale,
                                     machine.tensor(DType::kBF16, {2, 1, kW}), cache, out),
               "latent_attention: the cache is f32 [2, 64, 10]; it must be bf16");
  Tensor wide = machine.tensor(DType::kF32, {2, 1, kW + 1});
  EXPECT_ERROR(ops::latent_attention(machine.ctx, seq, kScale, q, cache, wide),
               "latent_attention: out is f32 [2, 1, 11] for q f32 [2, 1, 10]");
  ops::LatentPages unmapped = cache;
  unmapped.table = machine.put({-1}, {1, 1});
  EXPECT_ERROR(ops::latent_attention(machine.ctx, seq, kScale, q, unmapped, out),
               "position 0 has no page in the cache");
  unmapped.table = machine.put({0, 0}, {2, 1});
  EXPECT_ERROR(ops::latent_attention(machine.ctx, seq, kScale, q, unmapped, out),
               "latent_attention: the page table is i32 [2, 1] for 1 sequences");
}

}  // namespace
}  // namespace hadal::test
