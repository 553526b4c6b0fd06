// The kernels of every instruction set that this processor has: the same bits from all of them.
//
//   n elements of a row
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/isa.h"

#include <cstring>
#include <functional>
#include <limits>

#include "core/rng.h"
#include "ops/cpu/isa/row_kernels.h"
#include "ops/cpu/math.h"
#include "ops/cpu/matmul.h"
#include "ops/cpu/softmax.h"
#include "tests/unit/expect_error.h"

namespace hadal::ops::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512};

const SoftmaxKernels& softmax_of(Isa isa) {
  return isa == Isa::kPortable ? softmax_portable
         : isa == Isa::kAvx2   ? softmax_avx2
                               : softmax_avx512;
}
const MatmulKernels& matmul_of(Isa isa) {
  return isa == Isa::kPortable ? matmul_portable : isa == Isa::kAvx2 ? matmul_avx2 : matmul_avx512;
}

// Ordinary numbers, with a zero, a large and a small one among them.
template <class R>
std::vector<R> row(std::string_view name, int64_t n) {
  const Rng rng(1, stream_id(name));
  std::vector<R> x;
  for (int64_t i = 0; i < n; ++i)
    x.push_back(static_cast<R>(3 * rng.normal(static_cast<uint64_t>(i))));
  if (n > 5) x[1] = 0, x[2] = R(60), x[4] = R(-60), x[5] = R(1e-20);
  return x;
}

// Runs fn(kernels, n) with each set and each length; all give the bits of the portable one.
template <class R, class Kernels, class Fn>
void expect_same_bits(const std::function<const Kernels&(Isa)>& kernels, const Fn& fn) {
  for (int64_t n : {0, 1, 2, 7, 15, 16, 17, 31, 33, 64, 255, 256, 257, 511, 1000}) {
    const std::vector<R> want = fn(kernels(Isa::kPortable), n);
    for (const Isa isa : kAll) {
      if (!isa_available(isa)) continue;
      const std::vector<R> got = fn(kernels(isa), n);
      ASSERT_EQ(got.size(), want.size());
      ASSERT_TRUE(want.empty() ||
                  std::memcmp(got.data(), want.data(), want.size() * sizeof(R)) == 0)
          << isa_name(isa) << ", n " << n;
    }
  }
}

template <class R>
class Kernels : public ::testing::Test {
 protected:
  static const RowOps<R>& rows(Isa isa) { return row_kernels_of(isa_name(isa)).template of<R>(); }
  static const SoftmaxKernel<R>& softmax(Isa isa) {
    if constexpr (std::is_same_v<R, float>) {
      return softmax_of(isa).f32;
    } else {
      return softmax_of(isa).f64;
    }
  }
  static const MatmulKernel<R>& matmul(Isa isa) {
    if constexpr (std::is_same_v<R, float>) {
      return matmul_of(isa).f32;
    } else {
      return matmul_of(isa).f64;
    }
  }
};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Kernels, Types);

TYPED_TEST(Kernels, Reductions) {
  using R = TypeParam;
  expect_same_bits<R, RowOps<R>>(this->rows, [](const RowOps<R>& k, int64_t n) {
    const auto a = row<R>("a", n), b = row<R>("b", n), c = row<R>("c", n);
    return std::vector<R>{k.sum(a.data(), n),
                          k.dot(a.data(), b.data(), n),
                          k.dot3(a.data(), b.data(), c.data(), n),
                          static_cast<R>(k.sum_squares(a.data(), n)),
                          k.max(a.data(), n),
                          k.exp_sum(a.data(), R(60), n)};
  });
}

TYPED_TEST(Kernels, ElementWise) {
  using R = TypeParam;
  expect_same_bits<R, RowOps<R>>(this->rows, [](const RowOps<R>& k, int64_t n) {
    const auto a = row<R>("a", n), b = row<R>("b", n), c = row<R>("c", n);
    std::vector<R> all, y(a.size());
    const auto keep = [&](const std::vector<R>& x) { all.insert(all.end(), x.begin(), x.end()); };
    k.add(a.data(), b.data(), y.data(), n), keep(y);
    k.exp_shifted(a.data(), R(1), R(0.3), y.data(), n), keep(y);
    k.sigmoid(a.data(), y.data(), n), keep(y);
    k.norm(a.data(), b.data(), R(0.7), y.data(), n), keep(y);
    k.norm_dx(a.data(), b.data(), c.data(), R(0.7), R(0.2), y.data(), n), keep(y);
    k.norm_dgain(a.data(), b.data(), R(0.7), y.data(), n), keep(y);
    k.swiglu(a.data(), b.data(), R(0.4), y.data(), n), keep(y);
    auto gate = a, up = b;
    all.push_back(k.swiglu_backward(a.data(), b.data(), c.data(), R(0.4), gate.data(), up.data(),
                                    y.data(), n));
    keep(gate), keep(up), keep(y);
    AdamwFactors<R> f{};
    f.grad_scale = R(0.5), f.beta1 = R(0.9), f.one_minus_beta1 = R(0.1), f.beta2 = R(0.95);
    f.one_minus_beta2 = R(0.05), f.keep = R(0.99), f.step = R(0.01), f.correction2 = R(20);
    f.eps = R(1e-8);
    auto param = a, m = b, v = c;
    for (R& x : v) x = x * x;
    k.adamw(f, c.data(), param.data(), m.data(), v.data(), n);
    keep(param), keep(m), keep(v);
    return all;
  });
}

TYPED_TEST(Kernels, Softmax) {
  using R = TypeParam;
  expect_same_bits<R, SoftmaxKernel<R>>(this->softmax, [](const SoftmaxKernel<R>& k, int64_t n) {
    const auto a = row<R>("a", n), b = row<R>("b", n);
    std::vector<R> all;
    const auto keep = [&](const std::vector<R>& x) { all.insert(all.end(), x.begin(), x.end()); };
    auto x = a;
    all.push_back(k.max(a.data(), n));
    all.push_back(k.dot(a.data(), b.data(), n));
    all.push_back(k.exp_sum(x.data(), n, R(0.5), R(30))), keep(x);
    x = a, k.exp(x.data(), n, R(0.5), R(30)), keep(x);
    x = a, k.scale(x.data(), n, R(0.3)), keep(x);
    x = a, k.softmax_backward(b.data(), x.data(), n, R(0.1), R(0.5)), keep(x);
    return all;
  });
}

// What the kernels compute, once, against plain loops: bits that agree could all be wrong.
TYPED_TEST(Kernels, SoftmaxIsRight) {
  using R = TypeParam;
  const double tolerance = sizeof(R) == 4 ? 3e-6 : 1e-13;
  for (int64_t n : {1, 3, 16, 100}) {
    const auto a = row<R>("a", n), b = row<R>("b", n);
    const SoftmaxKernel<R>& k = this->softmax(active_isa());
    double dot = 0, norm = 0, sum = 0;
    R top = -std::numeric_limits<R>::infinity();
    auto x = a, dp = b;
    for (size_t i = 0; i < a.size(); ++i) {
      dot += static_cast<double>(a[i]) * static_cast<double>(b[i]);
      norm += std::abs(static_cast<double>(a[i]) * static_cast<double>(b[i]));
      sum += std::exp(static_cast<double>(a[i]) * 0.5 - 30);
      top = std::max(top, a[i]);
    }
    EXPECT_EQ(k.max(a.data(), n), top);
    EXPECT_NEAR(k.dot(a.data(), b.data(), n), dot, tolerance * norm);
    EXPECT_NEAR(k.exp_sum(x.data(), n, R(0.5), R(30)), sum, tolerance * sum);
    k.softmax_backward(a.data(), dp.data(), n, R(0.25), R(0.5));
    for (size_t i = 0; i < a.size(); ++i) {
      const double want = std::exp(static_cast<double>(a[i]) * 0.5 - 30);
      EXPECT_NEAR(x[i], want, tolerance * want);
      const double slope = static_cast<double>(a[i]) * (static_cast<double>(b[i]) - 0.25) * 0.5;
      EXPECT_NEAR(dp[i], slope, tolerance * (1 + std::abs(slope)));
    }
  }
  EXPECT_EQ(this->softmax(active_isa()).max(nullptr, 0), -std::numeric_limits<R>::infinity());
}

// AVX2 and AVX-512 give the fused chain, the portable kernel one that rounds twice.
TYPED_TEST(Kernels, Matmul) {
  using R = TypeParam;
  const auto rows = [](int64_t count, int64_t stride, std::string_view name) {
    return row<R>(name, count * stride);
  };
  for (const Isa isa : kAll) {
    if (!isa_available(isa)) continue;
    const MatmulKernel<R>& kernel = this->matmul(isa);
    for (int64_t K : {0, 1, 5, 64}) {
      const auto a = rows(K, kernel.width, "a"), b = rows(K, kernel.nr, "b");
      for (int64_t m = 1; m <= kernel.mr; ++m) {
        std::vector<R> c(static_cast<size_t>(m * kernel.nr), R(0.5)), zero = c;
        kernel.compute(K, a.data(), b.data(), c.data(), kernel.nr, m, Start::kOld, c.data(), {});
        kernel.compute(K, a.data(), b.data(), zero.data(), kernel.nr, m, Start::kZero, zero.data(),
                       {});
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < kernel.nr; ++j) {
            R old = R(0.5), from_zero = 0;
            for (int64_t k = 0; k < K; ++k) {
              const R x = a[static_cast<size_t>(k * kernel.width + i)],
                      y = b[static_cast<size_t>(k * kernel.nr + j)];
              old = isa == Isa::kPortable ? old + x * y : std::fma(x, y, old);
              from_zero = isa == Isa::kPortable ? from_zero + x * y : std::fma(x, y, from_zero);
            }
            ASSERT_EQ(c[static_cast<size_t>(i * kernel.nr + j)], old) << isa_name(isa);
            ASSERT_EQ(zero[static_cast<size_t>(i * kernel.nr + j)], from_zero) << isa_name(isa);
          }
      }
      // Panels: rows become columns, what is missing is zero.
      for (int64_t count : {int64_t{1}, kernel.mr / 2, kernel.mr}) {
        const auto src = rows(count, K + 3, "src");
        std::vector<R> panel(static_cast<size_t>(K * kernel.mr), R(7));
        kernel.transpose(count, K, src.data(), K + 3, kernel.mr, panel.data());
        for (int64_t k = 0; k < K; ++k)
          for (int64_t r = 0; r < kernel.mr; ++r)
            ASSERT_EQ(panel[static_cast<size_t>(k * kernel.mr + r)],
                      r < count ? src[static_cast<size_t>(r * (K + 3) + k)] : R(0));
      }
    }
  }
}

TEST(RowKernels, WidenAndNarrowAreTheHostConversions) {
  std::vector<bf16> all(1 << 16);
  for (size_t i = 0; i < all.size(); ++i) all[i].bits = static_cast<uint16_t>(i);
  const Rng rng(3, 4);
  std::vector<float> random(10007);
  for (size_t i = 0; i < random.size(); ++i)
    random[i] = std::bit_cast<float>(static_cast<uint32_t>(rng.u64(i)));
  for (const Isa isa : kAll) {
    if (!isa_available(isa)) continue;
    const RowKernels& kernels = row_kernels_of(isa_name(isa));
    EXPECT_STREQ(kernels.isa, isa_name(isa));
    std::vector<float> wide(all.size());
    kernels.widen(all.data(), wide.data(), static_cast<int64_t>(all.size()));
    for (size_t i = 0; i < all.size(); ++i)
      ASSERT_EQ(std::bit_cast<uint32_t>(wide[i]), std::bit_cast<uint32_t>(to_f32(all[i])));
    std::vector<bf16> narrow(random.size());
    kernels.narrow(random.data(), narrow.data(), static_cast<int64_t>(random.size()));
    for (size_t i = 0; i < random.size(); ++i)
      ASSERT_EQ(narrow[i].bits, to_bf16(random[i]).bits) << isa_name(isa);
  }
}

TEST(RowKernels, WidenScaledIsTheHostConversionAndAProduct) {
  std::vector<e4m3> all(256);
  for (size_t i = 0; i < all.size(); ++i) all[i].bits = static_cast<uint8_t>(i);
  for (const Isa isa : kAll) {
    if (!isa_available(isa)) continue;
    for (const float scale : {1.0f, 0x1p-22f, 0x1p-120f, 0x1p90f}) {
      std::vector<bf16> wide(all.size());
      row_kernels_of(isa_name(isa)).widen_scaled(all.data(), scale, wide.data(), 256);
      for (size_t i = 0; i < all.size(); ++i)
        ASSERT_EQ(wide[i].bits, to_bf16(to_f32(all[i]) * scale).bits) << isa_name(isa) << " " << i;
    }
  }
}

TEST(RowKernels, MaxPassesOverNan) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> x(40, nan);
  for (const Isa isa : kAll) {
    if (!isa_available(isa)) continue;
    const RowOps<float>& k = row_kernels_of(isa_name(isa)).f32;
    EXPECT_EQ(k.max(x.data(), 40), -std::numeric_limits<float>::infinity());
    for (size_t at : {0, 15, 16, 39}) {
      auto y = x;
      y[at] = -3.0f;
      EXPECT_EQ(k.max(y.data(), 40), -3.0f);
    }
  }
}

TEST(Exp, IsWithinAboutOneUnit) {
  double worst = 0;
  for (int64_t i = -1030000; i <= 887000; ++i) {
    const float x = static_cast<float>(i) * 1e-4f;
    const double exact = std::exp(static_cast<double>(x)), got = exp_of(x);
    if (exact < 0x1p-126) continue;  // subnormal
    worst = std::max(worst, std::abs(got - exact) / std::exp2(std::floor(std::log2(exact)) - 23));
  }
  EXPECT_LT(worst, 1.1);
  EXPECT_GT(worst, 0.4);  // or the measure is wrong
}

TEST(Exp, Extremes) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(exp_of(-inf), 0.0f);
  EXPECT_EQ(exp_of(-1e30f), 0.0f);
  EXPECT_EQ(exp_of(inf), inf);
  EXPECT_EQ(exp_of(89.0f), inf);
  EXPECT_EQ(exp_of(0.0f), 1.0f);
  EXPECT_TRUE(std::isnan(exp_of(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_EQ(sigmoid_of(-1e30f), 0.0f);
  EXPECT_EQ(sigmoid_of(1e30f), 1.0f);
  EXPECT_EQ(sigmoid_of(0.0f), 0.5f);
}

TEST(RowKernels, UnknownNamesAreRefused) {
  EXPECT_ERROR(row_kernels_of("sse"),
               "HADAL_ISA is 'sse'; use portable, avx2 or avx512, or unset it");
  EXPECT_STREQ(row_kernels_of("").isa, isa_available(Isa::kAvx512) ? "avx512"
                                       : isa_available(Isa::kAvx2) ? "avx2"
                                                                   : "portable");
}

}  // namespace
}  // namespace hadal::ops::cpu
