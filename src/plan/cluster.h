// Cluster: devices, hosts, links and prices of a machine to plan for, as data.
//
// Read from configs/clusters/*.json. Units are SI: bytes, seconds, bytes/s, FLOP/s, dollars.
// Bandwidths are per device (scale_up) or per NIC (scale_out) and per direction. Every group
// carries the source of its numbers, which outputs repeat.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hadal::plan {

struct DeviceSpec {
  std::string name;
  std::string source;
  double memory_bytes = 0.0;
  double reserved_bytes = 0.0;    // of a driver, contexts and libraries: not for the run
  double memory_bandwidth = 0.0;  // peak
  double bf16_flops = 0.0;        // dense peak: what MFU is against
  int sms = 0;                    // multiprocessors, or cores of a CPU
  int comm_sms = 0;               // of them for communication kernels while both run
  double dollars_per_hour = 0.0;
};

// The links inside a node: NVLink. Absent (bandwidth 0) where a node has one device.
struct ScaleUp {
  std::string name, source;
  double bandwidth = 0.0;  // effective
  double latency = 0.0;
};

// The network between nodes. Absent (nics_per_node 0) where there is one node.
struct ScaleOut {
  std::string name, source;
  int nics_per_node = 0;
  double bandwidth = 0.0;            // line rate of a NIC
  double effective_bandwidth = 0.0;  // reached by large messages
  double latency_same_leaf = 0.0, latency_cross_leaf = 0.0;
};

// The network's switches; "none" where there are none. See plan/network.
struct TopologySpec {
  std::string kind = "none";  // multi_plane, multi_rail, fat_tree2, fat_tree3, none
  int planes = 1;
  int switch_ports = 0;
};

struct Cluster {
  std::string name;
  DeviceSpec device;
  int num_nodes = 1;
  int devices_per_node = 1;
  double host_memory_bytes = 0.0;  // of a node
  ScaleUp scale_up;
  ScaleOut scale_out;
  TopologySpec topology;
  std::vector<std::string> rate_files;  // in order of preference
  // For rows of another device: factors on rates of FLOP and of all else.
  double flops_scale = 1.0, bytes_scale = 1.0;

  int num_devices() const { return num_nodes * devices_per_node; }
};

// Throws an Error that names the file, the key and what is allowed.
Cluster read_cluster(const std::string& path);

}  // namespace hadal::plan
