// GradientSums on CPU ranks: layers at once and the rest at the end have the bits of whole regions.
// SPDX-License-Identifier: Apache-2.0
#include "train/gradient_sums.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/rng.h"
#include "parallel/launch.h"
#include "tests/grad/harness.h"

namespace hadal::train {
namespace {

using Region = ParamStore::Region;

// Gradients that differ on every rank.
void fill(const Tensor& flat, int rank) {
  const Rng rng(11, stream_id(concat("gradients of ", rank)));
  for (int64_t i = 0; i < flat.num_elements(); ++i)
    store_element(flat.raw(), flat.dtype(), i, rng.normal(static_cast<uint64_t>(i)));
}

void expect_shares_of_regions(Context& ctx, Team& team, const ParamStore& got, const Config& config,
                              int rank) {
  ParamStore want(ctx, config, DType::kF32, ParamStore::Extent::kTrained, team.share());
  fill(want.flat(), rank);
  for (const Region region : ParamStore::kRegions) {
    const Tensor share = want.slice(want.share(region));
    team.summing(region).reduce_scatter(ctx, want.slice(want.region(region)), Out(Tensor(share)));
    HADAL_CHECK(
        share.num_elements() == 0 || std::memcmp(share.raw(), got.slice(got.share(region)).raw(),
                                                 static_cast<size_t>(share.num_bytes())) == 0,
        "a share is not that of the whole region");
  }
}

void check(const ParallelConfig& parallel) {
  World world({.num_ranks = parallel.mesh.num_ranks()});
  ASSERT_NO_THROW(launch(world, [&](int rank) {
    test::Machine machine(1);
    Context& ctx = machine.ctx;
    Team team(parallel, test::tiny_config(), &world);
    const Config config = team.local_model();
    ParamStore grads(ctx, config, DType::kF32, ParamStore::Extent::kTrained, team.share());
    GradientSums sums(ctx, config, team, grads);
    HADAL_CHECK(sums.starts_layers() == parallel.overlap, "layers start, or do not");
    HADAL_CHECK(sums.num_sms() == 0, "a CPU has no SMs");
    using Layers = GradientSums::Layers;
    const auto start_layers = [&] {  // MTP modules last
      for (const int64_t layer : {3, 2, 1, 0}) sums.start(layer);
      sums.finish_layers();
    };
    // A step that is done again, and one whose layers nobody told of.
    if (sums.starts_layers()) {
      fill(grads.flat(), rank + 100);
      start_layers();
    }
    for (const Layers layers : {Layers::kDone, Layers::kDone, Layers::kLeft}) {
      fill(grads.flat(), rank);
      const bool done = layers == Layers::kDone && sums.starts_layers();
      if (done) start_layers();
      sums.start_rest(done ? Layers::kDone : Layers::kLeft);
      sums.finish();
      expect_shares_of_regions(ctx, team, grads, config, rank);
    }
  }));
}

TEST(GradientSums, LayersHaveTheBitsOfRegions) {
  check({.mesh = {.dp = 2}});
  check({.mesh = {.dp = 3}});
  check({.mesh = {.dp = 4, .ep = 2}});
}

TEST(GradientSums, WithoutOverlapAllComeAtTheEnd) { check({.mesh = {.dp = 2}, .overlap = false}); }

// Of a layer each group of the layout has one run, between those of the layers beside it.
TEST(GradientSums, LayersAreRunsOfTheLayout) {
  test::Machine machine(1);
  const Config config = test::tiny_config();
  const ParamStore store(machine.ctx, config, DType::kF32, ParamStore::Extent::kTrained);
  const FlatRange dense = store.layer_run(ParamGroup::kMatrices, 0),
                  moe = store.layer_run(ParamGroup::kMatrices, 1),
                  experts = store.layer_run(ParamGroup::kExperts, 1);
  EXPECT_EQ(dense.end(), moe.begin);
  EXPECT_EQ(store.layer_run(ParamGroup::kExperts, 0).count, 0);
  EXPECT_EQ(experts.begin, store.region(Region::kExperts).begin);
  EXPECT_GE(experts.count, 8 * 3 * padded(config.hidden_size * config.moe_intermediate_size));
  EXPECT_EQ(store.layer_run(ParamGroup::kMatrices, 7).count, 0);
}

}  // namespace
}  // namespace hadal::train
