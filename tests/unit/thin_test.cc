// Thin products: the kernels of every instruction set against chains in scalars, and products of a
// few rows against the same rows of a larger product, bit for bit.
//
//   M rows   N columns   K inner width
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/thin.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "ops/cpu/isa.h"
#include "ops/gemm.h"

namespace hadal {
namespace {

using ops::cpu::Isa;
using ops::cpu::Start;
using ops::cpu::ThinProduct;

const ops::cpu::ThinKernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return ops::cpu::thin_avx512;
  if (isa == Isa::kAvx2) return ops::cpu::thin_avx2;
#endif
  return ops::cpu::thin_portable;
}

// A stored matrix, `extra` elements longer in each row than it is wide. e4m3: of every kind of
// byte, NaN once in a while where asked.
struct Stored {
  Stored(DType dtype, int64_t rows, int64_t cols, int64_t extra, bool with_nan)
      : dtype(dtype), stride(cols + extra), bytes(static_cast<size_t>(rows * stride * 4 + 64)) {
    const Rng rng(static_cast<uint64_t>(rows * 1000 + cols), 3);
    for (int64_t i = 0; i < rows * stride; ++i) {
      if (dtype != DType::kE4M3) {
        store_element(bytes.data(), dtype, i, rng.normal(static_cast<uint64_t>(i)));
        continue;
      }
      auto byte = static_cast<uint8_t>(rng.u64(static_cast<uint64_t>(i)));
      if ((byte & 0x7f) == 0x7f && !(with_nan && i % 97 == 0)) byte = 0x80;
      bytes[static_cast<size_t>(i)] = static_cast<std::byte>(byte);
    }
    if (with_nan) bytes[static_cast<size_t>(stride + 1)] = std::byte{0xff};
    // One scale is beyond what a float times 2^120 can hold.
    for (size_t i = 0; i < 64; ++i) scales.push_back(i % 5 == 4 ? 200.0f : 0.01f * float(i + 1));
  }
  float at(int64_t row, int64_t col) const {
    const auto v = static_cast<float>(load_element(bytes.data(), dtype, row * stride + col));
    return dtype == DType::kE4M3 ? v * scales[static_cast<size_t>(row / 128 * 8 + col / 128)] : v;
  }
  DType dtype;
  int64_t stride;
  std::vector<std::byte> bytes;
  std::vector<float> scales;
};

void check(Isa isa, DType dtype, bool by_rows, int64_t M, int64_t N, int64_t K, Start start,
           bool with_nan) {
  const Stored w(dtype, by_rows ? N : K, by_rows ? K : N, 5, with_nan);
  const int64_t lda = K + 3, ldc = (N + 31) / 32 * 32;
  std::vector<float> a, c(static_cast<size_t>(M * ldc), 0.5f);
  const Rng rng(9, 9);
  for (int64_t i = 0; i < M * lda; ++i)
    a.push_back(static_cast<float>(rng.normal(static_cast<uint64_t>(i))));
  const ThinProduct p{.M = M,
                      .N = N,
                      .K = K,
                      .a = a.data(),
                      .lda = lda,
                      .dtype = dtype,
                      .data = w.bytes.data(),
                      .stride_bytes = w.stride * static_cast<int64_t>(dtype_size(dtype)),
                      .scale = dtype == DType::kE4M3 ? w.scales.data() : nullptr,
                      .scale_stride = 8,
                      .first_row = 0,
                      .first_col = 0,
                      .c = c.data(),
                      .ldc = ldc,
                      .start = start,
                      .ahead = N % 2 == 0 ? w.bytes.data() : nullptr};
  by_rows ? kernels_of(isa).rows(p) : kernels_of(isa).columns(p);
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      float sum = start == Start::kOld ? 0.5f : 0.0f;
      for (int64_t k = 0; k < K; ++k) {
        const float x = a[static_cast<size_t>(m * lda + k)], y = by_rows ? w.at(n, k) : w.at(k, n);
        sum = isa == Isa::kPortable ? sum + x * y : std::fma(x, y, sum);
      }
      const float got = c[static_cast<size_t>(m * ldc + n)];
      if (std::isnan(sum))
        ASSERT_TRUE(std::isnan(got));
      else
        ASSERT_EQ(got, sum) << isa_name(isa) << " " << dtype_name(dtype) << " " << M << "x" << N
                            << "x" << K << " at " << m << "," << n;
    }
}

TEST(Thin, KernelsGiveTheChain) {
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (!isa_available(isa)) continue;
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kE4M3})
      for (const Start start : {Start::kZero, Start::kOld})
        for (int64_t M = 1; M <= kernels_of(isa).most_rows; ++M)
          for (const int64_t K : {1, 63, 64, 130, 300}) {
            for (const int64_t N : {1, 16, 17, 31, 32})
              check(isa, dtype, true, M, N, K, start, false);
            for (const int64_t N : {1, 15, 32, 70, 160})
              check(isa, dtype, false, M, N, K, start, false);
          }
  }
}

// The kernels of more rows, whose a lies in rows or in a panel.
void check_tall(Isa isa, DType dtype, bool in_panel, int64_t M, int64_t N, int64_t K, Start start) {
  using ops::cpu::kTallDepth, ops::cpu::kTallRows;
  const Stored w(dtype, K, N, 5, false);
  std::vector<float> a, c(static_cast<size_t>(M * N), 0.5f);
  const Rng rng(9, 9);
  for (int64_t i = 0; i < kTallRows * kTallDepth; ++i)
    a.push_back(static_cast<float>(rng.normal(static_cast<uint64_t>(i))));
  const ops::cpu::TallProduct p{.M = M,
                                .N = N,
                                .K = K,
                                .a = a.data(),
                                .dtype = dtype,
                                .data = w.bytes.data(),
                                .stride_bytes = w.stride * static_cast<int64_t>(dtype_size(dtype)),
                                .c = c.data(),
                                .ldc = N,
                                .start = start};
  in_panel ? kernels_of(isa).tall_panel(p) : kernels_of(isa).tall_rows(p);
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      float sum = start == Start::kOld ? 0.5f : 0.0f;
      for (int64_t k = 0; k < K; ++k) {
        const float x = a[static_cast<size_t>(in_panel ? k * kTallRows + m : m * kTallDepth + k)];
        sum = isa == Isa::kPortable ? sum + x * w.at(k, n) : std::fma(x, w.at(k, n), sum);
      }
      ASSERT_EQ(c[static_cast<size_t>(m * N + n)], sum)
          << isa_name(isa) << " " << dtype_name(dtype) << " " << M << "x" << N << "x" << K << " at "
          << m << "," << n;
    }
}

TEST(Thin, TallKernelsGiveTheChain) {
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (!isa_available(isa)) continue;
    for (const DType dtype : {DType::kF32, DType::kBF16})
      for (const Start start : {Start::kZero, Start::kOld})
        for (int64_t M = 1; M <= ops::cpu::kTallRows; ++M)
          for (const int64_t K : {1, 63, 128})
            for (const int64_t N : {16, 48})
              for (const bool in_panel : {false, true})
                check_tall(isa, dtype, in_panel, M, N, K, start);
  }
}

TEST(Thin, NanOfFp8Shows) {
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (!isa_available(isa)) continue;
    check(isa, DType::kE4M3, true, 2, 32, 300, Start::kOld, true);
    check(isa, DType::kE4M3, false, 2, 70, 130, Start::kOld, true);
  }
}

// The products of gemm.h with 1 to 6 rows against the same rows among 40.
TEST(Thin, SameBitsAsAmongManyRows) {
  Pool memory;
  ThreadPool pool(2);
  Context ctx{{}, {}, pool, memory};
  std::vector<Block> blocks;
  const auto random = [&](DType dtype, Shape shape, uint64_t seed) {
    Tensor t;
    blocks.push_back(memory.take_tensor(dtype, shape, &t));
    const Rng rng(seed, 7);
    for (int64_t i = 0; i < t.num_elements(); ++i)
      store_element(t.raw(), dtype, i, rng.normal(static_cast<uint64_t>(i)));
    return t;
  };
  const int64_t N = 330, K = 300;
  for (const DType act : {DType::kF32, DType::kBF16})
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kE4M3}) {
      const Tensor data = random(dtype, {N, K}, 1);
      const Operand whole =
          dtype == DType::kE4M3 ? Operand(data, random(DType::kF32, {3, 3}, 2)) : Operand(data);
      // Slices that start at a block, within one at a panel, and anywhere.
      for (const Operand& w : {whole, whole.rows(160, 130), whole.rows(37, 90)}) {
        const int64_t n = w.data.dim(0);
        const Tensor x = random(act, {40, K}, 3), y = random(act, {40, n}, 4);
        Tensor nt = random(act, {40, n}, 5), nn = random(act, {40, K}, 6);
        ops::gemm_nt(ctx, x, w, nt);
        ops::gemm_nn(ctx, y, w, nn);
        for (int64_t M = 1; M <= 6; ++M) {
          Tensor some_nt = random(act, {M, n}, 7), some_nn = random(act, {M, K}, 8);
          ops::gemm_nt(ctx, x.rows(11, M), w, some_nt);
          ops::gemm_nn(ctx, y.rows(11, M), w, some_nn);
          const auto same = [](const Tensor& a, const Tensor& b) {
            return std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.num_bytes())) == 0;
          };
          ASSERT_TRUE(same(some_nt, nt.rows(11, M))) << dtype_name(dtype) << " M " << M;
          ASSERT_TRUE(same(some_nn, nn.rows(11, M))) << dtype_name(dtype) << " M " << M;
        }
      }
    }
}

}  // namespace
}  // namespace hadal
