// StepClock: marks in the stream of the work.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/step_clock.h"

#include "core/check.h"

namespace hadal {

StepClock::~StepClock() {
  for (const Mark& mark : marks_) device::destroy(device_, mark.event);
  device::destroy(device_, zero_.event);
}

void StepClock::set(const Context& ctx, Mark& mark) {
  device::record(device_, ctx.stream, mark.event);
  mark.ms = 1e3 * timer_.seconds();
}

void StepClock::start(const Context& ctx) {
  used_ = 0;
  set(ctx, zero_);
}

void StepClock::add(const Context& ctx) {
  if (used_ == marks_.size()) marks_.emplace_back(device_);
  set(ctx, marks_[used_++]);
}

void StepClock::begin(const Context& ctx) {
  HADAL_CHECK(used_ % 2 == 0, "internal error: a step began inside another one");
  add(ctx);
}
void StepClock::end(const Context& ctx) {
  HADAL_CHECK(used_ % 2 == 1, "internal error: a step ended that had not begun");
  add(ctx);
}

double StepClock::ms_of(const Mark& mark) const {
  return device_.kind == DeviceKind::kCpu ? mark.ms - zero_.ms
                                          : device::elapsed_ms(device_, zero_.event, mark.event);
}

std::vector<StepClock::Span> StepClock::spans() {
  std::vector<Span> all;
  for (size_t i = 0; i + 1 < used_; i += 2)
    all.push_back({.begin = ms_of(marks_[i]), .end = ms_of(marks_[i + 1])});
  return all;
}

}  // namespace hadal
