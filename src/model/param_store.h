// ParamStore: one tree of parameters in one block, so that the optimizer sees flat ranges.
//
// Elements are laid out in the groups of model/param_layout.h. Offsets depend on the config (that
// of this rank: split_config) and its shares only, so stores of different types line up element by
// element.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "core/transfer.h"
#include "model/param_layout.h"

namespace hadal {

// Elements [begin, begin + count) of the flat layout.
struct FlatRange {
  int64_t begin = 0, count = 0;
  int64_t end() const { return begin + count; }
  bool operator==(const FlatRange&) const = default;
};
FlatRange intersect(const FlatRange& a, const FlatRange& b);

class ParamStore {
 public:
  enum class Extent : uint8_t {
    kAll,       // masters: buffers included
    kTrained,   // gradients
    kMatrices,  // low-precision copies of matrices and embeddings
    kShare,     // moments: this rank's shares of what is trained
  };
  // Zero-filled.
  ParamStore(Context& ctx, const Config& config, DType dtype, Extent extent,
             const RankShare& share = {});

  ModelParams<Tensor> tree;              // leaves that are not held, or not whole, are empty
  Tensor flat() const { return flat_; }  // [n] everything
  Tensor matrices() const;               // [n] first three groups
  Tensor decayed() const;                // [n] first four groups
  Tensor norms() const;                  // [n] fifth group
  Tensor trained() const;                // [n] first five groups

  enum class Region : uint8_t { kExperts, kSplit, kDense };
  static constexpr std::array<Region, 3> kRegions = {Region::kExperts, Region::kSplit,
                                                     Region::kDense};
  FlatRange region(Region region) const;
  FlatRange share(Region region) const;  // this rank's
  FlatRange decayed_range() const;
  // What is held of a layer in a group of the layout (MTP module k: layer num_hidden_layers + k): a
  // run, with the padding after it.
  FlatRange layer_run(ParamGroup group, int64_t layer) const;
  // Where a parameter lies; count 0 if it is not held.
  FlatRange range_of(const std::string& name) const;
  Tensor slice(const FlatRange& range) const;  // REQUIRES: it is in this store

  // Calls visit(info, begin, piece) for each parameter that this store has elements of: `piece` [n]
  // is elements [begin, begin + n) of it.
  using VisitPiece = std::function<void(const ParamInfo&, int64_t begin, Tensor piece)>;
  void for_each_piece(const Config& config, const VisitPiece& visit) const;

 private:
  struct Place {
    std::string name;
    FlatRange range;
    ParamGroup group = ParamGroup::kExperts;
    int64_t layer = -1;
  };

  bool is_whole() const { return extent_ != Extent::kShare; }

  Extent extent_;
  RankShare share_;
  Block memory_;
  Tensor flat_;
  std::vector<Place> places_;  // of held parameters, in the order of for_each_param
  std::array<int64_t, kNumParamGroups> end_{};  // where each group ends, in elements
};

// Normal(0, initializer_range) matrices, unit norms, zero biases: element i of parameter NAME is a
// function of (seed, NAME, i) alone. Empty leaves are left out; of split matrices (`tensor`) the
// tree has this rank's elements. config: of the whole model.
void init_params(Context& ctx, const Config& config, uint64_t seed, ModelParams<Tensor>& tree,
                 const Share& tensor = {});

// A tree's contents in host memory, to be saved: the tree itself on the CPU, else copies.
class HostTree {
 public:
  HostTree(Context& ctx, const Config& config, ModelParams<Tensor>& tree);
  ModelParams<Tensor> tree;

 private:
  std::vector<HostRead> copies_;
};

// The tree as modules read it: matrices from `copies` where given (bf16 compute), the rest from
// `masters`; experts that are not held are left out.
Weights weights_of(const Config& config, ModelParams<Tensor>& masters, ModelParams<Tensor>* copies);

}  // namespace hadal
