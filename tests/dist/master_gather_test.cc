// MasterGather on CPU ranks: masters and what is made of them, layer by layer, have the bits of
// whole regions and of one call for all copies.
// SPDX-License-Identifier: Apache-2.0
#include "train/master_gather.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/rng.h"
#include "ops/copy.h"
#include "parallel/launch.h"
#include "tests/grad/harness.h"

namespace hadal::train {
namespace {

// Masters with this rank's shares updated: values that differ on every rank.
void update(ParamStore& masters, int rank) {
  const Rng rng(13, stream_id(concat("masters of ", rank)));
  for (const ParamStore::Region region : ParamStore::kRegions) {
    const Tensor share = masters.slice(masters.share(region));
    for (int64_t i = 0; i < share.num_elements(); ++i)
      store_element(share.raw(), share.dtype(), i, rng.normal(static_cast<uint64_t>(i)));
  }
}

void expect_bits(const Tensor& got, const Tensor& want, const char* what) {
  HADAL_CHECK(got.num_bytes() == want.num_bytes() &&
                  std::memcmp(got.raw(), want.raw(), static_cast<size_t>(got.num_bytes())) == 0,
              what, " are not those of one call for all");
}

void expect_fp8(const Operand& got, const Operand& want) {
  expect_bits(got.scale, want.scale, "scales");
  for (int64_t r = 0; r < want.data.dim(0); ++r)
    HADAL_CHECK(std::memcmp(got.data.row(r).raw(), want.data.row(r).raw(),
                            static_cast<size_t>(want.data.dim(1))) == 0,
                "FP8 copies are not those of one call for all");
}

struct Stores {
  Stores(Context& ctx, const Config& config, const RankShare& share)
      : masters(ctx, config, DType::kF32, ParamStore::Extent::kAll, share),
        copies(ctx, config, DType::kBF16, ParamStore::Extent::kMatrices, share),
        fp8(ctx, config, masters.tree) {}
  ParamStore masters, copies;
  Fp8Weights fp8;
};

void check(const ParallelConfig& parallel) {
  World world({.num_ranks = parallel.mesh.num_ranks()});
  ASSERT_NO_THROW(launch(world, [&](int rank) {
    test::Machine machine(1);
    Context& ctx = machine.ctx;
    Team team(parallel, test::tiny_config(), &world);
    const Config config = team.local_model();
    Stores got(ctx, config, team.share()), want(ctx, config, team.share());
    MasterGather gather(ctx, config, team,
                        {.masters = got.masters, .copies = &got.copies, .fp8 = &got.fp8});
    for (int step = 0; step < 2; ++step) {
      update(got.masters, rank + 10 * step);
      update(want.masters, rank + 10 * step);
      for (const ParamStore::Region region : ParamStore::kRegions) gather.updated(region);
      gather.start();
      HADAL_CHECK(gather.is_under_way() ==
                      (parallel.overlap && team.recordable() != Team::Recordable::kMicroBatch),
                  "by layers, or not");
      gather.begin_step();
      for (const int64_t layer : {0, 1, 2, 3}) gather.await(layer);
      gather.finish();
      HADAL_CHECK(!gather.is_under_way(), "it is finished");

      for (const ParamStore::Region region : ParamStore::kRegions)
        team.summing(region).all_gather(ctx, want.masters.slice(want.masters.share(region)),
                                        want.masters.slice(want.masters.region(region)));
      ops::cast(ctx, want.masters.matrices(), want.copies.matrices());
      want.fp8.quantise(ctx, want.masters.tree);
      expect_bits(got.masters.flat(), want.masters.flat(), "masters");
      expect_bits(got.copies.flat(), want.copies.flat(), "copies");
      const Weights a = got.fp8.weights_of(got.masters.tree, &got.copies.tree),
                    b = want.fp8.weights_of(want.masters.tree, &want.copies.tree);
      for (size_t l = 0; l < a.layers.size(); ++l) {
        expect_fp8(a.layers[l].attn.wo, b.layers[l].attn.wo);
        for (size_t e = 0; e < a.layers[l].moe.experts.w2.size(); ++e)
          expect_fp8(a.layers[l].moe.experts.w2[e], b.layers[l].moe.experts.w2[e]);
      }
      expect_fp8(a.mtp[1].block.moe.shared.w1, b.mtp[1].block.moe.shared.w1);
    }
  }));
}

TEST(MasterGather, LayersHaveTheBitsOfRegions) {
  check({.mesh = {.dp = 2, .ep = 2}});
  check({.mesh = {.dp = 4, .ep = 2}});
  check({.mesh = {.dp = 2, .tp = 2}});
}

TEST(MasterGather, WhereStepsAreRecordedRegionsGoBesideTheUpdate) {
  check({.mesh = {.dp = 2}});
  check({.mesh = {.dp = 3}});
}

TEST(MasterGather, WithoutOverlapRegionsGoAtOnce) {
  check({.mesh = {.dp = 2, .ep = 2}, .overlap = false});
}

}  // namespace
}  // namespace hadal::train
