// How a rank's parameters lie in one flat range. Pure.
//
// They are in groups, each parameter at a multiple of 64 elements (padding is zero):
//   experts | matrices and embeddings | gate weights | norms | buffers
// The first three take weight decay, the first four are trained, the first two have a bf16 copy.
// The experts are one region and the rest of what is trained, "dense", another: their gradients are
// summed over different groups of ranks, and each is cut into equal shares of its group's ranks.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <functional>

#include "model/params.h"

namespace hadal {

inline constexpr int64_t kParamPad = 64;  // elements
enum class ParamGroup : uint8_t { kExperts, kMatrices, kGates, kNorms, kBuffers };
inline constexpr size_t kNumParamGroups = 5;
ParamGroup group_of(const ParamInfo& info);

// What one rank holds of a model, and its share of the optimizer's state (ZeRO-1).
struct Placement {
  std::function<bool(const ParamInfo&)> holds = {};  // none: everything
  int expert_ways = 1, expert_share = 0;  // shares of the experts, and which is this rank's
  int dense_ways = 1, dense_share = 0;
};

// Elements of each group, padding included.
struct ParamSizes {
  std::array<int64_t, kNumParamGroups> group{};
  int64_t of(ParamGroup g) const { return group[static_cast<size_t>(g)]; }
  int64_t experts() const { return of(ParamGroup::kExperts); }
  int64_t matrices() const { return experts() + of(ParamGroup::kMatrices); }
  int64_t trained() const { return matrices() + of(ParamGroup::kGates) + of(ParamGroup::kNorms); }
  int64_t dense() const { return trained() - experts(); }
  int64_t all() const { return trained() + of(ParamGroup::kBuffers); }
};
ParamSizes param_sizes(const Config& config, const Placement& placement);

int64_t padded(int64_t elements);  // to kParamPad

}  // namespace hadal
