// Packing kernels and integer products of every instruction set against plain loops.
//
//   M rows   N rows of a weight   K inner width   G groups of 128
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/int_product.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/dtype.h"
#include "core/rng.h"
#include "ops/cpu/isa.h"
#include "ops/cpu/pack.h"
#include "ops/gemm.h"
#include "tests/unit/ops.h"

namespace hadal::ops::cpu {
namespace {

struct Set {
  Isa isa;
  bool vnni;
  const PackKernels* pack;
  const IntKernels* ints;
  std::vector<int64_t> widths;  // of panels
};

std::vector<Set> sets() {
  std::vector<Set> all = {{Isa::kPortable, false, &pack_portable, &int_portable, {4, 8}}};
#if defined(__x86_64__)
  if (isa_available(Isa::kAvx2))
    all.push_back({Isa::kAvx2, false, &pack_avx2, &int_avx2, {6, 8, 16}});
  if (isa_available(Isa::kAvx512)) {
    all.push_back({Isa::kAvx512, false, &pack_avx512, &int_avx512, {12, 16, 32}});
    if (__builtin_cpu_supports("avx512vnni"))
      all.push_back({Isa::kAvx512, true, &pack_avx512, &int_vnni, {32}});
  }
#endif
  return all;
}

std::vector<std::byte> random_bytes(int64_t n, std::string_view name) {
  const Rng rng(9, stream_id(name));
  std::vector<std::byte> bytes(static_cast<size_t>(n));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(rng.u64(i));
  return bytes;
}

// Every byte pattern of bf16 and e4m3 comes by, NaN and subnormals among them.
TEST(Pack, IsTheHostConversionTransposed) {
  for (const Set& set : sets())
    for (const int64_t width : set.widths)
      for (const int64_t K : {1, 7, 32, 65, 200})
        for (const int64_t rows : {int64_t{1}, width - 1, width})
          for (const DType dtype : {DType::kF32, DType::kBF16, DType::kE4M3}) {
            const auto size = static_cast<int64_t>(dtype_size(dtype));
            const std::vector<std::byte> data = random_bytes(rows * K * size, "pack");
            const float scale[] = {0.03f, 1e9f};  // the second is beyond what 2^120 can carry
            std::vector<float> panel(static_cast<size_t>(K * width + 16), 5.0f);
            set.pack->rows(dtype, {data.data(), K * size, rows}, K, scale, 0, width, panel.data());
            for (int64_t r = 0; r < rows; ++r)
              for (int64_t k = 0; k < K; ++k) {
                float want = 0.0f;
                convert(data.data() + (r * K + k) * size, dtype, &want, DType::kF32, 1);
                if (dtype == DType::kE4M3) want *= scale[k / 128];
                const float got = panel[static_cast<size_t>(k * width + r)];
                ASSERT_TRUE(std::memcmp(&got, &want, sizeof(got)) == 0 ||
                            (std::isnan(got) && std::isnan(want)))
                    << isa_name(set.isa) << " " << dtype_name(dtype) << " width " << width << " K "
                    << K << " at " << r << ", " << k << ": " << got << ", want " << want;
              }
            for (size_t i = static_cast<size_t>(K * width); i < panel.size(); ++i)
              ASSERT_EQ(panel[i], 5.0f) << "written past the panel";
          }
}

TEST(Pack, RowOfFp8IsTheHostConversion) {
  std::vector<uint8_t> all(256);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint8_t>(i);
  for (const Set& set : sets()) {
    std::vector<float> got(all.size());
    set.pack->e4m3_row(all.data(), 0.3f, 256, got.data());
    for (size_t i = 0; i < all.size(); ++i) {
      const float want = to_f32(e4m3{all[i]}) * 0.3f;
      ASSERT_TRUE(std::memcmp(&got[i], &want, sizeof(want)) == 0 ||
                  (std::isnan(got[i]) && std::isnan(want)))
          << i;
    }
  }
}

// The definition, one product after the other.
struct Naive {
  IntBits bits;
  int64_t K, words, groups;
  int32_t weight(const uint32_t* row, int64_t k) const {
    if (bits == IntBits::k8) return static_cast<int32_t>(row[k / 4] >> (8 * (k % 4)) & 0xff) - 128;
    return static_cast<int32_t>(row[k / 8] >> (4 * (k % 8)) & 0xf) - 8;
  }
  float dot(const float* x, const uint32_t* row, const bf16* scale, float start) const {
    float sum = start;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * 128, end = std::min(K, begin + 128);
      float amax = 0.0f;
      for (int64_t k = begin; k < end; ++k) amax = std::max(amax, std::fabs(x[k]));
      int32_t total = 0;
      for (int64_t k = begin; k < end && amax > 0.0f; ++k)
        total += static_cast<int32_t>(std::nearbyint(x[k] * (127.0f / amax))) * weight(row, k);
      sum = std::fma(static_cast<float>(total), amax / 127.0f * to_f32(scale[g]), sum);
    }
    return sum;
  }
};

struct IntCase {
  IntCase(IntBits b, int64_t m, int64_t n, int64_t k)
      : bits(b),
        M(m),
        N(n),
        K(k),
        naive{b, k, (k + (b == IntBits::k8 ? 3 : 7)) / (b == IntBits::k8 ? 4 : 8),
              (k + 127) / 128} {
    const std::vector<std::byte> bytes = random_bytes(4 * N * naive.words, "words");
    w.resize(static_cast<size_t>(N * naive.words));
    std::memcpy(w.data(), bytes.data(), bytes.size());
    const Rng rng(4, stream_id("x"));
    for (int64_t i = 0; i < M * K; ++i)
      x.push_back(static_cast<float>(rng.normal(static_cast<uint64_t>(i))));
    for (int64_t i = 0; i < N * naive.groups; ++i)
      scale.push_back(to_bf16(0.01f * static_cast<float>(1 + i % 7)));
    if (K > 130) std::fill(x.begin(), x.begin() + 128, 0.0f);  // a group of zeros
  }
  IntBits bits;
  int64_t M, N, K;
  Naive naive;
  std::vector<uint32_t> w;
  std::vector<float> x;
  std::vector<bf16> scale;
};

// Its weight in panels.
class Packed {
 public:
  Packed(hadal::test::Machine& machine, const IntCase& c) {
    const Shape shape{c.N, c.K};
    const int bits = c.bits == IntBits::k8 ? 8 : 4;
    operand_ = int_operand(shape, machine.tensor(DType::kI32, int_words_shape(shape, bits)),
                           machine.tensor(DType::kBF16, int_scales_shape(shape)));
    pack_int_panels(machine.ctx, c.K,
                    Tensor(const_cast<uint32_t*>(c.w.data()), DType::kI32, {c.N, c.naive.words}),
                    Tensor(const_cast<bf16*>(c.scale.data()), DType::kBF16, {c.N, c.naive.groups}),
                    operand_);
  }
  const Operand& operand() const { return operand_; }
  const uint32_t* words() const {
    return reinterpret_cast<const uint32_t*>(operand_.data.data<int32_t>());
  }

 private:
  Operand operand_;
};

TEST(IntProduct, EverySetGivesTheBitsOfTheDefinition) {
  for (const IntBits bits : {IntBits::k8, IntBits::k4})
    for (const int64_t K : {5, 64, 128, 200, 520})
      for (const int64_t M : {1, 3, 5, 11, 12}) {
        const IntCase c(bits, M, 29, K);
        const int64_t G = c.naive.groups;
        hadal::test::Machine machine(1);
        const Packed packed(machine, c);
        for (const Set& set : sets()) {
          std::vector<uint32_t> q(static_cast<size_t>(G * kIntWords * M));
          std::vector<float> a_scale(static_cast<size_t>(G * M)), out(static_cast<size_t>(M * 32));
          std::vector<int32_t> sum(static_cast<size_t>(G * M));
          for (int64_t m = 0; m < M; ++m)
            set.ints->quantise(c.x.data() + m * K, K, M, m, q.data(), a_scale.data(), sum.data());
          std::fill(out.begin(), out.end(), 0.5f);
          set.ints->multiply({.bits = bits,
                              .rows = M,
                              .groups = G,
                              .q = q.data(),
                              .a_scale = a_scale.data(),
                              .sum = sum.data(),
                              .words = packed.words(),
                              .scale = packed.operand().scale.data<bf16>()},
                             out.data(), 32);
          for (int64_t m = 0; m < M; ++m)
            for (int64_t n = 0; n < c.N; ++n)
              ASSERT_EQ(out[static_cast<size_t>(m * 32 + n)],
                        c.naive.dot(c.x.data() + m * K, c.w.data() + n * c.naive.words,
                                    c.scale.data() + n * G, 0.5f))
                  << isa_name(set.isa) << (set.vnni ? " vnni" : "") << " K " << K << " M " << M;
        }
      }
}

TEST(IntProduct, NotFiniteActivationsShow) {
  for (const Set& set : sets())
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      std::vector<float> x(8, 1.0f);
      x[3] = bad;
      uint32_t q[kIntWords];
      float scale = 0.0f;
      int32_t sum = 0;
      set.ints->quantise(x.data(), 8, 1, 0, q, &scale, &sum);
      EXPECT_FALSE(std::isfinite(scale));
    }
}

TEST(IntProduct, GemmIsTheDefinitionAtEveryMAndThreadCount) {
  for (const IntBits bits : {IntBits::k8, IntBits::k4})
    for (const int64_t M : {1, 4, 8, 12, 13, 70})
      for (const int threads : {1, 3}) {
        hadal::test::Machine machine(threads);
        const IntCase c(bits, M, 77, 200);
        const Tensor x(const_cast<float*>(c.x.data()), DType::kF32, {M, c.K});
        const Packed w(machine, c);
        Tensor y = machine.tensor(DType::kF32, {M, c.N});
        ops::gemm_nt(machine.ctx, x, w.operand(), y);
        for (int64_t m = 0; m < M; ++m)
          for (int64_t n = 0; n < c.N; ++n)
            ASSERT_EQ(y.data<float>()[m * c.N + n],
                      c.naive.dot(c.x.data() + m * c.K, c.w.data() + n * c.naive.words,
                                  c.scale.data() + n * c.naive.groups, 0.0f));
      }
}

TEST(IntProduct, RefusesShapesThatDoNotFit) {
  hadal::test::Machine machine(1);
  const Tensor x = machine.tensor(DType::kF32, {2, 200});
  Tensor y = machine.tensor(DType::kF32, {2, 4});
  const Operand w(machine.tensor(DType::kI32, {4, 26}), machine.tensor(DType::kBF16, {4, 2}));
  EXPECT_ERROR(ops::gemm_nt(machine.ctx, x, w, y),
               "gemm_nt: the integer weight is i32 [4, 26]; rows of 200 elements take 32 words "
               "with 4 bits or 64 with 8");
  const Operand short_scale(machine.tensor(DType::kI32, {4, 32}),
                            machine.tensor(DType::kBF16, {4, 1}));
  EXPECT_ERROR(ops::gemm_nt(machine.ctx, x, short_scale, y),
               "gemm_nt: the integer weight has scales bf16 [4, 1]; bf16 [4, 2] are needed");
}

}  // namespace
}  // namespace hadal::ops::cpu
