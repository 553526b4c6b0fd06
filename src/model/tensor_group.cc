// TensorGroup: runs of tokens, and the transfers between them.
//
//   T tokens of a micro-batch   Th tokens of this rank   G ranks   n = ceil(T/G)   W width
// SPDX-License-Identifier: Apache-2.0
#include "model/tensor_group.h"

#include <algorithm>
#include <numeric>

namespace hadal {
namespace {

// Calls fn(x, columns of slab) for each x beside the other.
template <class Fn>
void for_each_part(const std::vector<Tensor>& parts, const Tensor& slab, Fn fn) {
  int64_t begin = 0;
  for (const Tensor& x : parts) {
    fn(x, slab.cols(begin, x.dim(1)));
    begin += x.dim(1);
  }
}

// Room for G*n rows of all parts side by side.
Tensor make_slab(Context& ctx, const TensorGroup& group, int64_t T,
                 const std::vector<Tensor>& parts, Block* memory) {
  int64_t width = 0;
  for (const Tensor& x : parts) {
    const auto [rows, W] = HADAL_SHAPE(x, 2);
    HADAL_CHECK(rows == group.num_tokens(T) && x.dtype() == parts[0].dtype(), "rank ", group.rank(),
                " of ", group.size(), " has ", group.num_tokens(T), " of ", T,
                " tokens, and a tensor of them is ", x.str());
    width += W;
  }
  Tensor slab;
  *memory =
      ctx.memory.take_tensor(parts[0].dtype(), {group.size() * group.most_tokens(T), width}, &slab);
  return slab;
}

}  // namespace

int64_t TensorGroup::first_token(int64_t T) const { return std::min(T, rank() * most_tokens(T)); }
int64_t TensorGroup::num_tokens(int64_t T) const {
  return std::min(T, first_token(T) + most_tokens(T)) - first_token(T);
}
Tensor TensorGroup::own(const Tensor& all) const {
  return is_alone() ? all : all.rows(first_token(all.dim(0)), num_tokens(all.dim(0)));
}

Gathered gather(Context& ctx, const TensorGroup& group, int64_t T, std::initializer_list<In> xs) {
  Gathered g;
  g.rows.assign(xs.begin(), xs.end());
  if (group.is_alone()) return g;
  const int64_t n = group.most_tokens(T);
  const Tensor slab = make_slab(ctx, group, T, g.rows, &g.memory);
  Tensor own = slab.rows(group.rank() * n, n);
  if (group.num_tokens(T) < n) ops::fill(ctx, 0.0, own);
  for_each_part(g.rows, own, [&](const Tensor& x, const Tensor& part) {
    ops::cast(ctx, x, part.rows(0, x.dim(0)));  // [Th, Wi]
  });
  Tensor to = slab;
  group.comm().all_gather(ctx, own, to);  // [G*n, W]
  std::vector<Tensor> all;
  for_each_part(g.rows, slab.rows(0, T),
                [&](const Tensor&, const Tensor& part) { all.push_back(part); });
  g.rows = std::move(all);
  return g;
}

PartialSums::PartialSums(Context& ctx, const TensorGroup& group, int64_t T,
                         std::initializer_list<Tensor> ys)
    : group_(group), ys_(ys), all_(ys) {
  if (group.is_alone()) return;
  slab_ = make_slab(ctx, group, T, ys_, &memory_);
  ops::fill(ctx, 0.0, slab_.rows(T, slab_.dim(0) - T));
  all_.clear();
  for_each_part(ys_, slab_.rows(0, T),
                [&](const Tensor&, const Tensor& part) { all_.push_back(part); });
}

void PartialSums::finish(Context& ctx) {
  if (group_.is_alone()) return;
  const int64_t n = slab_.dim(0) / group_.size();
  Tensor own = slab_.rows(group_.rank() * n, n);
  group_.comm().reduce_scatter(ctx, slab_, own);  // [n, W]
  for_each_part(ys_, own, [&](const Tensor& y, const Tensor& part) {
    ops::cast(ctx, part.rows(0, y.dim(0)), Tensor(y));  // [Th, Wi]
  });
}

Block gather_tokens(Context& ctx, const DecodeGroup& group, In x, Tensor* all) {
  const int64_t T = std::accumulate(group.tokens.begin(), group.tokens.end(), int64_t{0});
  Block memory = ctx.memory.take_tensor(x.dtype(), {T, x.dim(1)}, all);
  group.tensor.comm().all_gather_v(ctx, x, group.tokens, *all);
  return memory;
}

void add_total(Context& ctx, const DecodeGroup& group, Acc part, Acc y) {
  Tensor own = part;
  Block memory;
  if (group.has_all_tokens()) {
    group.tensor.comm().all_reduce(ctx, part);
  } else {
    memory = ctx.memory.take_tensor(y.dtype(), y.shape(), &own);
    group.tensor.comm().reduce_scatter_v(ctx, part, group.tokens, own);
  }
  if (y.dim(0) > 0) ops::add_acc(ctx, own, y);
}

void broadcast(Context& ctx, const TensorGroup& group, const Tensor& x) {
  if (group.is_alone() || x.num_elements() == 0) return;
  std::vector<Message> messages;
  if (group.rank() > 0) messages.push_back({.send = false, .peer = 0, .data = x});
  for (int r = 1; group.rank() == 0 && r < group.size(); ++r)
    messages.push_back({.send = true, .peer = r, .data = x});
  group.comm().transfer(ctx, messages);
}

}  // namespace hadal
