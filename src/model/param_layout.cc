// Groups and their sizes.
// SPDX-License-Identifier: Apache-2.0
#include "model/param_layout.h"

#include "core/check.h"

namespace hadal {
namespace {

int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

int64_t padded(int64_t elements) { return rounded_up(elements, kParamPad); }

Config split_config(const Config& config, int ways) {
  Config c = config;
  c.num_attention_heads /= ways;
  c.intermediate_size /= ways;
  return c;
}

ParamGroup group_of(const ParamInfo& info, const RankShare& share) {
  if (info.kind == ParamKind::kBuffer) return ParamGroup::kBuffers;
  if (info.kind == ParamKind::kNorm) return ParamGroup::kNorms;
  if (info.expert >= 0) return ParamGroup::kExperts;
  if (info.is_split() && share.tensor.ways > 1) return ParamGroup::kSplit;
  return info.name.ends_with("gate.weight") ? ParamGroup::kGates : ParamGroup::kMatrices;
}

ParamSizes param_sizes(const Config& config, const RankShare& p) {
  ParamSizes n;
  const auto size = [&](ParamGroup g) -> int64_t& { return n.group[static_cast<size_t>(g)]; };
  for_each_param(config, [&](const ParamInfo& info) {
    if (!p.holds || p.holds(info)) size(group_of(info, p)) += padded(info.shape.num_elements());
  });
  // Regions that their ranks share evenly.
  size(ParamGroup::kExperts) = rounded_up(n.experts(), kParamPad * p.experts.ways);
  size(ParamGroup::kSplit) = rounded_up(n.split(), kParamPad * p.split.ways);
  size(ParamGroup::kNorms) += rounded_up(n.dense(), kParamPad * p.dense.ways) - n.dense();
  return n;
}

namespace {

Slice slice(const Shape& shape, ParamShard shard, const Share& tensor) {
  const int64_t n = shape.num_elements(), row = shape[shape.rank - 1];
  Slice s{.offset = 0, .row = row, .first = 0, .width = row};
  if (shard == ParamShard::kRows) s.offset = n / tensor.ways * tensor.index;
  if (shard == ParamShard::kColumns) {
    s.width = row / tensor.ways;
    s.first = s.width * tensor.index;
  }
  return s;
}

}  // namespace

Slice slice_of(const ParamInfo& info, const Share& tensor) {
  return slice(info.shape, info.shard, tensor);
}

void check_decode_ranks(const Config& c, int64_t ranks, AttentionSplit attention) {
  HADAL_CHECK(ranks >= 1, "ranks = ", ranks, "; give 1 or more");
  const auto check = [&](int64_t number, const char* name) {
    HADAL_CHECK(number % ranks == 0, "ranks = ", ranks, " does not divide ", name, " = ", number);
  };
  const bool splits_heads = attention == AttentionSplit::kHeads;
  if (splits_heads) check(c.num_attention_heads, "num_attention_heads");
  if (c.first_k_dense_replace > 0) check(c.intermediate_size, "intermediate_size");
  const bool has_experts = c.num_moe_layers() > 0;
  if (has_experts) check(c.n_routed_experts, "n_routed_experts");
  if (has_experts && c.n_shared_experts > 0)
    check(c.shared_intermediate_size(), "n_shared_experts * moe_intermediate_size");
  if (splits_heads) check(c.vocab_size, "vocab_size");
}

ExpertRun decode_experts(const Config& c, const Share& rank) {
  const int64_t count = c.n_routed_experts / rank.ways;
  return {.first = rank.index * count, .count = count, .of = c.n_routed_experts};
}

RankShare decode_share(const Config& config, const Share& rank, AttentionSplit attention) {
  RankShare share{.tensor = rank, .attention = attention};
  const ExpertRun here = decode_experts(config, rank);
  share.holds = [here](const ParamInfo& info) {
    return info.expert < 0 || here.contains(info.expert);
  };
  return share;
}

namespace {

ParamShard decode_shard(const ParamInfo& info, const RankShare& share) {
  return share.attention == AttentionSplit::kHeads ? info.decode_shard : info.widths_shard;
}

}  // namespace

Slice decode_slice(const ParamInfo& info, const RankShare& share) {
  return slice(info.shape, decode_shard(info, share), share.tensor);
}

Shape decode_shape(const ParamInfo& info, const RankShare& share) {
  const ParamShard shard = decode_shard(info, share);
  Shape shape = info.shape;
  if (shard == ParamShard::kRows) shape.dims[0] /= share.tensor.ways;
  if (shard == ParamShard::kColumns) shape.dims[1] /= share.tensor.ways;
  return shape;
}

}  // namespace hadal
