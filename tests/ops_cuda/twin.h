// Twin: runs the same calls on the CPU and twice on the GPU, and compares what they return.
//
// Both GPU runs must have the same bits. Against the CPU the default is the same bits too: sums are
// in the same order and exp is the same polynomial (ops/cuda/detail). A tolerance is for what goes
// through the library's exp, log, sin or cos: c roundings of the largest element of the tensor.
// Outputs are NaN before each run, so an element that is never written shows up.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <functional>
#include <list>
#include <memory>
#include <thread>

#include "core/rng.h"
#include "core/side_stream.h"
#include "core/transfer.h"
#include "tests/compare.h"

namespace hadal::test {

inline bool has_gpu() { return device::num_devices(DeviceKind::kCuda) > 0; }

// One device with its tensors, which live as long as it does.
class Side {
 public:
  explicit Side(Device where)
      : device_(where),
        stream_(device::make_stream(where)),
        threads_(2),
        memory_(where),
        ctx{device_, stream_, threads_, memory_} {}
  ~Side() {
    blocks_.clear();
    device::destroy(device_, stream_);
  }

 private:
  Device device_;
  Stream stream_;
  ThreadPool threads_;
  Pool memory_;
  std::list<Block> blocks_;

 public:
  Context ctx;

  // Element i is value(i).
  Tensor make(DType dtype, Shape shape, const std::function<double(int64_t)>& value) {
    Tensor t;
    blocks_.push_back(memory_.take_tensor(dtype, shape, &t));
    HostWrite host(ctx, t);
    for (int64_t i = 0; i < t.num_elements(); ++i)
      store_element(host.tensor().raw(), dtype, i, value(i));
    host.finish();
    return t;
  }
  // Standard normal; a function of the name alone.
  Tensor random(std::string_view name, DType dtype, Shape shape, double size = 1.0) {
    const Rng rng(31, stream_id(name));
    return make(dtype, shape,
                [&](int64_t i) { return size * rng.normal(static_cast<uint64_t>(i)); });
  }
  Tensor integers(std::string_view name, Shape shape, int64_t limit) {
    const Rng rng(32, stream_id(name));
    return make(DType::kI32, shape, [&](int64_t i) {
      return static_cast<double>(rng.u64(static_cast<uint64_t>(i)) % static_cast<uint64_t>(limit));
    });
  }
  Tensor list(const std::vector<int32_t>& values) {
    return make(DType::kI32, {static_cast<int64_t>(values.size())},
                [&](int64_t i) { return values[static_cast<size_t>(i)]; });
  }
  // NaN, or -1 in integers.
  Tensor out(DType dtype, Shape shape) {
    return make(dtype, shape, [&](int64_t) { return is_float(dtype) ? NAN : -1.0; });
  }
};

using Calls = std::function<std::vector<Tensor>(Side&)>;

// Calls get a side and return dense tensors of it.
inline void expect_twins(const std::string& what, const Calls& calls, double roundings = 0.0) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU: " << device::why_no_cuda();
  Side cpu({}), first({DeviceKind::kCuda, 0}), second({DeviceKind::kCuda, 0});
  const std::vector<Tensor> want = calls(cpu), got = calls(first), again = calls(second);
  ASSERT_EQ(want.size(), got.size());
  for (size_t i = 0; i < want.size(); ++i) {
    const std::string name = concat(what, ", output ", i);
    const HostRead a(first.ctx, got[i]), b(second.ctx, again[i]);
    expect_bits_equal(name + ", again", b.tensor(), a.tensor());
    if (roundings == 0.0 || !is_float(want[i].dtype())) {
      expect_bits_equal(name, a.tensor(), want[i]);
      continue;
    }
    double largest = 0.0;
    for (double v : ref::from_tensor<double>(want[i]).data)
      if (std::isfinite(v)) largest = std::max(largest, std::fabs(v));
    expect_close(name, a.tensor(), want[i], roundings * unit_roundoff(want[i].dtype()) * largest);
  }
}

// call(rank, its context) for ranks that wait for each other: threads, or streams of the one GPU.
inline void run_ranks(Side& s, int ranks, const std::function<void(int, Context&)>& call) {
  if (s.ctx.device.kind == DeviceKind::kCpu) {
    std::vector<std::thread> threads;
    for (int r = 0; r < ranks; ++r) threads.emplace_back([&, r] { call(r, s.ctx); });
    for (std::thread& t : threads) t.join();
    return;
  }
  std::list<SideStream> sides;
  for (int r = 0; r < ranks; ++r) {
    Context ctx = sides.emplace_back(s.ctx.device).fork(s.ctx);
    ctx.numerics = s.ctx.numerics;
    call(r, ctx);
  }
  for (SideStream& side : sides) {
    Event mark = side.mark();
    side.join(s.ctx, mark);
    side.synchronize();
  }
}

inline const DType kTypes[] = {DType::kF64, DType::kF32, DType::kBF16};

}  // namespace hadal::test
