// Mesh: checks, coordinates, groups.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/mesh.h"

#include <set>

#include "core/check.h"

namespace hadal {
namespace {

void check_positive(const char* axis, int value) {
  HADAL_CHECK(value >= 1 && value <= 1 << 20, "mesh axis ", axis, " is ", value, "; allowed: 1 to ",
              1 << 20);
}

}  // namespace

std::string to_string(const Mesh& m) {
  return concat("pp ", m.pp, ", dp ", m.dp, ", ep ", m.ep, ", tp ", m.tp);
}

void check_mesh(const Mesh& m, const MeshDemand& d) {
  check_positive("pp", m.pp);
  check_positive("dp", m.dp);
  check_positive("ep", m.ep);
  check_positive("tp", m.tp);
  HADAL_CHECK(m.dp % m.ep == 0, "mesh: ep = ", m.ep, " does not divide dp = ", m.dp);
  const int64_t ranks = int64_t{m.pp} * m.dp * m.tp;
  HADAL_CHECK(ranks == d.num_ranks, "mesh: pp * dp * tp = ", m.pp, " * ", m.dp, " * ", m.tp, " = ",
              ranks, ", but there are ", d.num_ranks, " ranks");
  const int64_t stages = m.pp * d.num_stages_per_rank;
  HADAL_CHECK(stages <= d.num_layers, "mesh: pp = ", m.pp, " makes ", stages,
              " stages, but the model has ", d.num_layers, " layers; lower pp");
  HADAL_CHECK(d.num_experts % m.ep == 0, "mesh: ep = ", m.ep,
              " does not divide n_routed_experts = ", d.num_experts);
  HADAL_CHECK(d.num_heads % m.tp == 0, "mesh: tp = ", m.tp,
              " does not divide num_attention_heads = ", d.num_heads);
  HADAL_CHECK(d.dense_width % m.tp == 0, "mesh: tp = ", m.tp,
              " does not divide intermediate_size = ", d.dense_width);
  HADAL_CHECK(d.batch_sequences % m.dp == 0, "mesh: dp = ", m.dp,
              " does not divide batch_sequences = ", d.batch_sequences);
}

int rank_of(const Mesh& m, const MeshCoord& c) { return (c.pp * m.dp + c.dp) * m.tp + c.tp; }

MeshCoord coord_of(const Mesh& m, int rank) {
  HADAL_CHECK(rank >= 0 && rank < m.num_ranks(), "rank ", rank, " is not in a mesh of ",
              m.num_ranks());
  return {.pp = rank / (m.dp * m.tp), .dp = rank / m.tp % m.dp, .tp = rank % m.tp};
}

std::vector<int> group_of(const Mesh& m, int rank, MeshAxis axis) {
  const MeshCoord at = coord_of(m, rank);
  std::vector<int> group;
  const auto add = [&](MeshCoord c) { group.push_back(rank_of(m, c)); };
  switch (axis) {
    case MeshAxis::kPipeline:
      for (int p = 0; p < m.pp; ++p) add({.pp = p, .dp = at.dp, .tp = at.tp});
      break;
    case MeshAxis::kData:
      for (int d = 0; d < m.dp; ++d) add({.pp = at.pp, .dp = d, .tp = at.tp});
      break;
    case MeshAxis::kExpert:
      for (int e = 0; e < m.ep; ++e) add({.pp = at.pp, .dp = at.dp / m.ep * m.ep + e, .tp = at.tp});
      break;
    case MeshAxis::kExpertData:
      for (int d = at.dp % m.ep; d < m.dp; d += m.ep) add({.pp = at.pp, .dp = d, .tp = at.tp});
      break;
    case MeshAxis::kTensor:
      for (int t = 0; t < m.tp; ++t) add({.pp = at.pp, .dp = at.dp, .tp = t});
      break;
  }
  return group;
}

int num_nodes_of(const std::vector<int>& group, int ranks_per_node) {
  std::set<int> nodes;
  for (int rank : group) nodes.insert(rank / ranks_per_node);
  return static_cast<int>(nodes.size());
}

}  // namespace hadal
