// Links over NCCL: what waits for what is said with events between two streams.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/links_nccl.h"

#include <map>
#include <utility>

#include "core/check.h"
#include "core/stream_state.h"
#include "parallel/comm_parts.h"

namespace hadal {
namespace {

class LinksNccl final : public PipelineLinks {
 public:
  LinksNccl(NcclWorld& gpus, const std::vector<int>& ranks, const std::vector<Link>& links,
            const char* name)
      : gpus_(gpus), name_(name) {
    const int me = gpus.world().rank();
    for (const Link& link : links) {
      const int from = ranks[static_cast<size_t>(link.from)],
                to = ranks[static_cast<size_t>(link.to)];
      // NOTE: all ranks go through the links in one order, so that no two wait for each other.
      if (from == me) lines_[link] = &gpus.line(to, true, link.gradients);
      if (to == me) lines_[link] = &gpus.line(from, false, link.gradients);
    }
  }
  ~LinksNccl() override {
    for (const Event event : events_) device::destroy(gpus_.device(), event);
  }

  Event send(Context& ctx, const Link& link, In x) override { return post(ctx, link, x); }
  Event receive(Context& ctx, const Link& link, Out y) override { return post(ctx, link, y); }

  void await(Context& ctx, Event& event) override {
    if (event.handle == nullptr) return;
    device::await(ctx.device, ctx.stream, event);
    free_.push_back(std::exchange(event, Event()));
  }

  int num_sms() const override {
    return static_cast<int>(lines_.size()) * gpus_.options().line_ctas;
  }

 private:
  Event post(Context& ctx, const Link& link, const Tensor& data) {
    const auto found = lines_.find(link);
    HADAL_CHECK(found != lines_.end(), "internal error: there is no link from rank ", link.from,
                " to rank ", link.to, " here");
    comm_parts::check_dense(data);
    gpus_.world().at("transfer", name_);
    const NcclWorld::Line& line = *found->second;
    Event event = take_event();
    device::record(ctx.device, ctx.stream, event);
    device::await(ctx.device, line.stream, event);
    gpus_.move(line, data.raw(), data.num_bytes());
    device::record(ctx.device, line.stream, event);
    return event;
  }

  // NOTE: an event may be recorded again once those that wait for it have been told to.
  Event take_event() {
    if (!free_.empty()) {
      const Event event = free_.back();
      free_.pop_back();
      return event;
    }
    const Event event = device::make_mark(gpus_.device());
    if (event.handle != nullptr) events_.push_back(event);
    return event;
  }

  NcclWorld& gpus_;
  const char* name_;
  std::map<Link, const NcclWorld::Line*> lines_;
  std::vector<Event> events_, free_;  // all; those that mark nothing
};

}  // namespace

std::unique_ptr<PipelineLinks> make_links_nccl(NcclWorld& gpus, const std::vector<int>& ranks,
                                               const std::vector<Link>& links, const char* name) {
  return std::make_unique<LinksNccl>(gpus, ranks, links, name);
}

}  // namespace hadal
