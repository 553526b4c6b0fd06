// Cluster: reading and checking.
// SPDX-License-Identifier: Apache-2.0
#include "plan/cluster.h"

#include <filesystem>
#include <set>

#include "core/check.h"
#include "io/json.h"

namespace hadal::plan {
namespace {

double positive(const io::JsonObject& o, const char* key) {
  const double value = o.number(key);
  HADAL_CHECK(value > 0.0 && value < 1e30, o.where(), ": ", key, " is ", value,
              "; it has to be above 0");
  return value;
}

double not_negative(const io::JsonObject& o, const char* key, double fallback) {
  const double value = o.number(key, fallback);
  HADAL_CHECK(value >= 0.0 && value < 1e30, o.where(), ": ", key, " is ", value,
              "; it may not be negative");
  return value;
}

int count(const io::JsonObject& o, const char* key, int low, int high) {
  const int64_t value = o.integer(key);
  HADAL_CHECK(value >= low && value <= high, o.where(), ": ", key, " is ", value,
              "; allowed: ", low, " to ", high);
  return static_cast<int>(value);
}

DeviceSpec read_device(const io::JsonObject& o) {
  DeviceSpec d;
  d.name = o.string("name");
  d.source = o.string("source");
  d.memory_bytes = positive(o, "memory_bytes");
  d.reserved_bytes = not_negative(o, "reserved_bytes", 0.0);
  HADAL_CHECK(d.reserved_bytes < d.memory_bytes, o.where(), ": reserved_bytes is ",
              d.reserved_bytes, ", not below memory_bytes = ", d.memory_bytes);
  d.memory_bandwidth = positive(o, "memory_bandwidth");
  d.bf16_flops = positive(o, "bf16_flops");
  d.sms = count(o, "sms", 1, 1 << 16);
  d.comm_sms = o.has("comm_sms") ? count(o, "comm_sms", 0, d.sms - 1) : 0;
  d.dollars_per_hour = not_negative(o, "dollars_per_hour", 0.0);
  o.check_no_unknown();
  return d;
}

ScaleUp read_scale_up(const io::JsonObject& o) {
  ScaleUp s;
  s.name = o.string("name");
  s.source = o.string("source");
  s.bandwidth = positive(o, "bandwidth");
  s.latency = not_negative(o, "latency", 0.0);
  o.check_no_unknown();
  return s;
}

ScaleOut read_scale_out(const io::JsonObject& o) {
  ScaleOut s;
  s.name = o.string("name");
  s.source = o.string("source");
  s.nics_per_node = count(o, "nics_per_node", 1, 1024);
  s.bandwidth = positive(o, "bandwidth");
  s.effective_bandwidth = positive(o, "effective_bandwidth");
  HADAL_CHECK(s.effective_bandwidth <= s.bandwidth, o.where(), ": effective_bandwidth is ",
              s.effective_bandwidth, ", above bandwidth = ", s.bandwidth);
  s.latency_same_leaf = not_negative(o, "latency_same_leaf", 0.0);
  s.latency_cross_leaf = not_negative(o, "latency_cross_leaf", s.latency_same_leaf);
  o.check_no_unknown();
  return s;
}

TopologySpec read_topology(const io::JsonObject& o) {
  static const std::set<std::string, std::less<>> kKinds = {"multi_plane", "multi_rail",
                                                            "fat_tree2", "fat_tree3", "none"};
  TopologySpec t;
  t.kind = o.string("kind");
  HADAL_CHECK(kKinds.contains(t.kind), o.where(), ": kind is \"", t.kind, "\"; did you mean \"",
              io::nearest_word(t.kind, kKinds), "\"?");
  if (t.kind != "none") t.switch_ports = count(o, "switch_ports", 2, 4096);
  t.planes = o.has("planes") ? count(o, "planes", 1, 1024) : 1;
  o.check_no_unknown();
  return t;
}

}  // namespace

Cluster read_cluster(const std::string& path) {
  const io::JsonObject o = io::JsonObject::read(path);
  Cluster c;
  c.name = o.string("name");
  c.device = read_device(o.object("device"));
  c.num_nodes = count(o, "num_nodes", 1, 1 << 20);
  c.devices_per_node = count(o, "devices_per_node", 1, 1024);
  c.host_memory_bytes = positive(o, "host_memory_bytes");
  if (c.devices_per_node > 1) c.scale_up = read_scale_up(o.object("scale_up"));
  if (c.num_nodes > 1) c.scale_out = read_scale_out(o.object("scale_out"));
  if (o.has("topology")) c.topology = read_topology(o.object("topology"));
  for (const std::string& file : o.strings("rates"))
    c.rate_files.push_back((std::filesystem::path(path).parent_path() / file).string());
  if (o.has("rate_scale")) {
    const io::JsonObject scale = o.object("rate_scale");
    c.flops_scale = positive(scale, "flops");
    c.bytes_scale = positive(scale, "bytes");
    scale.check_no_unknown();
  }
  HADAL_CHECK(!c.rate_files.empty(), path, ": rates is empty; name a file of rates");
  o.check_no_unknown();
  return c;
}

}  // namespace hadal::plan
