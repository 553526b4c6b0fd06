// Conversion, addition, fill and the embedding table against plain loops.
// SPDX-License-Identifier: Apache-2.0
#include "ops/copy.h"

#include "tests/unit/ops.h"

namespace hadal::test {
namespace {

const Shape kShapes[] = {{0, 7}, {1, 1}, {3, 17}, {5, 3, 33}, {2, 5000}};

TEST(Copy, CastsEveryPairOfTypesAndStrides) {
  Machine machine(2);
  for (const DType from : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3}) {
    for (const DType to : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3}) {
      for (const Shape& shape : kShapes) {
        const Array<double> a = random_in("cast", shape, from);
        Array<double> want(shape);
        for (int64_t i = 0; i < a.size(); ++i) {
          uint64_t bits = 0;
          store_element(&bits, to, 0, a[i]);
          want[i] = load_element(&bits, to, 0);
        }
        Tensor dense = machine.tensor(to, shape), view = strided(machine, to, shape);
        ops::cast(machine.ctx, machine.put(a, from), dense);
        ops::cast(machine.ctx, put_strided(machine, a, from), view);
        expect_close("dense", values(dense), want, 0.0);
        expect_close("view", values(view), want, 0.0);
      }
    }
  }
}

TEST(Copy, LeavesWhatIsBetweenTheRows) {
  Machine machine(1);
  const Tensor whole = machine.tensor(DType::kF32, {3, 8});
  Tensor view = whole.cols(2, 4);
  ops::fill(machine.ctx, 2.5, view);
  for (int64_t i = 0; i < 24; ++i) {
    EXPECT_EQ(whole.data<float>()[i], i % 8 >= 2 && i % 8 < 6 ? 2.5f : 0.0f) << i;
  }
}

TEST(Copy, NarrowsLikeTheOneElementConversion) {
  Machine machine(1);
  std::vector<uint32_t> bits = {0x7f800001u, 0xff800001u, 0x7fffffffu, 0x7f800000u,
                                0xff800000u, 0x7f7fffffu, 0x00000001u, 0x80000000u,
                                0x3f808000u, 0x3f818000u, 0x3f808001u, 0x3f807fffu};
  for (uint32_t i = 0; i < 4000; ++i) bits.push_back(i * 2654435761u);
  const int64_t n = static_cast<int64_t>(bits.size());
  const Tensor x = machine.tensor(DType::kF32, {n});
  std::memcpy(x.raw(), bits.data(), bits.size() * 4);
  Tensor y = machine.tensor(DType::kBF16, {n});
  ops::cast(machine.ctx, x, y);
  for (int64_t i = 0; i < n; ++i) {
    EXPECT_EQ(y.data<bf16>()[i].bits,
              to_bf16(std::bit_cast<float>(bits[static_cast<size_t>(i)])).bits);
  }
}

TEST(Copy, AddsAndAddsInPlace) {
  Machine machine(2);
  for (const DType dtype : kOpTypes) {
    for (const Shape& shape : kShapes) {
      const Array<double> a = random_in("a", shape, dtype), b = random_in("b", shape, DType::kF32);
      Array<double> want(shape);
      double largest = 0;
      for (int64_t i = 0; i < a.size(); ++i) {
        want[i] = a[i] + b[i];
        largest = std::max(largest, std::abs(want[i]));
      }
      Tensor c = strided(machine, dtype, shape), y = machine.put(a, dtype);
      const Tensor b_t = machine.put(b, DType::kF32);
      ops::add(machine.ctx, put_strided(machine, a, dtype), b_t, c);
      ops::add_acc(machine.ctx, b_t, y);
      expect_close("add", values(c), want, op_bound(dtype, 1, largest));
      expect_bits_equal("add_acc", y, c);
    }
  }
}

TEST(Copy, FillsEveryType) {
  Machine machine(2);
  for (const DType dtype :
       {DType::kF64, DType::kF32, DType::kF16, DType::kBF16, DType::kI32, DType::kI64}) {
    for (const double value : {0.0, 3.0}) {
      Tensor x = strided(machine, dtype, {3, 5});
      ops::fill(machine.ctx, value, x);
      for (const double got : values(x).data) EXPECT_EQ(got, value);
    }
  }
}

TEST(Copy, EmbedsAndAddsGradientsOfRepeatedIds) {
  Machine machine(3);
  const int64_t V = 5, D = 131;
  const std::vector<int32_t> ids = {4, 0, 4, 4, 2, 0};
  const int64_t T = static_cast<int64_t>(ids.size());
  for (const DType dtype : kOpTypes) {
    const Array<double> table = random_in("table", {V, D}, dtype),
                        dx = random_in("dx", {T, D}, dtype);
    Tensor x = strided(machine, dtype, {T, D}), dtable = machine.tensor(stat_dtype(dtype), {V, D});
    const Tensor ids_t = machine.put(ids, {T});
    ops::embed_forward(machine.ctx, machine.put(table, dtype), ids_t, x);
    ops::embed_backward_acc(machine.ctx, put_strided(machine, dx, dtype), ids_t, dtable);
    Array<double> want_x({T, D}), want_dtable({V, D});
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t d = 0; d < D; ++d) {
        want_x(t, d) = table(ids[static_cast<size_t>(t)], d);
        want_dtable(ids[static_cast<size_t>(t)], d) += dx(t, d);
      }
    }
    expect_close("x", values(x), want_x, 0.0);
    expect_close("dtable", values(dtable), want_dtable, op_bound(stat_dtype(dtype), 3, 12));
  }
}

TEST(Copy, SameBitsAtAllThreadCounts) {
  expect_same_at_all_thread_counts([](Machine& machine) {
    const int64_t T = 301, D = 130;
    std::vector<int32_t> ids;
    for (int32_t t = 0; t < T; ++t) ids.push_back(t * 7 % 11);
    Tensor dtable = machine.tensor(DType::kF32, {11, D});
    const Tensor dx = machine.put(ref::random("dx", {T, D}, 0, 1), DType::kF32);
    ops::embed_backward_acc(machine.ctx, dx, machine.put(ids, {T}), dtable);
    return std::vector<Tensor>{dtable};
  });
}

TEST(Copy, NamesTheWrongId) {
  Machine machine(2);
  Tensor x = machine.tensor(DType::kF32, {2, 3}), table = machine.tensor(DType::kF32, {4, 3});
  EXPECT_ERROR(ops::embed_forward(machine.ctx, table, machine.put({1, 4}, {2}), x),
               "token id 4 at position 1 is outside the vocabulary of 4 ids");
  EXPECT_ERROR(ops::embed_backward_acc(machine.ctx, x, machine.put({-1, 0}, {2}), table),
               "token id -1 at position 0 is outside the vocabulary of 4 ids");
}

TEST(Copy, NamesTheWrongShapeOrType) {
  Machine machine(1);
  Tensor a = machine.tensor(DType::kF32, {2, 3}), b = machine.tensor(DType::kF32, {3, 2});
  Tensor i = machine.tensor(DType::kI32, {2, 3});
  EXPECT_ERROR(ops::cast(machine.ctx, a, b),
               "x is f32 [2, 3] but y is f32 [3, 2]; they must have the same shape");
  EXPECT_ERROR(ops::add(machine.ctx, a, i, a), "b must have a float type, is i32 [2, 3]");
}

#ifndef HADAL_HAS_CUDA
TEST(Copy, RefusesAnotherDevice) {
  Machine machine(1);
  Context ctx = {Device{DeviceKind::kCuda, 0}, Stream{}, machine.ctx.threads, machine.ctx.memory};
  Tensor a = machine.tensor(DType::kF32, {2});
  EXPECT_ERROR(ops::fill(ctx, 1.0, a), "fill: this build has no CUDA backend; use --device cpu");
}
#endif

}  // namespace
}  // namespace hadal::test
