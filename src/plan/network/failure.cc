// Failures while a collective runs.
// SPDX-License-Identifier: Apache-2.0
#include "plan/network/failure.h"

#include <charconv>
#include <cmath>
#include <set>

#include "core/check.h"

namespace hadal::plan::network {
namespace {

// Pieces that cross a link that carries nothing.
std::vector<uint8_t> broken_pieces(const Paths& paths) {
  std::vector<uint8_t> broken(paths.num_pieces(), 0);
  for (uint32_t p = 0; p < paths.num_pieces(); ++p)
    for (const Hop& hop : paths.hops(p)) broken[p] |= paths.capacity(hop.link) == 0.0;
  return broken;
}

bool crosses(const Flow& flow, const std::vector<uint8_t>& broken) {
  for (const uint32_t p : flow.pieces)
    if (p != kNoPiece && broken[p]) return true;
  return false;
}

// The rest of one flow's bytes, from NIC to NIC, on ways that work.
void send_on(Traffic& traffic, const Fabric& fabric, const Traffic::Ends& ends, double bytes) {
  const int64_t a = fabric.node_of(ends.from), b = fabric.node_of(ends.to);
  traffic.over_planes(a, b, fabric.index_of(ends.to), bytes, [&](int64_t p, double part) {
    const uint32_t near = fabric.gpu(a, p), far = fabric.gpu(b, p);
    if (near != ends.from) traffic.add_nvlink(ends.from, near, part);
    traffic.add_network(near, far, part);
    if (far != ends.to) traffic.add_nvlink(far, ends.to, part);
  });
}

}  // namespace

Failure parse_failure(const std::string& text, const char* flag) {
  const size_t colon = text.find(':');
  const std::string what = text.substr(0, colon);
  Failure failure;
  using Kind = Failure::Kind;
  failure.kind = what == "nic"      ? Kind::kNic
                 : what == "link"   ? Kind::kLink
                 : what == "switch" ? Kind::kSwitch
                 : what == "plane"  ? Kind::kPlane
                                    : Kind::kNone;
  const char* begin = colon == std::string::npos ? nullptr : text.data() + colon + 1;
  const char* end = text.data() + text.size();
  const bool is_number =
      begin != nullptr &&
      std::from_chars(begin, end, failure.index) == std::from_chars_result{end, std::errc()} &&
      failure.index >= 0;
  HADAL_CHECK(failure.kind != Kind::kNone && is_number, flag, " is ", text,
              "; allowed: nic:N, link:N, switch:N or plane:N, like plane:0");
  return failure;
}

void apply(Fabric& fabric, const Failure& failure) {
  using Kind = Failure::Kind;
  const auto check = [&](const char* what, int64_t count) {
    HADAL_CHECK(failure.index < count, "there is no ", what, ' ', failure.index,
                " to fail; this network has ", count);
  };
  const int64_t num_cables = static_cast<int64_t>(fabric.switch_links().size()) / 2;
  switch (failure.kind) {
    case Kind::kNone:
      return;
    case Kind::kNic:
      check("NIC", fabric.num_gpus());
      return fabric.fail_nic(static_cast<uint32_t>(failure.index));
    case Kind::kLink:
      check("cable between switches", num_cables);
      for (const size_t way : {0u, 1u})
        fabric.fail_link(fabric.switch_links()[2 * static_cast<size_t>(failure.index) + way].link);
      return;
    case Kind::kSwitch:
      check("switch", static_cast<int64_t>(fabric.num_switches()));
      return fabric.fail_switch(static_cast<uint32_t>(failure.index));
    case Kind::kPlane:
      return fabric.fail_plane(failure.index);
  }
}

FailureOutcome simulate_failure(Fabric& fabric, Traffic& traffic, Routing routing,
                                const Failure& failure) {
  FailureOutcome out;
  std::vector<Flow> flows = traffic.flows();
  const std::vector<Traffic::Ends> ends = traffic.ends();
  const Outcome whole = simulate(fabric.paths(), flows);
  out.end_without = whole.last_end();
  // Until the failure.
  const Outcome before = simulate(fabric.paths(), flows, failure.at);
  apply(fabric, failure);
  const std::vector<uint8_t> broken = broken_pieces(fabric.paths());
  const double again = failure.at + failure.reroute;
  std::vector<Flow> during;
  std::vector<size_t> running;
  std::vector<uint8_t> was_hit;
  for (size_t f = 0; f < flows.size(); ++f) {
    if (before.left_of(f) <= 0) {
      out.end = std::max(out.end, before.end_of(f));
      continue;
    }
    running.push_back(f);
    was_hit.push_back(crosses(flows[f], broken));
    during.push_back(flows[f]);
    during.back().bytes = before.left_of(f);
    during.back().start = std::max(failure.at, flows[f].start);
  }
  // Flows over what failed have no capacity and stand still.
  const Outcome wait = simulate(fabric.paths(), during, again);
  Traffic moved(fabric, routing);
  std::vector<Flow> after;
  out.num_flows = running.size();
  for (size_t i = 0; i < running.size(); ++i) {
    const bool stood_still = wait.left_of(i) >= during[i].bytes && during[i].start < again;
    out.num_stopped += stood_still;
    out.num_others_stopped += stood_still && !was_hit[i];
    if (wait.left_of(i) <= 0) {
      out.end = std::max(out.end, wait.end_of(i));
    } else if (!was_hit[i]) {
      after.push_back(during[i]);
      after.back().bytes = wait.left_of(i);
      after.back().start = std::max(again, during[i].start);
    } else {
      HADAL_CHECK(ends[running[i]].is_network, "NVLink does not fail here");
      send_on(moved, fabric, ends[running[i]], wait.left_of(i));
      out.bytes_moved += wait.left_of(i);
    }
  }
  const std::vector<Flow> rest = moved.flows(again);
  after.insert(after.end(), rest.begin(), rest.end());
  if (!after.empty()) out.end = std::max(out.end, simulate(fabric.paths(), after).last_end());
  return out;
}

}  // namespace hadal::plan::network
