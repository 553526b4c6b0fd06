// Absorbed MLA decode: checks against an f64 computation on the host, then the table of times.
//
//   mla_decode_bench [--bf16 | --fp8] [--quick | --sweep | --one HEADS BATCH QUERIES CONTEXT]
//
// Over both formats of the cache's rows, or the one that is named. FlashMLA's figures are those of
// its BF16 cache: it has no dense decode over another. Checked for each case: every element
// written, distance to f64, the same bits twice, and in the invariant mode the same bits alone as
// in the batch. Unused cache rows hold NaN.
// SPDX-License-Identifier: Apache-2.0
#include <cuda_fp8.h>

#include <cstring>
#include <numeric>
#include <random>
#include <thread>

#include "bench/cuda/harness.cuh"
#include "ops/cuda/mla_decode/config.h"

namespace {

using namespace hadal::bench;
using hadal::cuda::CacheRows;
using hadal::cuda::kV3Fp8Row;
using hadal::cuda::MlaDecodeArgs;
using hadal::cuda::MlaDecodeConfig;
using hadal::cuda::MlaDecodeSplit;
using bf16 = __nv_bfloat16;
using C = MlaDecodeConfig;

const char* name_of(CacheRows rows) { return rows == CacheRows::kFp8 ? "fp8" : "bf16"; }
int64_t row_bytes(CacheRows rows) {
  return rows == CacheRows::kFp8 ? kV3Fp8Row.bytes() : C::kWidth * 2;
}

// Bytes of 0xff are NaN in bf16, e4m3 and f32.
__global__ void poison_tail_kernel(uint8_t* pages, int64_t bytes, const int* table,
                                   const int* length, int stride) {
  const int seq = static_cast<int>(blockIdx.x), used = length[seq];
  const int64_t page = table[seq * stride + (used - 1) / C::kPage];
  const int first = (used - 1) % C::kPage + 1;
  for (int64_t i = threadIdx.x; i < (C::kPage - first) * bytes; i += blockDim.x)
    pages[(page * C::kPage + first) * bytes + i] = 0xff;
}

// FP8 rows with values of about magnitude one and scales of three kinds; a warp a row.
__global__ void fill_fp8_rows_kernel(uint8_t* rows, int64_t count, uint64_t seed) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
  for (int64_t r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; r < count; r += step) {
    uint8_t* const row = rows + r * kV3Fp8Row.bytes();
    for (int i = lane; i < C::kLatent; i += 32)
      row[i] = __nv_cvt_float_to_fp8(3.2f + 60.0f * gaussian(seed, r * C::kWidth + i),
                                     __NV_SATFINITE, __NV_E4M3);
    if (lane < kV3Fp8Row.num_scales())
      reinterpret_cast<float*>(row + kV3Fp8Row.scale_at())[lane] =
          exp2f(-5.0f - static_cast<float>((r + lane) % 3));
    for (int i = lane; i < C::kRope; i += 32)
      reinterpret_cast<bf16*>(row + kV3Fp8Row.key_at())[i] =
          __float2bfloat16(0.05f + gaussian(seed, r * C::kWidth + C::kLatent + i));
  }
}

// What `count` rows hold, as f32.
std::vector<float> values_of(CacheRows rows, const std::vector<uint8_t>& raw, int count) {
  std::vector<float> values;
  for (int r = 0; r < count; ++r) {
    const uint8_t* const row = raw.data() + r * row_bytes(rows);
    const auto* const elements = reinterpret_cast<const bf16*>(row);
    const auto* const key = rows == CacheRows::kFp8
                                ? reinterpret_cast<const bf16*>(row + kV3Fp8Row.key_at())
                                : elements + C::kLatent;
    for (int i = 0; i < C::kLatent; ++i) {
      if (rows == CacheRows::kBF16) {
        values.push_back(__bfloat162float(elements[i]));
        continue;
      }
      __nv_fp8_e4m3 element;
      element.__x = row[i];
      values.push_back(static_cast<float>(element) *
                       reinterpret_cast<const float*>(row + kV3Fp8Row.scale_at())[i / 128]);
    }
    for (int i = 0; i < C::kRope; ++i) values.push_back(__bfloat162float(key[i]));
  }
  return values;
}

// One problem: `sets` independent caches and queries for rotation.
struct Problem {
  CacheRows format;
  int num_seqs, num_queries, num_heads, stride, sets;
  std::vector<int> length, table;
  int64_t pages_of_set, rows;
  Buffer<bf16> q, out;
  Buffer<uint8_t> cache;
  Buffer<int> d_table, d_length, d_offsets, d_positions;

  Problem(CacheRows rows_of_cache, int seqs, int queries, int heads, std::vector<int> lengths,
          int num_sets)
      : format(rows_of_cache),
        num_seqs(seqs),
        num_queries(queries),
        num_heads(heads),
        stride((*std::max_element(lengths.begin(), lengths.end()) + C::kPage - 1) / C::kPage),
        sets(num_sets),
        length(std::move(lengths)),
        pages_of_set(static_cast<int64_t>(seqs) * stride),
        rows(static_cast<int64_t>(seqs) * queries * heads),
        q(rows * C::kWidth * sets),
        out(rows * C::kLatent),
        cache(pages_of_set * sets * C::kPage * row_bytes(format)),
        d_table(pages_of_set * sets),
        d_length(seqs),
        d_offsets(seqs + 1),
        d_positions(static_cast<int64_t>(seqs) * queries) {
    std::mt19937 random(static_cast<unsigned>(seqs * 131 + queries * 17 + heads));
    for (int s = 0; s < sets; ++s) {
      std::vector<int> order(static_cast<size_t>(pages_of_set));
      std::iota(order.begin(), order.end(), static_cast<int>(s * pages_of_set));
      std::shuffle(order.begin(), order.end(), random);
      table.insert(table.end(), order.begin(), order.end());
    }
    d_table.copy_from(table);
    d_length.copy_from(length);
    std::vector<int> offsets{0}, positions;
    for (int total : length) {
      offsets.push_back(offsets.back() + queries);
      for (int i = 0; i < queries; ++i) positions.push_back(total - queries + i);
    }
    d_offsets.copy_from(offsets);
    d_positions.copy_from(positions);
    fill_gaussian(q, 0.0f, 1.0f, random());
    const int64_t cached = pages_of_set * sets * C::kPage;
    if (format == CacheRows::kFp8)
      fill_fp8_rows_kernel<<<1056, 256>>>(cache.get(), cached, random());
    else
      fill_gaussian_kernel<<<1056, 256>>>(reinterpret_cast<bf16*>(cache.get()), cached * C::kWidth,
                                          0.05f, 1.0f, random());
    for (int s = 0; s < sets; ++s) {
      poison_tail_kernel<<<seqs, 128>>>(cache.get(), row_bytes(format),
                                        d_table.get() + s * pages_of_set, d_length.get(), stride);
    }
    HADAL_CHECK_CUDA(cudaDeviceSynchronize());
  }
  MlaDecodeArgs args(int set) const {
    MlaDecodeArgs a{};
    a.rows = format;
    a.q = q.get() + set * rows * C::kWidth;
    a.pages = cache.get();
    a.table = d_table.get() + set * pages_of_set;
    a.offsets = d_offsets.get();
    a.positions = d_positions.get();
    a.out = out.get();
    a.num_pages = pages_of_set * sets;
    a.num_seqs = num_seqs;
    a.num_queries = num_queries;
    a.num_tokens = num_seqs * num_queries;
    a.num_heads = num_heads;
    a.table_stride = stride;
    a.num_sms = num_sms();
    a.scale = 0.07f;
    return a;
  }
  int max_length() const { return *std::max_element(length.begin(), length.end()); }
};

struct Scratch {
  Buffer<uint16_t> out;
  Buffer<float> lse;
  explicit Scratch(const MlaDecodeArgs& a)
      : out(partial_rows(a) * C::kLatent), lse(partial_rows(a)) {}
  static int64_t partial_rows(const MlaDecodeArgs& a) {
    return a.max_splits > 1
               ? static_cast<int64_t>(a.num_seqs) * a.max_splits * a.num_queries * a.num_heads
               : 1;
  }
};

std::vector<bf16> run_once(const Problem& problem, MlaDecodeArgs a, MlaDecodeSplit split) {
  hadal::cuda::mla_decode_plan(a, split, problem.max_length());
  Scratch scratch(a);
  scratch.out.fill_bytes(0xFF);
  scratch.lse.fill_bytes(0xFF);
  problem.out.fill_bytes(0xFF);
  a.partial_out = scratch.out.get();
  a.partial_lse = scratch.lse.get();
  hadal::cuda::mla_decode_sm90(a, nullptr);
  HADAL_CHECK_CUDA(cudaDeviceSynchronize());
  return problem.out.to_host();
}

// Distance of `rows_per_seq` random rows of each of a few sequences to f64.
Distance distance(const Problem& problem, const std::vector<bf16>& got, int max_seqs,
                  int rows_per_seq) {
  const int seq_rows = problem.num_queries * problem.num_heads;
  const int seqs = std::min(problem.num_seqs, max_seqs);
  std::vector<Distance> parts(static_cast<size_t>(seqs));
  std::vector<std::thread> threads;
  const auto q = problem.q.to_host(0, problem.rows * C::kWidth);
  for (int n = 0; n < seqs; ++n) {
    const int seq = static_cast<int>(static_cast<int64_t>(n) * problem.num_seqs / seqs);
    const int total = problem.length[static_cast<size_t>(seq)];
    std::vector<float> kv;
    for (int page = 0; page * C::kPage < total; ++page) {
      const int tokens = std::min(C::kPage, total - page * C::kPage);
      const int64_t at = problem.table[static_cast<size_t>(seq * problem.stride + page)];
      const int64_t bytes = row_bytes(problem.format);
      const auto part = values_of(
          problem.format, problem.cache.to_host(at * C::kPage * bytes, tokens * bytes), tokens);
      kv.insert(kv.end(), part.begin(), part.end());
    }
    threads.emplace_back([&, n, seq, total, kv = std::move(kv)] {
      std::mt19937 random(static_cast<unsigned>(n + 1));
      std::vector<double> score(static_cast<size_t>(total)), acc(C::kLatent);
      for (int r = 0; r < rows_per_seq; ++r) {
        const int row = rows_per_seq >= seq_rows
                            ? r % seq_rows
                            : static_cast<int>(random() % static_cast<unsigned>(seq_rows));
        const int visible = total - problem.num_queries + row / problem.num_heads + 1;
        const int64_t at = static_cast<int64_t>(seq) * seq_rows + row;
        double top = -INFINITY, sum = 0.0;
        for (int t = 0; t < visible; ++t) {
          double dot = 0.0;
          for (int i = 0; i < C::kWidth; ++i) {
            dot +=
                static_cast<double>(__bfloat162float(q[static_cast<size_t>(at * C::kWidth + i)])) *
                static_cast<double>(kv[static_cast<size_t>(t * C::kWidth + i)]);
          }
          score[static_cast<size_t>(t)] = dot * static_cast<double>(0.07f);
          top = std::max(top, score[static_cast<size_t>(t)]);
        }
        std::fill(acc.begin(), acc.end(), 0.0);
        for (int t = 0; t < visible; ++t) {
          const double w = std::exp(score[static_cast<size_t>(t)] - top);
          sum += w;
          for (int i = 0; i < C::kLatent; ++i)
            acc[static_cast<size_t>(i)] +=
                w * static_cast<double>(kv[static_cast<size_t>(t * C::kWidth + i)]);
        }
        for (int i = 0; i < C::kLatent; ++i) {
          parts[static_cast<size_t>(n)].add(
              static_cast<double>(__bfloat162float(got[static_cast<size_t>(at * C::kLatent + i)])),
              acc[static_cast<size_t>(i)] / sum);
        }
      }
    });
  }
  for (auto& t : threads) t.join();
  Distance all;
  for (const auto& p : parts)
    all.error += p.error, all.norm += p.norm, all.bad += p.bad,
        all.worst = std::max(all.worst, p.worst);
  for (const auto& v : got) all.bad += !std::isfinite(__bfloat162float(v));
  return all;
}

bool same_bits(const std::vector<bf16>& a, const std::vector<bf16>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(bf16)) == 0;
}

int check(CacheRows rows, const std::vector<int>& lengths, int queries, int heads) {
  Problem problem(rows, static_cast<int>(lengths.size()), queries, heads, lengths, 1);
  int failures = 0;
  for (auto split : {MlaDecodeSplit::kInvariant, MlaDecodeSplit::kFastest}) {
    const bool invariant = split == MlaDecodeSplit::kInvariant;
    const auto first = run_once(problem, problem.args(0), split);
    const bool twice = same_bits(first, run_once(problem, problem.args(0), split));
    const Distance d = distance(problem, first, 16, 12);
    bool alone = true;
    if (invariant) {
      for (int seq = 0; seq < problem.num_seqs; ++seq) {
        MlaDecodeArgs a = problem.args(0);
        const int64_t row = static_cast<int64_t>(seq) * queries * heads;
        a.q = static_cast<const bf16*>(a.q) + row * C::kWidth;
        a.table += seq * problem.stride;
        a.positions += seq * queries;  // offsets: all sequences have as many query tokens
        a.num_seqs = 1;
        a.num_tokens = queries;
        const auto single = run_once(problem, a, split);
        alone = alone &&
                std::memcmp(single.data(), first.data() + row * C::kLatent,
                            static_cast<size_t>(queries * heads * C::kLatent) * sizeof(bf16)) == 0;
      }
    }
    const bool good = d.relative() < 5e-3 && twice && alone;
    failures += !good;
    std::printf(
        "check %-4s heads %3d queries %d seqs %2d first length %5d %-9s distance %.2e twice %s "
        "alone %s "
        "%s\n",
        name_of(rows), heads, queries, problem.num_seqs, lengths[0],
        invariant ? "invariant" : "fastest", d.relative(), twice ? "same" : "DIFFERS",
        alone ? "same" : "DIFFERS", good ? "ok" : "FAILED");
  }
  std::fflush(stdout);
  return failures;
}

struct Row {
  int heads, batch, queries, context;
  double peer_us;  // FlashMLA on the same kind of card; 0: not measured
};

void time_row(CacheRows rows, const Row& row, double bandwidth) {
  const double kv_bytes =
      static_cast<double>(row.batch) * row.context * static_cast<double>(row_bytes(rows));
  const int sets = std::clamp(static_cast<int>(256e6 / kv_bytes) + 1, 1, 64);
  Problem problem(rows, row.batch, row.queries, row.heads,
                  std::vector<int>(static_cast<size_t>(row.batch), row.context), sets);
  const double flops =
      2.0 * row.batch * row.context * row.heads * row.queries * (C::kWidth + C::kLatent);
  const double floor_us = std::max(kv_bytes / bandwidth, flops / 790e6);
  for (auto split : {MlaDecodeSplit::kFastest, MlaDecodeSplit::kInvariant}) {
    std::vector<MlaDecodeArgs> calls;
    for (int s = 0; s < sets; ++s) calls.push_back(problem.args(s));
    for (auto& a : calls) hadal::cuda::mla_decode_plan(a, split, row.context);
    Scratch scratch(calls[0]);
    for (auto& a : calls) a.partial_out = scratch.out.get(), a.partial_lse = scratch.lse.get();
    const int num_calls = kv_bytes < 300e6 ? 32 : 8;
    const double us = time_graph(num_calls, 20, [&](int i, cudaStream_t stream) {
      hadal::cuda::mla_decode_sm90(calls[static_cast<size_t>(i % sets)], stream);
    });
    const double alone = time_single(20, [&](int i, cudaStream_t stream) {
      hadal::cuda::mla_decode_sm90(calls[static_cast<size_t>(i % sets)], stream);
    });
    std::printf(
        "| %s | %d | %d | %d | %d | %s | %d | %.1f | %.0f | %.0f | %.0f%% | %.2f | %.1f | %.2f |\n",
        name_of(rows), row.heads, row.batch, row.queries, row.context,
        split == MlaDecodeSplit::kFastest ? "fastest" : "invariant", calls[0].max_splits, us,
        flops / us * 1e-6, kv_bytes / us * 1e-3, 100.0 * floor_us / us, row.peer_us / us, alone,
        row.peer_us / alone);
    std::fflush(stdout);
  }
}

// Time against pages per split, to choose the rules in config.h.
void sweep_row(CacheRows rows, const Row& row) {
  const double kv_bytes =
      static_cast<double>(row.batch) * row.context * static_cast<double>(row_bytes(rows));
  const int sets = std::clamp(static_cast<int>(256e6 / kv_bytes) + 1, 1, 64);
  Problem problem(rows, row.batch, row.queries, row.heads,
                  std::vector<int>(static_cast<size_t>(row.batch), row.context), sets);
  std::printf("sweep %s heads %d batch %d queries %d context %d: pages per split us:",
              name_of(rows), row.heads, row.batch, row.queries, row.context);
  const int pages = row.context / C::kPage;
  for (int per_split = 1; per_split <= pages; per_split *= 2) {
    if (pages / per_split > 128 || (row.batch > 16 && pages / per_split > 16)) continue;
    std::vector<MlaDecodeArgs> calls;
    for (int s = 0; s < sets; ++s) calls.push_back(problem.args(s));
    for (auto& a : calls) a.pages_per_split = per_split, a.max_splits = pages / per_split;
    Scratch scratch(calls[0]);
    for (auto& a : calls) a.partial_out = scratch.out.get(), a.partial_lse = scratch.lse.get();
    const double us = time_graph(kv_bytes < 300e6 ? 32 : 8, 20, [&](int i, cudaStream_t stream) {
      hadal::cuda::mla_decode_sm90(calls[static_cast<size_t>(i % sets)], stream);
    });
    std::printf(" %d: %.1f", per_split, us);
  }
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) try {
  std::vector<CacheRows> formats = {CacheRows::kBF16, CacheRows::kFp8};
  for (CacheRows rows : {CacheRows::kBF16, CacheRows::kFp8}) {
    if (argc < 2 || argv[1] != std::string("--") + name_of(rows)) continue;
    formats = {rows};
    --argc, ++argv;
    break;
  }
  const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
  const bool sweep = argc > 1 && std::strcmp(argv[1], "--sweep") == 0;
  if (sweep) {
    for (const Row& row :
         {Row{128, 1, 1, 4096, 0}, Row{128, 1, 1, 32768, 0}, Row{128, 16, 1, 4096, 0},
          Row{128, 64, 1, 4096, 0}, Row{128, 128, 1, 8192, 0}, Row{128, 128, 2, 8192, 0},
          Row{16, 1, 1, 4096, 0}, Row{16, 1, 1, 32768, 0}, Row{16, 16, 1, 4096, 0},
          Row{16, 64, 1, 4096, 0}, Row{16, 128, 1, 8192, 0}}) {
      for (CacheRows rows : formats) sweep_row(rows, row);
    }
    return 0;
  }
  if (argc > 1 && std::strcmp(argv[1], "--one") == 0) {  // heads batch queries context
    Problem problem(formats[0], std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[2]),
                    std::vector<int>(static_cast<size_t>(std::atoi(argv[3])), std::atoi(argv[5])),
                    1);
    run_once(problem, problem.args(0), MlaDecodeSplit::kFastest);
    return 0;
  }
  print_device();
  int failures = 0;
  for (CacheRows rows : formats) {
    failures += check(rows, {1, 63, 64, 65}, 1, 16);
    failures += check(rows, {4, 5, 129, 1000, 4097}, 4, 16);
    failures += check(rows, {4096}, 1, 16);
    failures += check(rows, {2, 64, 66, 700}, 2, 128);
    failures += check(rows, {1, 4099, 127, 8192}, 1, 128);
    failures += check(rows, {3, 777, 190}, 3, 40);
    failures += check(rows, {32768, 5, 9000}, 1, 64);
  }
  std::printf(failures ? "%d CHECKS FAILED\n" : "all checks passed\n", failures);
  const double copy = copy_ceiling();
  std::printf("copy ceiling %.2f TB/s\n", copy);
  std::printf(
      "| rows | heads | batch | query tokens | context | mode | splits | us | TFLOPS | GB/s | of "
      "floor | "
      "FlashMLA / ours | us alone | FlashMLA / ours alone "
      "|\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  const std::vector<Row> rows = {
      {128, 1, 1, 4096, 52.7},    {128, 1, 1, 32768, 68.2},   {128, 16, 1, 4096, 74.7},
      {128, 64, 1, 4096, 153.6},  {128, 128, 1, 4096, 276.3}, {128, 128, 1, 8192, 543.7},
      {128, 128, 2, 4096, 472.4}, {128, 128, 2, 8192, 870.6}, {128, 128, 2, 16384, 1711.3},
      {16, 1, 1, 4096, 52.1},     {16, 1, 1, 32768, 72.2},    {16, 16, 1, 4096, 60.7},
      {16, 64, 1, 4096, 138.4},   {16, 128, 1, 8192, 443.7},  {16, 128, 2, 8192, 444.7},
      {16, 128, 4, 8192, 0}};
  for (size_t i = 0; i < rows.size(); ++i) {
    for (CacheRows format : formats)
      if (!quick || i % 3 == 0) time_row(format, rows[i], copy * 1e6);
  }
  return failures != 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 2;
}
