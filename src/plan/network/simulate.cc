// Event by event over the classes of flows.
// SPDX-License-Identifier: Apache-2.0
#include "plan/network/simulate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/check.h"
#include "plan/network/classes.h"

namespace hadal::plan::network {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kRounding = 1e-9;  // of a flow's bytes: what counts as nothing left

// Classes of flows that share links, directly or through others.
std::vector<std::vector<uint32_t>> connected(const Incidence& incidence) {
  std::vector<uint32_t> parent(incidence.num_flows());
  std::iota(parent.begin(), parent.end(), 0u);
  const auto root = [&](uint32_t f) {
    while (parent[f] != f) f = parent[f] = parent[parent[f]];
    return f;
  };
  for (size_t l = 0; l < incidence.num_links(); ++l)
    for (const auto& use : incidence.flows_of(l))
      parent[root(use.other)] = root(incidence.flows_of(l)[0].other);
  std::vector<std::vector<uint32_t>> parts;
  std::vector<uint32_t> part_of(incidence.num_flows(), kNoPiece);
  for (uint32_t f = 0; f < incidence.num_flows(); ++f) {
    uint32_t& part = part_of[root(f)];
    if (part == kNoPiece) part = static_cast<uint32_t>(parts.size()), parts.emplace_back();
    parts[part].push_back(f);
  }
  return parts;
}

class Part {
 public:
  Part(const Classes& classes, std::span<const Flow> flows, double until, Outcome& out)
      : classes_(classes), flows_(flows), until_(until), out_(out), solver_(classes.incidence) {
    rates_.assign(classes.num_classes(), 0.0);
  }

  void run(std::vector<uint32_t> members) {
    std::stable_sort(members.begin(), members.end(),
                     [&](uint32_t a, uint32_t b) { return flow(a).start < flow(b).start; });
    std::vector<uint32_t> active;
    size_t next = 0;
    double now = 0.0;
    while (next < members.size() || !active.empty()) {
      if (active.empty()) now = std::max(now, flow(members[next]).start);
      if (now >= until_) return;
      for (; next < members.size() && flow(members[next]).start <= now; ++next)
        active.push_back(members[next]);
      solver_.solve(active, rates_);
      double until = until_;
      if (next < members.size()) until = std::min(until, flow(members[next]).start);
      for (const uint32_t c : active) until = std::min(until, now + time_left(c));
      ++out_.num_events;
      if (std::isinf(until)) return;  // all that is left is stopped for good
      const double step = until - now;
      now = until;
      std::erase_if(active, [&](uint32_t c) { return send(c, step, now); });
    }
  }

 private:
  const Flow& flow(uint32_t c) const { return flows_[classes_.example_of[c]]; }
  double time_left(uint32_t c) const {
    if (std::isinf(rates_[c]) || out_.left[c] <= kRounding * flow(c).bytes) return 0.0;
    return rates_[c] > 0 ? out_.left[c] / rates_[c] : kInfinity;
  }
  // True once the class has sent everything.
  bool send(uint32_t c, double step, double now) {
    out_.left[c] = std::isinf(rates_[c]) ? 0.0 : out_.left[c] - rates_[c] * step;
    if (out_.left[c] > kRounding * flow(c).bytes) return false;
    out_.left[c] = 0.0;
    out_.end[c] = now;
    return true;
  }

  const Classes& classes_;
  std::span<const Flow> flows_;
  double until_;
  Outcome& out_;
  MaxMin solver_;
  std::vector<double> rates_;
};

}  // namespace

double Outcome::last_end() const {
  return end.empty() ? 0.0 : *std::max_element(end.begin(), end.end());
}

Outcome simulate(const Paths& paths, std::span<const Flow> flows, double until) {
  for (const Flow& flow : flows)
    HADAL_CHECK(flow.bytes >= 0 && std::isfinite(flow.bytes) && flow.start >= 0, "a flow has ",
                flow.bytes, " bytes from ", flow.start, " s; allowed: from 0");
  Classes classes = merge_alike(paths, flows);
  Outcome out;
  out.end.assign(classes.num_classes(), kInfinity);
  out.left.resize(classes.num_classes());
  for (uint32_t c = 0; c < classes.num_classes(); ++c)
    out.left[c] = flows[classes.example_of[c]].bytes;
  Part part(classes, flows, until, out);
  for (std::vector<uint32_t>& members : connected(classes.incidence)) part.run(std::move(members));
  out.class_of = std::move(classes.class_of);
  return out;
}

}  // namespace hadal::plan::network
