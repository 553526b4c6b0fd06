// How a rank's parameters lie in one flat range. Pure.
//
// They are in groups, each parameter at a multiple of 64 elements (padding is zero):
//   experts | split matrices | matrices and embeddings | gate weights | norms | buffers
// The first four take weight decay, the first five are trained, the first three have a bf16 copy.
// Split are the matrices of which each rank of a tensor group holds a part; without such a group
// there are none. Experts, split matrices and the rest of what is trained, "dense", are regions:
// their gradients are summed over different groups of ranks, and each is cut into equal shares of
// its group's ranks.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <functional>

#include "model/params.h"

namespace hadal {

inline constexpr int64_t kParamPad = 64;  // elements
enum class ParamGroup : uint8_t { kExperts, kSplit, kMatrices, kGates, kNorms, kBuffers };
inline constexpr size_t kNumParamGroups = 6;

// One of `ways` equal shares of a region.
struct Share {
  int ways = 1, index = 0;
};
// How ranks that generate together split attention: by heads, each with all tokens and all of the
// cache; or by sequences, each with all heads, for the tokens and the cache of its own alone.
enum class AttentionSplit : uint8_t { kHeads, kSequences };
// What one rank holds of a model, and its shares of the optimizer's state (ZeRO-1).
struct RankShare {
  std::function<bool(const ParamInfo&)> holds = {};   // none: everything
  Share tensor = {};                                  // of every split matrix, which it holds
  Share experts = {}, split = {}, dense = {};         // of the moments
  AttentionSplit attention = AttentionSplit::kHeads;  // in generation
};

// A model as a rank of a tensor group computes it: its share of the heads and of the width of
// dense MLPs. REQUIRES: `ways` divides both.
Config split_config(const Config& config, int ways);

// Elements of each group, padding included.
struct ParamSizes {
  std::array<int64_t, kNumParamGroups> group{};
  int64_t of(ParamGroup g) const { return group[static_cast<size_t>(g)]; }
  int64_t experts() const { return of(ParamGroup::kExperts); }
  int64_t split() const { return of(ParamGroup::kSplit); }
  int64_t matrices() const { return experts() + split() + of(ParamGroup::kMatrices); }
  int64_t trained() const { return matrices() + of(ParamGroup::kGates) + of(ParamGroup::kNorms); }
  int64_t dense() const { return trained() - experts() - split(); }
  int64_t all() const { return trained() + of(ParamGroup::kBuffers); }
};
// config: split_config() of the model.
ParamSizes param_sizes(const Config& config, const RankShare& share);
ParamGroup group_of(const ParamInfo& info, const RankShare& share);

// Elements of a whole parameter that a rank's tensor of it has: columns [first, first + width) of
// rows of `row` elements, from element `offset` on; all of them where width is row.
struct Slice {
  int64_t offset = 0, row = 1, first = 0, width = 1;
  // Element of the whole parameter that element i of the tensor is.
  int64_t whole_of(int64_t i) const { return offset + i / width * row + first + i % width; }
};
// info: of the whole model.
Slice slice_of(const ParamInfo& info, const Share& tensor);

// ---- Generation: ranks that have a part of the matrices and some of the experts ----------------

// An Error that names the number that does not divide.
void check_decode_ranks(const Config& config, int64_t ranks,
                        AttentionSplit attention = AttentionSplit::kHeads);
// Routed experts [first, first + count) of `of`.
struct ExpertRun {
  int64_t first = 0, count = 0, of = 0;
  bool are_all() const { return count == of; }
  bool contains(int64_t expert) const { return expert >= first && expert < first + count; }
};
ExpertRun decode_experts(const Config& config, const Share& rank);
// What one of the ranks loads: its experts, and of the others what decode_slice() says.
RankShare decode_share(const Config& config, const Share& rank,
                       AttentionSplit attention = AttentionSplit::kHeads);
Slice decode_slice(const ParamInfo& info, const RankShare& share);
// Of the tensor that the slice fills.
Shape decode_shape(const ParamInfo& info, const RankShare& share);

int64_t padded(int64_t elements);  // to kParamPad

}  // namespace hadal
