// Block-scaled FP8 matrix product: checks against f64, then times beside cuBLASLt in the same run.
//
//   fp8_gemm_bench [--quick | --accuracy | --one EXPERTS ROWS N K]
//
//   E experts   N output width   K inner width
//
// Checked: sampled rows and the first and last row of each expert against f64, rows past a count
// untouched, the same bits twice, rows the same bits whatever the other experts hold.
// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <memory>
#include <numeric>
#include <random>

#include "bench/cuda/fp8_accuracy.cuh"
#include "ops/cuda/fp8_gemm/config.h"

namespace {

using namespace hadal::bench;
using hadal::cuda::Fp8GemmArgs;
using bf16 = __nv_bfloat16;
using e4m3 = __nv_fp8_e4m3;

// Sums in f64: one block a sampled row, threads over N.
__global__ void reference_kernel(const Fp8GemmArgs args, const int* rows, const int* experts,
                                 double* out) {
  const int64_t row = rows[blockIdx.x];
  const int64_t expert = experts[blockIdx.x];
  const e4m3* a = static_cast<const e4m3*>(args.a) + row * args.k;
  const int k_blocks = args.k / 128, n_blocks = (args.n + 127) / 128;
  for (int n = static_cast<int>(threadIdx.x); n < args.n; n += static_cast<int>(blockDim.x)) {
    const e4m3* w = static_cast<const e4m3*>(args.w) + (expert * args.n + n) * args.k;
    double sum = 0.0;
    for (int k = 0; k < args.k; ++k) {
      const double scale =
          static_cast<double>(args.scale_a[(k / 128) * args.scale_stride + row]) *
          static_cast<double>(args.scale_w[(expert * n_blocks + n / 128) * k_blocks + k / 128]);
      sum += scale * static_cast<double>(static_cast<float>(a[k])) *
             static_cast<double>(static_cast<float>(w[k]));
    }
    out[static_cast<int64_t>(blockIdx.x) * args.n + n] = sum;
  }
}

struct Problem {
  int num_experts, n, k, sets;
  std::vector<int> counts, page_begin, page;
  int64_t slab_rows;
  Buffer<e4m3> a, w;
  Buffer<float> scale_a, scale_w;
  Buffer<bf16> c;
  Buffer<int> d_counts, d_begin, d_page;

  static std::vector<int> begins(const std::vector<int>& counts) {
    std::vector<int> begin(1, 0);
    for (int count : counts) begin.push_back(begin.back() + (count + 127) / 128);
    return begin;
  }
  Problem(std::vector<int> row_counts, int n_, int k_, int num_sets, bool shuffled)
      : num_experts(static_cast<int>(row_counts.size())),
        n(n_),
        k(k_),
        sets(num_sets),
        counts(std::move(row_counts)),
        page_begin(begins(counts)),
        slab_rows(static_cast<int64_t>(page_begin.back()) * 128),
        a(slab_rows * k * sets),
        w(static_cast<int64_t>(num_experts) * n * k * sets),
        scale_a(slab_rows * (k / 128) * sets),
        scale_w(static_cast<int64_t>(num_experts) * ((n + 127) / 128) * (k / 128) * sets),
        c(slab_rows * n),
        d_counts(num_experts),
        d_begin(num_experts + 1),
        d_page(page_begin.back()) {
    std::mt19937 random(static_cast<unsigned>(n * 31 + k + num_experts));
    page.resize(static_cast<size_t>(page_begin.back()));
    std::iota(page.begin(), page.end(), 0);
    if (shuffled) std::shuffle(page.begin(), page.end(), random);
    d_counts.copy_from(counts);
    d_begin.copy_from(page_begin);
    d_page.copy_from(page);
    fill_gaussian(a, 0.0f, 100.0f, random());
    fill_gaussian(w, 0.0f, 100.0f, random());
    fill_uniform(scale_a, 0.5e-2f, 1.5e-2f, random());
    fill_uniform(scale_w, 0.5e-3f, 1.5e-3f, random());
    HADAL_CHECK_CUDA(cudaDeviceSynchronize());
  }
  Fp8GemmArgs args(int set) const {
    Fp8GemmArgs g{};
    g.a = a.get() + set * slab_rows * k;
    g.scale_a = scale_a.get() + set * slab_rows * (k / 128);
    g.scale_stride = slab_rows;
    g.w = w.get() + set * static_cast<int64_t>(num_experts) * n * k;
    g.scale_w =
        scale_w.get() + set * static_cast<int64_t>(num_experts) * ((n + 127) / 128) * (k / 128);
    g.c = c.get();
    g.counts = d_counts.get();
    g.page_begin = d_begin.get();
    g.a_page = g.c_page = d_page.get();
    g.places = page_begin.back();
    g.a_pages = g.c_pages = static_cast<int>(slab_rows / 128);
    g.slab_rows = slab_rows;
    g.a_row_stride = g.w_row_stride = k;
    g.w_batch_stride = static_cast<int64_t>(n) * k;
    g.scale_w_row_stride = k / 128;
    g.scale_w_batch_stride = (n + 127) / 128 * (k / 128);
    g.c_row_stride = n;
    g.c_page_stride = 128 * static_cast<int64_t>(n);
    g.num_experts = num_experts;
    g.n = n;
    g.k = k;
    g.num_sms = num_sms();
    return g;
  }
  double flops() const { return 2.0 * std::accumulate(counts.begin(), counts.end(), 0.0) * n * k; }
};

// Sampled slab rows of every expert that has rows, first and last included.
void sample_rows(const Problem& p, int per_expert, std::vector<int>& rows,
                 std::vector<int>& experts) {
  std::mt19937 random(7);
  for (int e = 0; e < p.num_experts; ++e) {
    const int count = p.counts[static_cast<size_t>(e)];
    for (int i = 0; i < per_expert && count > 0; ++i) {
      const int r = i == 0   ? 0
                    : i == 1 ? count - 1
                             : static_cast<int>(random() % static_cast<unsigned>(count));
      rows.push_back(p.page[static_cast<size_t>(p.page_begin[static_cast<size_t>(e)] + r / 128)] *
                         128 +
                     r % 128);
      experts.push_back(e);
    }
  }
}

Distance distance(const Problem& p, const std::vector<bf16>& got) {
  std::vector<int> rows, experts;
  sample_rows(p, std::max(4, 64 / p.num_experts), rows, experts);
  Buffer<int> d_rows(static_cast<int64_t>(rows.size()), rows),
      d_experts(static_cast<int64_t>(experts.size()), experts);
  Buffer<double> want(static_cast<int64_t>(rows.size()) * p.n);
  reference_kernel<<<static_cast<unsigned>(rows.size()), 512>>>(p.args(0), d_rows.get(),
                                                                d_experts.get(), want.get());
  HADAL_CHECK_CUDA(cudaDeviceSynchronize());
  const auto ref = want.to_host();
  Distance d;
  for (size_t i = 0; i < rows.size(); ++i) {
    for (int n = 0; n < p.n; ++n) {
      d.add(static_cast<double>(
                __bfloat162float(got[static_cast<size_t>(rows[i]) * static_cast<size_t>(p.n) +
                                     static_cast<size_t>(n)])),
            ref[i * static_cast<size_t>(p.n) + static_cast<size_t>(n)]);
    }
  }
  return d;
}

std::vector<bf16> run_once(const Problem& p) {
  p.c.fill_bytes(0xFF);
  hadal::cuda::fp8_gemm_sm90(p.args(0), nullptr);
  HADAL_CHECK_CUDA(cudaDeviceSynchronize());
  return p.c.to_host();
}

int check(std::vector<int> counts, int n, int k) {
  Problem p(std::move(counts), n, k, 1, true);
  const auto first = run_once(p);
  const auto second = run_once(p);
  const bool twice = std::memcmp(first.data(), second.data(), first.size() * sizeof(bf16)) == 0;
  const Distance d = distance(p, first);
  int64_t wrong = 0;  // written where it must not be, or not written where it must
  for (int e = 0; e < p.num_experts; ++e) {
    for (int i = p.page_begin[static_cast<size_t>(e)]; i < p.page_begin[static_cast<size_t>(e) + 1];
         ++i) {
      const int used =
          p.counts[static_cast<size_t>(e)] - (i - p.page_begin[static_cast<size_t>(e)]) * 128;
      for (int r = 0; r < 128; ++r) {
        const auto* row = reinterpret_cast<const uint16_t*>(first.data()) +
                          (static_cast<int64_t>(p.page[static_cast<size_t>(i)]) * 128 + r) * p.n;
        for (int c = 0; c < p.n; ++c) wrong += (row[c] == 0xFFFF) != (r >= used);
      }
    }
  }
  const bool good = twice && wrong == 0 && d.relative() < 2.5e-3;
  std::printf("check experts %d rows %d.. N %d K %d distance %.2e twice %s misplaced %lld %s\n",
              p.num_experts, p.counts[0], n, k, d.relative(), twice ? "same" : "DIFFERS",
              static_cast<long long>(wrong), good ? "ok" : "FAILED");
  std::fflush(stdout);
  return !good;
}

// One expert of at most one page runs a kernel of its own: the same bits as the general one gives.
int check_thin(int rows, int n, int k) {
  Problem p({rows}, n, k, 1, false);
  const auto thin = run_once(p);
  p.c.fill_bytes(0xFF);
  Fp8GemmArgs g = p.args(0);
  g.slab_rows = 256;  // a second page, not in use
  g.a_pages = g.c_pages = 2;
  hadal::cuda::fp8_gemm_sm90(g, nullptr);
  HADAL_CHECK_CUDA(cudaDeviceSynchronize());
  const auto general = p.c.to_host();
  const bool same = std::memcmp(thin.data(), general.data(), thin.size() * sizeof(bf16)) == 0;
  std::printf("check thin rows %d N %d K %d %s\n", rows, n, k,
              same ? "same as general ok" : "FAILED");
  return !same;
}

// Best of the heuristics' algorithms, one call an expert; 0 where none runs.
double time_peer(const Problem& p, Peer::Mode mode, int calls) {
  const int64_t rows = p.counts[0];
  Peer peer(mode, static_cast<int>(rows), p.n, p.k, CUDA_R_16BF);
  const bool block = mode == Peer::Mode::kBlock;
  double best = 0.0;
  for (int i = 0; i < std::min(peer.algorithms(), 3); ++i) {
    const double us = time_graph(calls, i == 0 ? 20 : 10, [&](int call, cudaStream_t stream) {
      const Fp8GemmArgs g = p.args(call % p.sets);
      for (int64_t e = 0; e < p.num_experts; ++e) {
        peer.run(i, static_cast<const e4m3*>(g.a) + e * rows * p.k,
                 block ? g.scale_a + e * rows * (p.k / 128) : nullptr,
                 static_cast<const e4m3*>(g.w) + e * p.n * p.k,
                 block ? g.scale_w + e * ((p.n + 127) / 128) * (p.k / 128) : nullptr,
                 static_cast<bf16*>(g.c) + e * rows * p.n, stream);
      }
    });
    if (best == 0.0 || us < best) best = us;
  }
  return best;
}

void time_row(std::vector<int> counts, int n, int k, double published, double bandwidth) {
  const double bytes_w = static_cast<double>(counts.size()) * n * k;
  const double rows = std::accumulate(counts.begin(), counts.end(), 0.0);
  const double bytes = bytes_w + rows * k + rows * n * 2;
  const int sets = std::clamp(static_cast<int>(128e6 / bytes) + 1, 1, 32);
  Problem p(std::move(counts), n, k, sets, false);
  const int calls = bytes < 400e6 && p.flops() < 3e11 ? 32 : 8;
  const double us = time_graph(calls, 20, [&](int i, cudaStream_t stream) {
    hadal::cuda::fp8_gemm_sm90(p.args(i % p.sets), stream);
  });
  double block = 0.0, tensor = 0.0;
  if (p.counts[0] % 64 == 0) {
    try {
      block = time_peer(p, Peer::Mode::kBlock, calls);
    } catch (const std::exception& e) {
      std::printf("peer: %s\n", e.what());
    }
    try {
      tensor = time_peer(p, Peer::Mode::kTensor, calls);
    } catch (const std::exception& e) {
      std::printf("peer: %s\n", e.what());
    }
  }
  const double tera = p.flops() * 1e-6;
  const double alone = time_single(20, [&](int i, cudaStream_t stream) {
    hadal::cuda::fp8_gemm_sm90(p.args(i % p.sets), stream);
  });
  std::printf("| %d x %d | %d | %d | %.1f | %.0f | %.0f | %.0f%% | %.0f | %.0f | %.0f | %.0f |\n",
              p.num_experts, p.counts[0], n, k, us, tera / us, bytes / us * 1e-3,
              100.0 * std::max(bytes / bandwidth, tera / 1979.0) / us,
              block > 0.0 ? tera / block : 0.0, tensor > 0.0 ? tera / tensor : 0.0, tera / alone,
              published);
  std::fflush(stdout);
}

// The library at 8192 x 8192 x 8192, in TFLOPS: what this card reaches today.
void print_ceilings() {
  constexpr int kSize = 8192;
  constexpr int64_t kCount = int64_t{kSize} * kSize;
  Buffer<bf16> x(kCount), w(kCount), y(kCount);
  Buffer<e4m3> x8(kCount), w8(kCount);
  fill_gaussian(x, 0.0f, 1.0f, 1);
  fill_gaussian(w, 0.0f, 1.0f, 2);
  fill_gaussian(x8, 0.0f, 100.0f, 3);
  fill_gaussian(w8, 0.0f, 100.0f, 4);
  Peer half(Peer::Mode::kBf16, kSize, kSize, kSize, CUDA_R_16BF);
  Peer eight(Peer::Mode::kTensor, kSize, kSize, kSize, CUDA_R_16BF);
  const double half_us = time_graph(8, 10, [&](int, cudaStream_t stream) {
    half.run(0, x.get(), nullptr, w.get(), nullptr, y.get(), stream);
  });
  const double eight_us = time_graph(8, 10, [&](int, cudaStream_t stream) {
    eight.run(0, x8.get(), nullptr, w8.get(), nullptr, y.get(), stream);
  });
  const double tera = 2.0 * kSize * kSize * kSize * 1e-6;
  std::printf("cuBLASLt 8192^3: BF16 %.0f TFLOPS, FP8 with one scale %.0f TFLOPS\n", tera / half_us,
              tera / eight_us);
}

}  // namespace

int main(int argc, char** argv) try {
  const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
  if (argc > 1 && std::strcmp(argv[1], "--one") == 0) {  // experts rows N K
    Problem p(std::vector<int>(static_cast<size_t>(std::atoi(argv[2])), std::atoi(argv[3])),
              std::atoi(argv[4]), std::atoi(argv[5]), 1, false);
    run_once(p);
    return 0;
  }
  print_device();
  int failures = 0;
  failures += check({256}, 256, 128);
  failures += check({1}, 64, 256);
  failures += check({300, 0, 128, 129, 1, 513}, 512, 512);
  failures += check({77, 1000}, 2112, 7168);
  failures += check({4000, 4200, 100, 3900}, 4096, 7168);
  failures += check({4096}, 7168, 2048);
  failures += check({64}, 2112, 7168);
  failures += check({100}, 7168, 2048);
  failures += check({128}, 24576, 1536);
  failures += check_thin(1, 64, 128);
  failures += check_thin(64, 4096, 7168);
  failures += check_thin(65, 2112, 1152);
  failures += check_thin(128, 7168, 16384);
  std::printf(failures ? "%d CHECKS FAILED\n" : "all checks passed\n", failures);
  for (const bool uniform : {false, true}) {
    print_fp8_accuracy(uniform, 4096);
    print_fp8_accuracy(uniform, 16384);
  }
  if (argc > 1 && std::strcmp(argv[1], "--accuracy") == 0) return failures != 0;
  const double copy = copy_ceiling();
  std::printf("copy ceiling %.2f TB/s\n", copy);
  print_ceilings();
  std::printf(
      "| experts x rows | N | K | us | TFLOPS | GB/s | of floor | cuBLASLt block | cuBLASLt tensor "
      "| ours alone | DeepGEMM published |\n|---|---|---|---|---|---|---|---|---|---|---|\n");
  struct Row {
    int experts, rows, n, k;
    double published;
  };
  const std::vector<Row> rows = {
      {1, 4096, 2112, 7168, 1009},  {1, 4096, 24576, 1536, 1125}, {1, 4096, 32768, 512, 751},
      {1, 4096, 7168, 16384, 1426}, {1, 4096, 4096, 7168, 1265},  {1, 4096, 7168, 2048, 1168},
      {4, 8192, 4096, 7168, 1346},  {8, 4096, 4096, 7168, 1346},  {4, 8192, 7168, 2048, 1214},
      {8, 4096, 7168, 2048, 1214},  {32, 1024, 4096, 7168, 0},    {32, 1024, 7168, 2048, 0},
      {32, 64, 4096, 7168, 0},      {32, 64, 7168, 2048, 0},      {1, 128, 2112, 7168, 352},
      {1, 128, 24576, 1536, 535},   {1, 128, 32768, 512, 0},      {1, 128, 7168, 16384, 645},
      {1, 128, 4096, 7168, 533},    {1, 128, 7168, 2048, 510},    {1, 64, 2112, 7168, 206},
      {1, 64, 24576, 1536, 289},    {1, 64, 32768, 512, 0},       {1, 64, 7168, 16384, 336},
      {1, 64, 4096, 7168, 287},     {1, 64, 7168, 2048, 295}};
  for (size_t i = 0; i < rows.size(); ++i) {
    if (quick && i % 3 != 0) continue;
    const Row& r = rows[i];
    time_row(std::vector<int>(static_cast<size_t>(r.experts), r.rows), r.n, r.k, r.published,
             copy * 1e6);
  }
  return failures != 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 2;
}
