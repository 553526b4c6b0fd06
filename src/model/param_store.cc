// ParamStore: layout, initialisation, and the view that modules compute with.
// SPDX-License-Identifier: Apache-2.0
#include "model/param_store.h"

#include <algorithm>

#include "core/rng.h"
#include "core/transfer.h"
#include "ops/copy.h"

namespace hadal {
namespace {

ParamGroup last_group(ParamStore::Extent extent) {
  switch (extent) {
    case ParamStore::Extent::kAll:
      return ParamGroup::kBuffers;
    case ParamStore::Extent::kTrained:
    case ParamStore::Extent::kShare:
      return ParamGroup::kNorms;
    case ParamStore::Extent::kMatrices:
      return ParamGroup::kMatrices;
  }
  HADAL_UNREACHABLE("extent");
}

constexpr size_t index(ParamGroup g) { return static_cast<size_t>(g); }

}  // namespace

FlatRange intersect(const FlatRange& a, const FlatRange& b) {
  const int64_t begin = std::max(a.begin, b.begin), end = std::min(a.end(), b.end());
  return {.begin = begin, .count = std::max<int64_t>(0, end - begin)};
}

ParamStore::ParamStore(Context& ctx, const Config& config, DType dtype, Extent extent,
                       const RankShare& share)
    : extent_(extent), share_(share) {
  resize(config, tree);
  const ParamSizes sizes = param_sizes(config, share_);
  std::array<int64_t, kNumParamGroups> next{};
  const auto holds = [&](const ParamInfo& info) { return !share_.holds || share_.holds(info); };
  int64_t total = 0;
  for (size_t g = 0; g < kNumParamGroups; ++g) {
    next[g] = total;
    if (g <= index(last_group(extent))) total += sizes.group[g];
    end_[g] = total;
  }
  const FlatRange shares[] = {this->share(Region::kExperts), this->share(Region::kSplit),
                              this->share(Region::kDense)};
  const int64_t elements = is_whole() ? total : shares[0].count + shares[1].count + shares[2].count;
  memory_ = ctx.memory.take_tensor(dtype, {elements}, &flat_);
  ops::fill(ctx, 0.0, flat_);
  for_each_param(
      config,
      [&](const ParamInfo& info, Tensor& leaf) {
        const ParamGroup g = group_of(info, share_);
        if (g > last_group(extent) || !holds(info)) return;
        const FlatRange range{.begin = next[index(g)], .count = info.shape.num_elements()};
        next[index(g)] += padded(range.count);
        places_.push_back({.name = info.name, .range = range, .group = g, .layer = info.layer});
        if (is_whole() ||
            std::any_of(std::begin(shares), std::end(shares),
                        [&](const FlatRange& s) { return intersect(range, s) == range; }))
          leaf = slice(range).view(info.shape);
      },
      tree);
}

FlatRange ParamStore::region(Region region) const {
  const int64_t experts = end_[index(ParamGroup::kExperts)],
                split = end_[index(ParamGroup::kSplit)];
  switch (region) {
    case Region::kExperts:
      return {.begin = 0, .count = experts};
    case Region::kSplit:
      return {.begin = experts, .count = split - experts};
    case Region::kDense:
      return {.begin = split, .count = end_[index(ParamGroup::kNorms)] - split};
  }
  HADAL_UNREACHABLE("region");
}

FlatRange ParamStore::share(Region r) const {
  const FlatRange all = region(r);
  const Share& share = r == Region::kExperts ? share_.experts
                       : r == Region::kSplit ? share_.split
                                             : share_.dense;
  const int64_t count = all.count / share.ways;
  return {.begin = all.begin + share.index * count, .count = count};
}

FlatRange ParamStore::decayed_range() const {
  return {.begin = 0, .count = end_[index(ParamGroup::kGates)]};
}

FlatRange ParamStore::layer_run(ParamGroup group, int64_t layer) const {
  FlatRange run;
  for (const Place& place : places_) {
    if (place.group != group || place.layer != layer) continue;
    if (run.count == 0) run.begin = place.range.begin;
    HADAL_CHECK(place.range.begin == run.end(),
                "internal error: the parameters of a layer are not one run at ", place.name);
    run.count += padded(place.range.count);
  }
  return run;
}

FlatRange ParamStore::range_of(const std::string& name) const {
  for (const Place& place : places_)
    if (place.name == name) return place.range;
  return {};
}

Tensor ParamStore::slice(const FlatRange& range) const {
  if (is_whole()) return flat_.rows(range.begin, range.count);
  int64_t before = 0;
  for (const Region r : kRegions) {
    const FlatRange mine = share(r);
    if (intersect(range, mine) == range)
      return flat_.rows(before + range.begin - mine.begin, range.count);
    before += mine.count;
  }
  HADAL_UNREACHABLE("the range is not in this share");
}

void ParamStore::for_each_piece(const Config& config, const VisitPiece& visit) const {
  auto place = places_.begin();
  for_each_param(config, [&](const ParamInfo& info) {
    if (place == places_.end() || place->name != info.name) return;
    const FlatRange range = place++->range;
    if (is_whole()) return visit(info, 0, slice(range));
    for (const Region r : kRegions) {
      const FlatRange mine = intersect(range, share(r));
      if (mine.count > 0) visit(info, mine.begin - range.begin, slice(mine));
    }
  });
}

Tensor ParamStore::matrices() const { return flat_.rows(0, end_[index(ParamGroup::kMatrices)]); }
Tensor ParamStore::decayed() const { return flat_.rows(0, end_[index(ParamGroup::kGates)]); }
Tensor ParamStore::norms() const {
  return flat_.rows(end_[index(ParamGroup::kGates)],
                    end_[index(ParamGroup::kNorms)] - end_[index(ParamGroup::kGates)]);
}
Tensor ParamStore::trained() const { return flat_.rows(0, end_[index(ParamGroup::kNorms)]); }

void init_params(Context& ctx, const Config& config, uint64_t seed, ModelParams<Tensor>& tree,
                 const Share& tensor) {
  constexpr int64_t kTask = int64_t{1} << 16;  // elements
  for_each_param(
      config,
      [&](const ParamInfo& info, Tensor& leaf) {
        if (leaf.empty()) return;
        const int64_t n = leaf.num_elements();
        const Slice slice = slice_of(info, tensor);
        const Rng rng(seed, stream_id("init." + info.name));
        HostWrite values(ctx, leaf);
        const Tensor& to = values.tensor();
        ctx.threads.parallel_for((n + kTask - 1) / kTask, [&](int64_t task, int) {
          for (int64_t i = task * kTask; i < std::min(n, (task + 1) * kTask); ++i) {
            double value = info.kind == ParamKind::kNorm ? 1.0 : 0.0;
            if (info.shape.rank >= 2)
              value =
                  config.initializer_range * rng.normal(static_cast<uint64_t>(slice.whole_of(i)));
            store_element(to.raw(), to.dtype(), i, value);
          }
        });
        values.finish();
      },
      tree);
}

HostTree::HostTree(Context& ctx, const Config& config, ModelParams<Tensor>& from) : tree(from) {
  for_each_param(
      config,
      [&](const ParamInfo&, Tensor& leaf) {
        if (leaf.empty()) return;
        copies_.emplace_back(ctx, leaf);
        leaf = copies_.back().tensor();
      },
      tree);
}

Weights weights_of(const Config& config, ModelParams<Tensor>& masters,
                   ModelParams<Tensor>* copies) {
  Weights weights;
  resize(config, weights);
  const auto fill = [](const ParamInfo&, Operand& to, Tensor& from) {
    if (!from.empty()) to = Operand(from);
  };
  for_each_param(config, fill, weights, masters);
  if (copies != nullptr) for_each_param(config, fill, weights, *copies);
  drop_absent_experts(weights);
  return weights;
}

}  // namespace hadal
