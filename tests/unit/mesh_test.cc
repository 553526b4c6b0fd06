// Mesh: coordinates, groups and the numbers that do not divide.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "tests/unit/expect_error.h"

namespace hadal {
namespace {

constexpr Mesh kV3{.pp = 16, .dp = 128, .ep = 64, .tp = 1};

TEST(Mesh, RanksAndCoordinatesAreInverse) {
  const Mesh m{.pp = 3, .dp = 4, .ep = 2, .tp = 5};
  std::set<int> seen;
  for (int p = 0; p < m.pp; ++p)
    for (int d = 0; d < m.dp; ++d)
      for (int t = 0; t < m.tp; ++t) {
        const MeshCoord c{.pp = p, .dp = d, .tp = t};
        const int rank = rank_of(m, c);
        EXPECT_TRUE(seen.insert(rank).second);
        EXPECT_EQ(coord_of(m, rank), c);
      }
  EXPECT_EQ(static_cast<int>(seen.size()), m.num_ranks());
  EXPECT_EQ(*seen.rbegin(), m.num_ranks() - 1);
}

// DeepSeek-V3's cluster: 2,048 GPUs, experts of a layer over 64 GPUs, which are 8 nodes.
TEST(Mesh, KeepsExpertGroupsOnAsFewNodesAsTheyNeed) {
  EXPECT_EQ(kV3.num_ranks(), 2048);
  EXPECT_EQ(kV3.expert_dp(), 2);
  for (int rank : {0, 63, 64, 2047}) {
    const std::vector<int> ep = group_of(kV3, rank, MeshAxis::kExpert);
    EXPECT_EQ(ep.size(), 64u);
    EXPECT_EQ(num_nodes_of(ep, 8), 8);
    EXPECT_EQ(group_of(kV3, rank, MeshAxis::kExpertData).size(), 2u);
    EXPECT_EQ(group_of(kV3, rank, MeshAxis::kData).size(), 128u);
    EXPECT_EQ(num_nodes_of(group_of(kV3, rank, MeshAxis::kPipeline), 8), 16);
  }
}

TEST(Mesh, GroupsOfAnAxisPartitionTheRanks) {
  const Mesh m{.pp = 2, .dp = 8, .ep = 4, .tp = 2};
  for (MeshAxis axis : {MeshAxis::kPipeline, MeshAxis::kData, MeshAxis::kExpert,
                        MeshAxis::kExpertData, MeshAxis::kTensor}) {
    std::map<int, std::vector<int>> of;
    for (int rank = 0; rank < m.num_ranks(); ++rank) {
      const std::vector<int> group = group_of(m, rank, axis);
      EXPECT_EQ(std::count(group.begin(), group.end(), rank), 1);
      for (int other : group) EXPECT_EQ(group_of(m, other, axis), group);
    }
  }
}

TEST(Mesh, NamesTheNumberThatDoesNotDivide) {
  const MeshDemand v3{.num_ranks = 2048,
                      .num_layers = 61,
                      .num_experts = 256,
                      .num_heads = 128,
                      .num_stages_per_rank = 2,
                      .batch_sequences = 15360};
  const auto check = [&](Mesh m) { check_mesh(m, v3); };
  EXPECT_NO_THROW(check(kV3));
  EXPECT_ERROR(check({.pp = 16, .dp = 128, .ep = 48}), "mesh: ep = 48 does not divide dp = 128");
  EXPECT_ERROR(check({.pp = 16, .dp = 64, .ep = 64}),
               "mesh: pp * dp * tp = 16 * 64 * 1 = 1024, but there are 2048 ranks");
  EXPECT_ERROR(check({.pp = 32, .dp = 64, .ep = 64}),
               "mesh: pp = 32 makes 64 stages, but the model has 61 layers; lower pp");
  EXPECT_ERROR(check({.pp = 0, .dp = 64, .ep = 64}), "mesh axis pp is 0; allowed: 1 to 1048576");
  MeshDemand d{.num_ranks = 12, .num_layers = 8, .num_experts = 10, .num_heads = 4};
  EXPECT_ERROR(check_mesh({.pp = 1, .dp = 12, .ep = 3}, d),
               "mesh: ep = 3 does not divide n_routed_experts = 10");
  EXPECT_ERROR(check_mesh({.pp = 1, .dp = 4, .ep = 2, .tp = 3}, d),
               "mesh: tp = 3 does not divide num_attention_heads = 4");
  d.batch_sequences = 30;
  EXPECT_ERROR(check_mesh({.pp = 1, .dp = 12, .ep = 2}, d),
               "mesh: dp = 12 does not divide batch_sequences = 30");
}

}  // namespace
}  // namespace hadal
