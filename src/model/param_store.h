// ParamStore: one tree of parameters in one block, so that the optimizer sees flat ranges.
//
// Elements are laid out in groups, each parameter at a multiple of 64 elements (padding is zero):
//   matrices and embeddings | gate weights | norms | buffers
// The first two take weight decay, the first three are trained, the first alone has a bf16 copy.
// Offsets depend on the config only, so stores of different types line up element by element.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/transfer.h"
#include "model/params.h"

namespace hadal {

class ParamStore {
 public:
  enum class Extent : uint8_t {
    kAll,       // masters: buffers included
    kTrained,   // gradients and moments
    kMatrices,  // low-precision copies of matrices and embeddings
  };
  // Zero-filled.
  ParamStore(Context& ctx, const Config& config, DType dtype, Extent extent);

  ModelParams<Tensor> tree;              // leaves outside the extent are empty
  Tensor flat() const { return flat_; }  // [n] everything
  Tensor matrices() const;               // [n] first group
  Tensor decayed() const;                // [n] first two groups
  Tensor norms() const;                  // [n] third group
  Tensor trained() const;                // [n] first three groups

 private:
  Block memory_;
  Tensor flat_;
  int64_t end_[4] = {0, 0, 0, 0};  // where each group ends, in elements
};

// Normal(0, initializer_range) matrices, unit norms, zero biases: element i of parameter NAME is a
// function of (seed, NAME, i) alone.
void init_params(Context& ctx, const Config& config, uint64_t seed, ModelParams<Tensor>& tree);

// A tree's contents in host memory, to be saved: the tree itself on the CPU, else copies.
class HostTree {
 public:
  HostTree(Context& ctx, const Config& config, ModelParams<Tensor>& tree);
  ModelParams<Tensor> tree;

 private:
  std::vector<HostRead> copies_;
};

// The tree as modules read it: matrices from `copies` where given (bf16 compute), the rest from
// `masters`.
Weights weights_of(const Config& config, ModelParams<Tensor>& masters, ModelParams<Tensor>* copies);

}  // namespace hadal
