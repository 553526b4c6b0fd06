// Mesh: how the ranks of a run are split over the axes pp, dp, ep and tp.
//
//   ranks = pp * dp * tp; ep divides dp: expert parallelism reuses data-parallel ranks
//
// Rank order, fastest first: tp, ep, dp/ep, pp. So the ranks of an expert group are neighbours and
// share nodes first, and pipeline stages are farthest apart.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hadal {

struct Mesh {
  int pp = 1, dp = 1, ep = 1, tp = 1;

  int num_ranks() const { return pp * dp * tp; }
  // Copies of an expert: data-parallel ranks that hold the same experts.
  int expert_dp() const { return dp / ep; }
  bool operator==(const Mesh&) const = default;
};

struct MeshCoord {
  int pp = 0, dp = 0, tp = 0;  // ep is dp % mesh.ep
  bool operator==(const MeshCoord&) const = default;
};

// What a mesh has to fit.
struct MeshDemand {
  int num_ranks = 1;                // processes that were started
  int64_t num_layers = 1;           // every stage needs at least one
  int64_t num_experts = 1;          // routed; ep divides them
  int64_t num_heads = 1;            // tp divides them
  int64_t dense_width = 0;          // of dense MLPs; tp divides it. 0: there are none
  int64_t num_stages_per_rank = 1;  // 2 for schedules that give a rank two model chunks
  int64_t batch_sequences = 0;      // of a step; dp divides them. 0: not checked
};

// "pp 16, dp 128, ep 64, tp 1"
std::string to_string(const Mesh& mesh);

// Throws an Error that names the number that does not divide.
void check_mesh(const Mesh& mesh, const MeshDemand& demand);

int rank_of(const Mesh& mesh, const MeshCoord& coord);
MeshCoord coord_of(const Mesh& mesh, int rank);

enum class MeshAxis : uint8_t { kPipeline, kData, kExpert, kExpertData, kTensor };
// Ranks that differ from `rank` along one axis alone, itself included, in order. kExpert: the
// dp ranks that share one set of all experts; kExpertData: those that hold the same experts.
std::vector<int> group_of(const Mesh& mesh, int rank, MeshAxis axis);

// Nodes that a group touches where each node holds `ranks_per_node` consecutive ranks.
int num_nodes_of(const std::vector<int>& group, int ranks_per_node);

}  // namespace hadal
