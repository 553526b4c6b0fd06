// TensorGroup: the ranks that share the heads and hidden widths of a layer's products, and the
// tokens between them (tensor parallelism with sequence parallelism).
//
//   T tokens of a micro-batch   Th tokens of this rank   G ranks   n = ceil(T/G)   W width
//
// Rank r has tokens [r*n, (r+1)*n) of the T, as far as there are any: the residual stream, norms,
// router, experts, embedding and head see those alone, with whole weights. Attention and dense MLPs
// see all T with a part of the weights: what they read is gathered, and what they write is a sum
// over the ranks of which each one takes its own tokens. A rank alone transfers and copies nothing.
//
// In generation (DecodeGroup) either every rank has all tokens and all states, or the step says how
// many each rank has.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <initializer_list>
#include <span>
#include <vector>

#include "core/comm.h"
#include "ops/copy.h"

namespace hadal {

class TensorGroup {
 public:
  TensorGroup() = default;  // a rank alone
  // REQUIRES: comm outlives it and its copies.
  explicit TensorGroup(Comm& comm) : comm_(comm.size() > 1 ? &comm : nullptr) {}

  bool is_alone() const { return comm_ == nullptr; }
  int size() const { return is_alone() ? 1 : comm_->size(); }
  int rank() const { return is_alone() ? 0 : comm_->rank(); }
  Comm& comm() const { return *comm_; }
  // By which the fused ops of ops/few_tokens.h add up over the group; null where they cannot.
  const ops::PeerSums* sums() const { return is_alone() ? nullptr : comm_->peer_sums(); }

  int64_t most_tokens(int64_t T) const { return (T + size() - 1) / size(); }  // n
  int64_t first_token(int64_t T) const;
  int64_t num_tokens(int64_t T) const;  // Th
  Tensor own(const Tensor& all) const;  // [T, ...] -> [Th, ...]

 private:
  Comm* comm_ = nullptr;
};

// Rows of all ranks: of each x [Th, Wi] a view [T, Wi], with one transfer for all of them. Alone:
// x.
struct [[nodiscard]] Gathered {
  Block memory;
  std::vector<Tensor> rows;
};
Gathered gather(Context& ctx, const TensorGroup& group, int64_t T, std::initializer_list<In> xs);

// Sums over the ranks: each leaves its terms in all(i) [T, Wi], and finish() puts the sums of its
// own tokens into ys[i] [Th, Wi], with one transfer for all of them. Alone: all(i) is ys[i].
class PartialSums {
 public:
  PartialSums(Context& ctx, const TensorGroup& group, int64_t T, std::initializer_list<Tensor> ys);
  Tensor all(size_t i) const { return all_[i]; }
  void finish(Context& ctx);

 private:
  TensorGroup group_;
  std::vector<Tensor> ys_, all_;
  Block memory_;
  Tensor slab_;  // [G*n, sum of Wi]
};

// The ranks that make a step of generation together.
struct DecodeGroup {
  TensorGroup tensor = {};               // that share widths and experts
  std::span<const int64_t> tokens = {};  // [G] of each rank, none or more; empty: all have all
  bool has_all_tokens() const { return tokens.empty(); }
  // Whether the fused ops of ops/few_tokens.h can add up over the group, or need not.
  bool sums_in_ops() const {
    return tensor.is_alone() || (has_all_tokens() && tensor.sums() != nullptr);
  }
};
// The rows of all ranks, in rank order: x [tokens of this rank, W] -> all [sum of tokens, W].
Block gather_tokens(Context& ctx, const DecodeGroup& group, In x, Tensor* all);
// y += this rank's rows of the sum over the ranks of `part`, a row of each token of all ranks.
void add_total(Context& ctx, const DecodeGroup& group, Acc part, Acc y);

// y [T, W] += the sum over the ranks of what add_part(x, part) adds to `part`: in rank order, so
// that a row has the same bits in any step and on any rank. Where ranks have tokens of their own,
// add_part sees the rows x of all of them. Alone: add_part(x, y).
template <class AddPart>
void add_sum(Context& ctx, const DecodeGroup& group, In x, Acc y, const AddPart& add_part) {
  if (group.tensor.is_alone()) return add_part(x, y);
  Tensor all = x, part;
  Block all_memory;
  if (!group.has_all_tokens()) all_memory = gather_tokens(ctx, group, x, &all);
  const Block memory = ctx.memory.take_tensor(y.dtype(), {all.dim(0), y.dim(1)}, &part);
  ops::fill(ctx, 0.0, part);
  add_part(In(all), Acc(part));
  add_total(ctx, group, part, y);
}

// Rank 0's x becomes that of all.
void broadcast(Context& ctx, const TensorGroup& group, const Tensor& x);

}  // namespace hadal
