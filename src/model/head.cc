// The output head: chunked cross-entropy and its backward in two halves.
//
//   T tokens   D model width   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "model/head.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "model/bytes.h"
#include "ops/copy.h"
#include "ops/gemm.h"
#include "ops/loss.h"

namespace hadal::head {
namespace {

// Calls fn(begin, count) for each chunk of T tokens.
template <class Fn>
void for_each_chunk(const Context& ctx, const Config& c, int64_t T, Fn fn) {
  const int64_t chunk = loss_chunk_tokens(c, ctx.device.kind);
  for (int64_t begin = 0; begin < T; begin += chunk) fn(begin, std::min(chunk, T - begin));
}

Shape chunk_shape(const Context& ctx, const Config& c, int64_t T) {
  return {std::min(T, loss_chunk_tokens(c, ctx.device.kind)), c.vocab_size};
}
bool is_one_chunk(const Context& ctx, const Config& c, int64_t T) {
  return T <= loss_chunk_tokens(c, ctx.device.kind);
}

// Room for the logits or their gradient of one chunk.
struct Chunk {
  Chunk(Context& ctx, const Config& c, int64_t T, DType dtype)
      : memory(ctx.memory.take_tensor(dtype, chunk_shape(ctx, c, T), &rows)) {}
  Tensor rows;  // [chunk, V]
  Block memory;
};

}  // namespace

Saved forward(Context& ctx, const Config& c, const Operand& w, In h, In targets) {
  const auto [T, D] = HADAL_SHAPE(h, 2);
  HADAL_CHECK_SHAPE(targets, T);
  const DType stat = stat_dtype(h.dtype());
  Saved s;
  s.targets = targets;
  s.memory = ctx.memory.take(saved_bytes(c, T, h.dtype(), ctx.device.kind));
  s.lse = s.memory.tensor(stat, {T});
  s.loss = s.memory.tensor(stat, {T});
  std::optional<Chunk> scratch;
  if (is_one_chunk(ctx, c, T))
    s.logits = s.memory.tensor(stat, {T, c.vocab_size});
  else
    scratch.emplace(ctx, c, T, stat);
  for_each_chunk(ctx, c, T, [&](int64_t begin, int64_t count) {
    const Tensor logits = (scratch ? scratch->rows : s.logits).rows(0, count);
    ops::gemm_nt(ctx, h.rows(begin, count), w, Tensor(logits));  // [count, V]
    ops::cross_entropy_forward(ctx, logits, targets.rows(begin, count), s.lse.rows(begin, count),
                               s.loss.rows(begin, count));  // [count]
  });
  return s;
}

namespace {

// The gradient of a chunk's logits [count, V] in the type of h, so that both products that read it
// run in that type: in place of the logits where it is theirs, else into `out`.
Tensor chunk_dlogits(Context& ctx, In logits, In targets, In lse, double scale, const Tensor& out) {
  const Tensor to = out.empty() ? Tensor(logits) : out.rows(0, logits.dim(0));
  ops::cross_entropy_backward(ctx, logits, targets, lse, scale, Tensor(to));
  return to;
}

}  // namespace

Deferred backward_input(Context& ctx, const Config& c, const Operand& w, Saved&& saved,
                        double scale, In h, Out dh) {
  Saved s = std::move(saved);
  const int64_t T = h.dim(0);
  const DType act = h.dtype(), stat = s.lse.dtype();
  Deferred d;
  Tensor dlogits;  // stays empty where the gradient takes the place of the logits
  if (act != stat) d.dlogits_memory = ctx.memory.take_tensor(act, chunk_shape(ctx, c, T), &dlogits);
  std::optional<Chunk> scratch;
  if (s.logits.empty()) scratch.emplace(ctx, c, T, stat);
  for_each_chunk(ctx, c, T, [&](int64_t begin, int64_t count) {
    const Tensor logits = (scratch ? scratch->rows : s.logits).rows(0, count);
    if (scratch) ops::gemm_nt(ctx, h.rows(begin, count), w, Tensor(logits));  // [count, V]
    const Tensor dchunk = chunk_dlogits(ctx, logits, s.targets.rows(begin, count),
                                        s.lse.rows(begin, count), scale, dlogits);
    ops::gemm_nn(ctx, dchunk, w, dh.rows(begin, count));  // [count, D]
  });
  d.h = h;
  d.targets = s.targets;
  d.lse = s.lse;
  if (scratch)
    d.dlogits_memory = Block();
  else
    d.dlogits = dlogits.empty() ? s.logits : dlogits;
  d.scale = scale;
  d.memory = std::move(s.memory);
  return d;
}

void backward_weight(Context& ctx, const Config& c, const Operand& w, Deferred&& deferred, Acc dw) {
  const Deferred d = std::move(deferred);
  const int64_t T = d.h.dim(0);
  const DType act = d.h.dtype(), stat = d.lse.dtype();
  std::optional<Chunk> scratch, converted;
  if (d.dlogits.empty()) scratch.emplace(ctx, c, T, stat);
  if (d.dlogits.empty() && act != stat) converted.emplace(ctx, c, T, act);
  for_each_chunk(ctx, c, T, [&](int64_t begin, int64_t count) {
    Tensor dchunk = d.dlogits;
    if (scratch) {
      const Tensor logits = scratch->rows.rows(0, count);
      ops::gemm_nt(ctx, d.h.rows(begin, count), w, Tensor(logits));  // [count, V]
      dchunk = chunk_dlogits(ctx, logits, d.targets.rows(begin, count), d.lse.rows(begin, count),
                             d.scale, converted ? converted->rows : Tensor());
    }
    ops::gemm_tn_acc(ctx, dchunk, d.h.rows(begin, count), dw);  // [V, D] += [., V]^T [., D]
  });
}

void logits(Context& ctx, const Operand& w, In h, Out logits, const TensorGroup& group) {
  if (group.is_alone()) return ops::gemm_nt(ctx, h, w, logits);  // [T, V]
  const int64_t T = h.dim(0), G = group.size(), part = w.data.dim(0);
  HADAL_CHECK_SHAPE(logits, T, G * part);
  Tensor parts;
  const Block memory = ctx.memory.take_tensor(logits.dtype(), {G, T, part}, &parts);
  const Tensor own = parts.row(group.rank());
  ops::gemm_nt(ctx, h, w, Tensor(own));  // [T, V/G]
  group.comm().all_gather(ctx, own, Tensor(parts));
  for (int64_t r = 0; r < G; ++r)
    ops::cast(ctx, parts.row(r), logits.cols(r * part, part));  // [T, V/G]
}

}  // namespace hadal::head
