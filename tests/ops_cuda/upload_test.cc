// BulkUpload and recorded work on a GPU.
// SPDX-License-Identifier: Apache-2.0
#include "core/bulk_upload.h"
#include "core/stream_state.h"
#include "ops/copy.h"
#include "ops/paced_copy.h"
#include "tests/ops_cuda/twin.h"

namespace hadal::test {
namespace {

TEST(OpsCuda, BulkUploadOfSeveralPieces) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  Side s({DeviceKind::kCuda, 0});
  std::vector<int32_t> first((size_t{40} << 20) + 7), second(5);
  for (size_t i = 0; i < first.size(); ++i) first[i] = static_cast<int32_t>(i * 2654435761u);
  for (size_t i = 0; i < second.size(); ++i) second[i] = static_cast<int32_t>(i);
  Tensor a, b;
  const Block memory =
      s.ctx.memory.take_tensor(DType::kI32, {static_cast<int64_t>(first.size())}, &a);
  const Block more = s.ctx.memory.take_tensor(DType::kI32, {5}, &b);
  {
    BulkUpload link(s.ctx);
    link.put(first.data(), a);
    link.put(second.data(), b);
  }
  EXPECT_EQ(download<int32_t>(s.ctx, a), first);
  EXPECT_EQ(download<int32_t>(s.ctx, b), second);
}

TEST(OpsCuda, RecordedWorkIsDoneAtEachLaunch) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  Side s({DeviceKind::kCuda, 0});
  if (!device::can_record(s.ctx.device)) GTEST_SKIP() << "work is not recorded in this build";
  Tensor sum = s.make(DType::kF32, {16}, [](int64_t) { return 0.0; });
  const Tensor one = s.make(DType::kF32, {16}, [](int64_t) { return 1.0; });
  device::begin_recording(s.ctx.device, s.ctx.stream);
  ops::add_acc(s.ctx, one, sum);
  const Graph graph = device::end_recording(s.ctx.device, s.ctx.stream);
  EXPECT_EQ(download<float>(s.ctx, sum)[3], 0.0f);
  for (int i = 0; i < 3; ++i) device::launch(s.ctx.device, s.ctx.stream, graph);
  EXPECT_EQ(download<float>(s.ctx, sum)[3], 3.0f);
  device::destroy(s.ctx.device, graph);
}

// Of what is put into another stream before it, each time, and takes 20 ms.
TEST(OpsCuda, ALaunchAwaitsWhatAnEventMarksThen) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  Side s({DeviceKind::kCuda, 0});
  const Device device = s.ctx.device;
  if (!device::can_record(device)) GTEST_SKIP() << "work is not recorded in this build";
  constexpr int64_t kCount = 1 << 18;
  Tensor sum = s.make(DType::kF32, {kCount}, [](int64_t) { return 0.0; });
  Tensor next = s.make(DType::kF32, {kCount}, [](int64_t) { return 100.0; });
  const Tensor one = s.make(DType::kF32, {kCount}, [](int64_t) { return 1.0; });
  const Tensor two = s.make(DType::kF32, {kCount}, [](int64_t) { return 2.0; });
  const Event event = device::make_mark(device);
  Context beside = s.ctx;
  beside.stream = device::make_urgent_stream(device);
  device::synchronize(device, s.ctx.stream);

  device::begin_recording(device, s.ctx.stream);
  device::await_outside(device, s.ctx.stream, event);
  ops::add_acc(s.ctx, next, sum);
  const Graph graph = device::end_recording(device, s.ctx.stream);
  double want = 0.0;
  for (const Tensor& from : {one, two, one}) {
    ops::paced_copy(beside, 4.0 * kCount / 20e-3, 1, from, Out(Tensor(next)));
    device::record(device, beside.stream, event);
    device::launch(device, s.ctx.stream, graph);
    want += from.raw() == two.raw() ? 2.0 : 1.0;
    EXPECT_EQ(download<float>(s.ctx, sum)[kCount - 1], want);
  }
  device::destroy(device, graph);
  device::destroy(device, event);
  device::destroy(device, beside.stream);
}

}  // namespace
}  // namespace hadal::test
