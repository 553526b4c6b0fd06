// What summing e4m3 products costs in accuracy, with and without promotion to f32 every 128 of K.
//
//   M, N sizes of the result   K inner width
//
// All scales are 1 and results f32, so that nothing but the sums differs from f64.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "bench/cuda/cublaslt.cuh"
#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/detail/wgmma.cuh"
#include "ops/cuda/fp8_gemm/config.h"

namespace hadal::bench {

// c [M, N] = a b^T on the matrix unit; the sum stays in the unit for `depth` of K. A block makes
// 64 x 128. For accuracy alone: nothing is overlapped.
__global__ void __launch_bounds__(128)
    unit_sum_kernel(const __nv_fp8_e4m3* a, const __nv_fp8_e4m3* b, float* c, int n, int k,
                    int depth) {
  using namespace hadal::cuda;
  __shared__ __align__(1024) uint8_t tile_a[64 * 128], tile_b[128 * 128];
  const int row0 = static_cast<int>(blockIdx.y) * 64, col0 = static_cast<int>(blockIdx.x) * 128;
  const auto load = [&](uint8_t* tile, const __nv_fp8_e4m3* from, int rows, int k0) {
    for (int i = static_cast<int>(threadIdx.x); i < rows * 8; i += 128) {
      const int r = i / 8, unit = i % 8;
      *reinterpret_cast<int4*>(tile + r * 128 + ((unit ^ (r & 7)) << 4)) =
          *reinterpret_cast<const int4*>(from + static_cast<int64_t>(r) * k + k0 + unit * 16);
    }
  };
  float sum[64] = {}, partial[64];
  for (int k0 = 0; k0 < k; k0 += 128) {
    load(tile_a, a + static_cast<int64_t>(row0) * k, 64, k0);
    load(tile_b, b + static_cast<int64_t>(col0) * k, 128, k0);
    async_proxy_fence();
    __syncthreads();
    mma_fence();
    for (int i = 0; i < 4; ++i)
      mma_e4m3_n128(partial, advance(descriptor_k(smem_addr(tile_a)), i * 32),
                    advance(descriptor_k(smem_addr(tile_b)), i * 32), i > 0 || k0 % depth != 0);
    mma_commit();
    mma_wait<0>();
    mma_touch(partial);
    if ((k0 + 128) % depth == 0)
      for (int i = 0; i < 64; ++i) sum[i] += partial[i];
    __syncthreads();
  }
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = 0; i < 64; ++i) {
    const int row = row0 + warp * 16 + lane / 4 + (i / 2) % 2 * 8;
    c[static_cast<int64_t>(row) * n + col0 + i / 4 * 8 + lane % 4 * 2 + i % 2] = sum[i];
  }
}

__global__ void exact_kernel(const __nv_fp8_e4m3* a, const __nv_fp8_e4m3* b, double* c, int n,
                             int k) {
  const int col = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  double sum = 0.0;
  for (int i = 0; i < k; ++i)
    sum += static_cast<double>(static_cast<float>(a[static_cast<int64_t>(blockIdx.y) * k + i])) *
           static_cast<double>(static_cast<float>(b[static_cast<int64_t>(col) * k + i]));
  c[static_cast<int64_t>(blockIdx.y) * n + col] = sum;
}

// One line: distances to f64, relative L2 and the largest difference by the largest result.
inline void print_fp8_accuracy(bool uniform, int k) {
  constexpr int kM = 256, kN = 512;
  Buffer<__nv_fp8_e4m3> a(int64_t{kM} * k), b(int64_t{kN} * k);
  Buffer<float> c(int64_t{kM} * kN), ones(int64_t{kN} * (k / 128));
  Buffer<double> exact(int64_t{kM} * kN);
  if (uniform) {
    fill_uniform(a, 0.0f, 1.0f, 1);
    fill_uniform(b, 0.0f, 1.0f, 2);
  } else {
    fill_gaussian(a, 0.0f, 1.0f, 1);
    fill_gaussian(b, 0.0f, 1.0f, 2);
  }
  fill_uniform(ones, 1.0f, 1.0f, 3);
  exact_kernel<<<dim3(kN / 128, kM), 128>>>(a.get(), b.get(), exact.get(), kN, k);
  HADAL_CHECK_CUDA(cudaDeviceSynchronize());
  const std::vector<double> want = exact.to_host();
  const auto report = [&](const char* name) {
    HADAL_CHECK_CUDA(cudaDeviceSynchronize());
    const std::vector<float> got = c.to_host();
    Distance d;
    double largest = 0.0;
    for (size_t i = 0; i < got.size(); ++i) {
      d.add(static_cast<double>(got[i]), want[i]);
      largest = std::max(largest, std::abs(want[i]));
    }
    std::printf("accuracy %s K %d, %s: relative L2 %.2e, largest %.2e\n",
                uniform ? "uniform(0,1)" : "Gaussian", k, name, d.relative(), d.worst / largest);
    c.fill_bytes(0xFF);
  };
  hadal::cuda::Fp8GemmArgs g{};
  g.a = a.get(), g.w = b.get(), g.c = c.get();
  g.scale_a = g.scale_w = ones.get();
  g.slab_rows = g.rows = g.scale_stride = kM;
  g.a_row_stride = g.w_row_stride = k, g.w_batch_stride = int64_t{kN} * k;
  g.scale_w_row_stride = k / 128, g.scale_w_batch_stride = kN / 128 * (k / 128);
  g.c_row_stride = kN, g.c_page_stride = int64_t{128} * kN, g.c_is_f32 = 1;
  g.places = g.a_pages = g.c_pages = kM / 128;
  g.num_experts = 1, g.n = kN, g.k = k, g.num_sms = num_sms();
  hadal::cuda::fp8_gemm_sm90(g, nullptr);
  report("ours, promoted every 128");
  for (const int depth : {128, k}) {
    unit_sum_kernel<<<dim3(kN / 128, kM / 64), 128>>>(a.get(), b.get(), c.get(), kN, k, depth);
    report(depth == 128 ? "matrix unit, promoted every 128" : "matrix unit alone");
  }
  const auto peer = [&](Peer::Mode mode, const char* name) {
    try {
      Peer p(mode, kM, kN, k, CUDA_R_32F);
      const bool block = mode == Peer::Mode::kBlock;
      HADAL_CHECK(p.algorithms() > 0, "no algorithm");
      p.run(0, a.get(), block ? ones.get() : nullptr, b.get(), block ? ones.get() : nullptr,
            c.get(), nullptr);
      report(name);
    } catch (const std::exception& e) {
      std::printf("accuracy %s: %s\n", name, e.what());
    }
  };
  peer(Peer::Mode::kBlock, "cuBLASLt, block scales");
  peer(Peer::Mode::kTensor, "cuBLASLt, one scale");
  peer(Peer::Mode::kTensorFast, "cuBLASLt, one scale, fast accumulation");
}

}  // namespace hadal::bench
