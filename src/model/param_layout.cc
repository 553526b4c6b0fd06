// Groups and their sizes.
// SPDX-License-Identifier: Apache-2.0
#include "model/param_layout.h"

namespace hadal {
namespace {

int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

int64_t padded(int64_t elements) { return rounded_up(elements, kParamPad); }

ParamGroup group_of(const ParamInfo& info) {
  if (info.kind == ParamKind::kBuffer) return ParamGroup::kBuffers;
  if (info.kind == ParamKind::kNorm) return ParamGroup::kNorms;
  if (info.expert >= 0) return ParamGroup::kExperts;
  return info.name.ends_with("gate.weight") ? ParamGroup::kGates : ParamGroup::kMatrices;
}

ParamSizes param_sizes(const Config& config, const Placement& p) {
  ParamSizes n;
  const auto size = [&](ParamGroup g) -> int64_t& { return n.group[static_cast<size_t>(g)]; };
  for_each_param(config, [&](const ParamInfo& info) {
    if (!p.holds || p.holds(info)) size(group_of(info)) += padded(info.shape.num_elements());
  });
  // Regions that their ranks share evenly.
  size(ParamGroup::kExperts) = rounded_up(n.experts(), kParamPad * p.expert_ways);
  size(ParamGroup::kNorms) += rounded_up(n.dense(), kParamPad * p.dense_ways) - n.dense();
  return n;
}

}  // namespace hadal
