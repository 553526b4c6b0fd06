// Drawn routing of tokens to experts.
// SPDX-License-Identifier: Apache-2.0
#include "plan/network/expert_traffic.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/rng.h"

namespace hadal::plan::network {
namespace {

// The `n` largest of a stretch of keys, largest first, by insertion: n is small.
class Best {
 public:
  explicit Best(size_t n) : keys_(n) {}
  void clear() { std::fill(keys_.begin(), keys_.end(), 0); }
  void add(uint64_t key) {
    if (key <= keys_.back()) return;
    size_t i = keys_.size() - 1;
    for (; i > 0 && keys_[i - 1] < key; --i) keys_[i] = keys_[i - 1];
    keys_[i] = key;
  }
  const std::vector<uint64_t>& keys() const { return keys_; }

 private:
  std::vector<uint64_t> keys_;
};

// The experts of one token. A key is a score of 32 bits over the index of its owner.
class Router {
 public:
  Router(const ExpertRouting& r, int64_t num_nodes)
      : r_(r),
        rng_(r.seed, stream_id("plan.network.routing")),
        num_nodes_(static_cast<size_t>(num_nodes)),
        per_node_(static_cast<size_t>(r.num_experts / num_nodes)),
        is_limited_(r.max_nodes != 0 && r.max_nodes < num_nodes),
        keys_(static_cast<size_t>(r.num_experts)),
        of_node_(static_cast<size_t>(r.group_top)),
        nodes_(static_cast<size_t>(is_limited_ ? r.max_nodes : 1)),
        experts_(static_cast<size_t>(r.top_k)) {}

  // Keys whose low halves are experts.
  const std::vector<uint64_t>& draw(uint64_t token) {
    const size_t E = keys_.size();
    uint64_t state = rng_.u64(token);  // then splitmix64: 256 scores a token are the whole cost
    for (size_t e = 0; e < E; ++e) {
      uint64_t x = state += 0x9E3779B97F4A7C15u;
      x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
      x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
      keys_[e] = (x & 0xFFFFFFFF00000000u) | e;
    }
    for (size_t e = 0; e < r_.popularity.size(); ++e) {
      const double u = (static_cast<double>(keys_[e] >> 32) + 0.5) * 0x1p-32;
      const double score = std::pow(u, 1.0 / r_.popularity[e]) * 0x1p32;
      keys_[e] = uint64_t{static_cast<uint32_t>(score)} << 32 | e;
    }
    experts_.clear();
    if (!is_limited_) {
      for (const uint64_t key : keys_) experts_.add(key);
      return experts_.keys();
    }
    rank_nodes();
    for (const uint64_t node : nodes_.keys())
      for (size_t e = (node & 0xFFFF) * per_node_, end = e + per_node_; e < end; ++e)
        experts_.add(keys_[e]);
    return experts_.keys();
  }

 private:
  // Nodes by the sum of their best scores; an index of 16 bits leaves 48 for the sum.
  void rank_nodes() {
    nodes_.clear();
    for (size_t n = 0; n < num_nodes_; ++n) {
      of_node_.clear();
      for (size_t e = n * per_node_; e < (n + 1) * per_node_; ++e) of_node_.add(keys_[e]);
      uint64_t sum = 0;
      for (const uint64_t key : of_node_.keys()) sum += key >> 32;
      nodes_.add(sum << 16 | n);
    }
  }

  const ExpertRouting& r_;
  Rng rng_;
  size_t num_nodes_, per_node_;
  bool is_limited_;
  std::vector<uint64_t> keys_;  // [experts]
  Best of_node_, nodes_, experts_;
};

void check(const ExpertRouting& r, int64_t num_gpus, int64_t gpus_per_node) {
  HADAL_CHECK(gpus_per_node > 0 && num_gpus > 0 && num_gpus % gpus_per_node == 0,
              "an expert-parallel group of ", num_gpus, " GPUs is not whole nodes of ",
              gpus_per_node, "; choose a multiple of ", gpus_per_node);
  HADAL_CHECK(r.num_experts > 0 && r.num_experts % num_gpus == 0, "the number of experts is ",
              r.num_experts, "; allowed with ", num_gpus, " GPUs: multiples of ", num_gpus);
  const int64_t nodes = num_gpus / gpus_per_node;
  const int64_t reachable = r.max_nodes == 0 ? nodes : std::min(nodes, r.max_nodes);
  HADAL_CHECK(r.top_k >= 1 && r.top_k <= reachable * (r.num_experts / nodes),
              "experts per token is ", r.top_k, "; allowed: 1 to ",
              reachable * (r.num_experts / nodes), " in ", reachable, " nodes");
  HADAL_CHECK(r.max_nodes >= 0 && r.group_top >= 1, "the node limit is ", r.max_nodes,
              "; allowed: from 0 (none)");
  HADAL_CHECK(r.popularity.empty() || static_cast<int64_t>(r.popularity.size()) == r.num_experts,
              "there are ", r.popularity.size(), " popularities for ", r.num_experts, " experts");
  for (const double p : r.popularity)
    HADAL_CHECK(p > 0 && std::isfinite(p), "an expert's popularity is ", p,
                "; allowed: more than 0");
}

}  // namespace

ExpertTraffic draw_traffic(const ExpertRouting& r, int64_t num_gpus, int64_t gpus_per_node,
                           int64_t tokens_per_gpu) {
  check(r, num_gpus, gpus_per_node);
  HADAL_CHECK(tokens_per_gpu >= 1, "tokens per GPU is ", tokens_per_gpu, "; allowed: from 1");
  const size_t S = static_cast<size_t>(num_gpus);
  const size_t nodes = static_cast<size_t>(num_gpus / gpus_per_node);
  const size_t experts_per_gpu = static_cast<size_t>(r.num_experts) / S;
  ExpertTraffic t{.num_gpus = num_gpus,
                  .gpus_per_node = gpus_per_node,
                  .tokens_per_gpu = tokens_per_gpu,
                  .to_node = std::vector<int64_t>(S * nodes, 0),
                  .to_gpu = std::vector<int64_t>(S * S, 0),
                  .expert = std::vector<int64_t>(static_cast<size_t>(r.num_experts), 0)};
  Router router(r, static_cast<int64_t>(nodes));
  int64_t remote = 0, visited = 0, gpus = 0;
  std::vector<uint64_t> seen_node(nodes, 0), seen_gpu(S, 0);  // token + 1 that saw it last
  for (size_t s = 0; s < S; ++s) {
    const size_t home = s / static_cast<size_t>(gpus_per_node);
    for (int64_t i = 0; i < tokens_per_gpu; ++i) {
      const uint64_t token = s * static_cast<uint64_t>(tokens_per_gpu) + static_cast<uint64_t>(i);
      int64_t away = 0;
      for (const uint64_t key : router.draw(token)) {
        const size_t e = static_cast<uint32_t>(key);
        ++t.expert[e];
        const size_t g = e / experts_per_gpu, n = g / static_cast<size_t>(gpus_per_node);
        if (seen_gpu[g] != token + 1) {
          seen_gpu[g] = token + 1;
          ++t.to_gpu[s * S + g], ++gpus;
        }
        if (seen_node[n] == token + 1) continue;
        seen_node[n] = token + 1;
        ++t.to_node[s * nodes + n], ++visited;
        away += n != home;
      }
      remote += away;
      t.most_remote_nodes = std::max(t.most_remote_nodes, away);
    }
  }
  const double tokens = static_cast<double>(num_gpus * tokens_per_gpu);
  t.mean_remote_nodes = static_cast<double>(remote) / tokens;
  t.mean_nodes = static_cast<double>(visited) / tokens;
  t.mean_gpus = static_cast<double>(gpus) / tokens;
  return t;
}

NodeCost node_cost(double experts_per_node, int64_t max_nodes, double token_bytes,
                   double nic_bandwidth, double nvlink_bandwidth) {
  const double M = static_cast<double>(max_nodes);
  return {.experts_per_node = experts_per_node,
          .experts = experts_per_node * M,
          .network_seconds = M * token_bytes / nic_bandwidth,
          .nvlink_seconds = M * experts_per_node * token_bytes / nvlink_bandwidth};
}

}  // namespace hadal::plan::network
