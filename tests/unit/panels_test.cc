// Products with weights in panels against the same weights in rows, bit for bit.
//
//   M rows   N columns of the result   K inner width   E experts
// SPDX-License-Identifier: Apache-2.0
#include "core/panels.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "core/rng.h"
#include "ops/gemm.h"
#include "ops/quant.h"
#include "tests/unit/ops.h"

namespace hadal::ops {
namespace {

using hadal::test::Machine;

void fill_normal(const Tensor& t, std::string_view name) {
  const Rng rng(6, stream_id(name));
  for (int64_t i = 0; i < t.num_elements(); ++i)
    store_element(t.raw(), t.dtype(), i, 0.1 * rng.normal(static_cast<uint64_t>(i)));
}

// A weight in rows; e4m3 with subnormals in some.
Operand weight(Machine& machine, DType dtype, int64_t N, int64_t K, bool with_subnormals) {
  const Tensor plain = machine.tensor(DType::kF32, {N, K});
  fill_normal(plain, "panel weight");
  Operand w(machine.tensor(dtype, {N, K}));
  if (dtype == DType::kBF16) {
    convert(plain.raw(), DType::kF32, w.data.raw(), dtype, N * K);
    return w;
  }
  w.scale = machine.tensor(DType::kF32, {(N + 127) / 128, K / 128});
  Tensor data = w.data, scale = w.scale;
  quantise_blocks(machine.ctx, plain, ScaleFormat::kF32, data, scale);
  if (with_subnormals)
    for (int64_t i = 0; i < 100; ++i)
      w.data.data<e4m3>()[40 * K + i] = {static_cast<uint8_t>(i % 8 + i % 2 * 128)};
  return w;
}

Operand packed(Machine& machine, const Operand& w) {
  const Tensor to = machine.tensor(w.data.dtype(), w.data.shape());
  return pack_panels(machine.ctx, w, to.raw());
}

void expect_same_bits(const Tensor& got, const Tensor& want, const std::string& what) {
  for (int64_t i = 0; i < want.num_elements(); ++i) {
    const double x = load_element(got.raw(), got.dtype(), i),
                 y = load_element(want.raw(), want.dtype(), i);
    ASSERT_TRUE(x == y || (std::isnan(x) && std::isnan(y)))
        << what << " at " << i << ": " << x << ", want " << y;
  }
}

TEST(Panels, HoldTheWordsOf32Rows) {
  Machine machine(2);
  const Operand w = weight(machine, DType::kBF16, 64, 128, false);
  const Operand p = packed(machine, w);
  EXPECT_EQ(p.data.shape(), Shape({64, 64}));
  const auto* rows = w.data.data<bf16>();
  const auto* words = p.data.data<int32_t>();
  for (int64_t n = 0; n < 64; ++n)
    for (int64_t k = 0; k < 128; ++k) {
      const auto word = static_cast<uint32_t>(words[n / 32 * 32 * 64 + k / 2 * 32 + n % 32]);
      ASSERT_EQ(static_cast<uint16_t>(word >> (16 * (k % 2))), rows[n * 128 + k].bits);
    }
  // In place it is the same.
  const Operand same = pack_panels(machine.ctx, w, w.data.raw());
  EXPECT_EQ(std::memcmp(same.data.raw(), p.data.raw(), 64 * 128 * 2), 0);
}

TEST(Panels, GiveTheBitsOfRows) {
  for (const DType dtype : {DType::kBF16, DType::kE4M3})
    for (const DType act : {DType::kF32, DType::kBF16})
      for (const bool with_subnormals : {false, true})
        for (const int threads : {1, 3}) {
          Machine machine(threads);
          constexpr int64_t N = 160, K = 640;
          const Operand rows = weight(machine, dtype, N, K, with_subnormals);
          const Operand panels = packed(machine, rows);
          ASSERT_TRUE(in_panels(panels));
          for (const int64_t M : {1, 2, 3, 4, 5, 13, 70}) {
            const Tensor x = machine.tensor(act, {M, K});
            fill_normal(x, "panel x");
            Tensor want = machine.tensor(act, {M, N}), got = machine.tensor(act, {M, N});
            gemm_nt(machine.ctx, x, rows, want);
            gemm_nt(machine.ctx, x, panels, got);
            const std::string what = concat(dtype_name(dtype), " M ", M);
            expect_same_bits(got, want, what);
            gemm_nt_acc(machine.ctx, x, rows, want);
            gemm_nt_acc(machine.ctx, x, panels, got);
            expect_same_bits(got, want, what + " acc");
          }
        }
}

TEST(Panels, LeaveInRowsWhatNeedsCare) {
  Machine machine(2);
  for (const e4m3 nan : {e4m3{0x7f}, e4m3{0xff}}) {
    const Operand w = weight(machine, DType::kE4M3, 160, 640, false);
    w.data.data<e4m3>()[3 * 640 + 5] = nan;
    const Operand same = packed(machine, w);
    EXPECT_FALSE(in_panels(same));
    EXPECT_EQ(same.data.raw(), w.data.raw());
  }
  const Operand w = weight(machine, DType::kE4M3, 160, 640, false);
  float& scale = w.scale.data<float>()[w.scale.num_elements() - 1];
  for (const float large : {128.0f, 300.0f, std::numeric_limits<float>::quiet_NaN()}) {
    scale = large;
    EXPECT_FALSE(in_panels(packed(machine, w)));
  }
  scale = 127.0f;
  EXPECT_TRUE(in_panels(packed(machine, w)));
}

TEST(Panels, OnlyFitWhereTheyAreWhole) {
  Machine machine(1);
  EXPECT_FALSE(fits_panels(machine.tensor(DType::kBF16, {48, 128})));
  EXPECT_FALSE(fits_panels(machine.tensor(DType::kBF16, {64, 64})));
  EXPECT_FALSE(fits_panels(machine.tensor(DType::kF32, {64, 128})));
  EXPECT_FALSE(fits_panels(machine.tensor(DType::kE4M3, {64, 128})));
  EXPECT_TRUE(fits_panels(machine.tensor(DType::kBF16, {64, 128})));
  EXPECT_ERROR(pack_panels(machine.ctx, machine.tensor(DType::kBF16, {48, 128}), nullptr),
               "pack_panels: bf16 [48, 128] does not fit into panels");
}

TEST(Panels, RefuseWhatTheyCannotDo) {
  Machine machine(1);
  const Operand w = packed(machine, weight(machine, DType::kBF16, 64, 128, false));
  const Tensor x = machine.tensor(DType::kF32, {2, 256}),
               x64 = machine.tensor(DType::kF64, {2, 128});
  Tensor y = machine.tensor(DType::kF32, {2, 64});
  EXPECT_ERROR(gemm_nt(machine.ctx, x, w, y),
               "gemm_nt: the weight in panels is i32 [64, 64] with scales f32 []; rows of 256 "
               "elements do not fit");
  EXPECT_ERROR(gemm_nt(machine.ctx, x64, w, y),
               "gemm_nt: weights in panels take f32, f16 or bf16, got f64 [2, 128] to f32 [2, 64]");
  EXPECT_ERROR(gemm_nn(machine.ctx, machine.tensor(DType::kF32, {2, 64}), w,
                       machine.tensor(DType::kF32, {2, 64})),
               "gemm_nn: the weight is i32 [64, 64]; it must be a float matrix");
}

}  // namespace
}  // namespace hadal::ops
