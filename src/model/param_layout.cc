// Groups and their sizes.
// SPDX-License-Identifier: Apache-2.0
#include "model/param_layout.h"

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

Slice slice_of(const ParamInfo& info, const Share& tensor) {
  const int64_t n = info.shape.num_elements(), row = info.shape[info.shape.rank - 1];
  Slice s{.offset = 0, .row = row, .first = 0, .width = row};
  if (!info.is_split() || tensor.ways == 1) return s;
  if (info.shard == ParamShard::kRows) {
    s.offset = n / tensor.ways * tensor.index;
  } else {
    s.width = row / tensor.ways;
    s.first = s.width * tensor.index;
  }
  return s;
}

}  // namespace hadal
