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
// In generation the steps are small, and every rank has all tokens and all states (add_sum).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <initializer_list>
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

// y [T, W] += the sum over the ranks of what add_part(part) adds to `part` [T, W]: in rank order,
// so that a row has the same bits in any step, and all ranks have the same ones. Alone:
// add_part(y).
template <class AddPart>
void add_sum(Context& ctx, const TensorGroup& group, Acc y, const AddPart& add_part) {
  if (group.is_alone()) return add_part(y);
  Tensor part;
  const Block memory = ctx.memory.take_tensor(y.dtype(), y.shape(), &part);
  ops::fill(ctx, 0.0, part);
  add_part(Acc(part));
  group.comm().all_reduce(ctx, part);
  ops::add_acc(ctx, part, y);
}

// Rank 0's x becomes that of all.
void broadcast(Context& ctx, const TensorGroup& group, const Tensor& x);

}  // namespace hadal
