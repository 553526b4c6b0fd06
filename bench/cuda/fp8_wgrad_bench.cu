// FP8 weight gradients: checked against f64 sums, then timed at DeepSeek-V3's shapes.
//
//   N rows of the gradient   K columns   T tokens   E experts
// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "bench/cuda/harness.cuh"
#include "ops/cuda/fp8_wgrad/config.h"

namespace {

using namespace hadal::bench;
using hadal::cuda::Fp8WgradArgs;
using e4m3 = __nv_fp8_e4m3;

int num_sms() {
  int count;
  HADAL_CHECK_CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

struct Problem {
  int experts, n, k, pages, sets;
  Buffer<e4m3> a, b;
  Buffer<float> scale_a, scale_b, c;
  Buffer<int> begin;

  // `tokens` of each expert, whole pages.
  Problem(int experts_, int n_, int k_, int tokens, int sets_)
      : experts(experts_),
        n(n_),
        k(k_),
        pages(experts_ * tokens / 128),
        sets(sets_),
        a(int64_t{sets} * pages * n * 128),
        b(int64_t{sets} * pages * k * 128),
        scale_a(int64_t{sets} * pages * n),
        scale_b(int64_t{sets} * pages * k),
        c(int64_t{experts} * n * k),
        begin(experts + 1) {
    fill_gaussian(a, 0.0f, 100.0f, 1);
    fill_gaussian(b, 0.0f, 100.0f, 2);
    fill_uniform(scale_a, 0.5e-3f, 1.5e-3f, 3);
    fill_uniform(scale_b, 0.5e-3f, 1.5e-3f, 4);
    c.fill_bytes(0);
    std::vector<int> first;
    for (int e = 0; e <= experts; ++e) first.push_back(e * tokens / 128);
    begin.copy_from(first);
    HADAL_CHECK_CUDA(cudaDeviceSynchronize());
  }
  Fp8WgradArgs args(int set) const {
    Fp8WgradArgs g{};
    g.a = a.get() + int64_t{set} * pages * n * 128;
    g.b = b.get() + int64_t{set} * pages * k * 128;
    g.scale_a = scale_a.get() + int64_t{set} * pages * n;
    g.scale_b = scale_b.get() + int64_t{set} * pages * k;
    g.c = c.get();
    g.c_row_stride = k;
    g.c_batch_stride = int64_t{n} * k;
    g.accumulate = 1;
    g.n = n;
    g.k = k;
    g.pages = pages;
    g.batches = experts;
    g.page_begin = begin.get();
    g.num_sms = num_sms();
    return g;
  }
};

bool check(int experts, int n, int k, int tokens) {
  Problem p(experts, n, k, tokens, 1);
  hadal::cuda::fp8_wgrad_sm90(p.args(0), nullptr);
  HADAL_CHECK_CUDA(cudaDeviceSynchronize());
  const auto a = p.a.to_host(), b = p.b.to_host();
  const auto sa = p.scale_a.to_host(), sb = p.scale_b.to_host(), c = p.c.to_host();
  double error = 0.0, norm = 0.0;
  for (int sample = 0; sample < 400; ++sample) {
    const int e = sample % experts, row = sample * 977 % n, col = sample * 631 % k;
    double sum = 0.0;
    for (int page = e * tokens / 128; page < (e + 1) * tokens / 128; ++page)
      for (int t = 0; t < 128; ++t)
        sum += static_cast<double>(static_cast<float>(a[(int64_t{page} * n + row) * 128 + t])) *
               static_cast<double>(static_cast<float>(b[(int64_t{page} * k + col) * 128 + t])) *
               static_cast<double>(sa[int64_t{page} * n + row]) *
               static_cast<double>(sb[int64_t{page} * k + col]);
    const double got = static_cast<double>(c[(int64_t{e} * n + row) * k + col]);
    error += (got - sum) * (got - sum);
    norm += sum * sum;
  }
  const double relative = std::sqrt(error / norm);
  std::printf("check E %d N %d K %d T %d: relative error %.2e %s\n", experts, n, k, tokens,
              relative, relative < 1e-3 ? "ok" : "FAILED");
  return relative < 1e-3;
}

void time_row(int experts, int n, int k, int tokens) {
  const double bytes = static_cast<double>(experts) * tokens * (n + k);
  const int sets = std::clamp(static_cast<int>(128e6 / bytes) + 1, 1, 8);
  Problem p(experts, n, k, tokens, sets);
  const double us = time_graph(16, 10, [&](int call, cudaStream_t stream) {
    hadal::cuda::fp8_wgrad_sm90(p.args(call % p.sets), stream);
  });
  const double flops = 2.0 * experts * n * k * static_cast<double>(tokens);
  std::printf("| %d x %d | %d | %d | %.1f | %.0f |\n", experts, tokens, n, k, us, flops / us / 1e6);
  std::fflush(stdout);
}

}  // namespace

int main() {
  bool ok = check(1, 576, 7168, 4096);
  ok = check(4, 2048, 7168, 1024) && ok;
  ok = check(3, 260, 132, 384) && ok;
  std::printf("| experts x tokens | N | K | us | TFLOPS |\n|---|---|---|---|---|\n");
  for (const auto& [n, k] : {std::pair{2112, 7168},
                             {24576, 1536},
                             {32768, 512},
                             {7168, 16384},
                             {4096, 7168},
                             {7168, 2048}})
    time_row(1, n, k, 4096);
  time_row(4, 4096, 7168, 8192);
  time_row(4, 7168, 2048, 8192);
  return ok ? 0 : 1;
}
