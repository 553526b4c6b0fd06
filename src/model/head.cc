// The output head: chunked cross-entropy and its backward in two halves.
//
//   T tokens   D model width   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "model/head.h"

#include <algorithm>
#include <utility>

#include "model/bytes.h"
#include "ops/gemm.h"
#include "ops/loss.h"

namespace hadal::head {
namespace {

// Calls fn(begin, count, scratch) for each chunk; scratch [count, V] is there unless `kept` is
// given.
template <class Fn>
void for_each_chunk(Context& ctx, const Config& c, int64_t T, DType stat, const Tensor& kept,
                    Fn fn) {
  const int64_t chunk = std::min(T, loss_chunk_tokens(c));
  Tensor scratch = kept;
  Block memory;
  if (kept.empty()) memory = ctx.memory.take_tensor(stat, {chunk, c.vocab_size}, &scratch);
  for (int64_t begin = 0; begin < T; begin += chunk) {
    const int64_t count = std::min(chunk, T - begin);
    fn(begin, count, scratch.rows(0, count));
  }
}

}  // namespace

Saved forward(Context& ctx, const Config& c, const Operand& w, In h, In targets) {
  const auto [T, D] = HADAL_SHAPE(h, 2);
  HADAL_CHECK_SHAPE(targets, T);
  const DType stat = stat_dtype(h.dtype());
  Saved s;
  s.targets = targets;
  s.memory = ctx.memory.take(saved_bytes(c, T, h.dtype()));
  s.lse = s.memory.tensor(stat, {T});
  s.loss = s.memory.tensor(stat, {T});
  if (T <= loss_chunk_tokens(c)) s.logits = s.memory.tensor(stat, {T, c.vocab_size});
  for_each_chunk(ctx, c, T, stat, s.logits, [&](int64_t begin, int64_t count, Tensor chunk) {
    ops::gemm_nt(ctx, h.rows(begin, count), w, chunk);  // [count, V]
    ops::cross_entropy_forward(ctx, chunk, targets.rows(begin, count), s.lse.rows(begin, count),
                               s.loss.rows(begin, count));  // [count]
  });
  return s;
}

Deferred backward_input(Context& ctx, const Config& c, const Operand& w, Saved&& saved,
                        double scale, In h, Out dh) {
  Saved s = std::move(saved);
  const int64_t T = h.dim(0);
  for_each_chunk(
      ctx, c, T, s.lse.dtype(), s.logits, [&](int64_t begin, int64_t count, Tensor chunk) {
        if (s.logits.empty()) ops::gemm_nt(ctx, h.rows(begin, count), w, chunk);  // [count, V]
        ops::cross_entropy_backward(ctx, chunk, s.targets.rows(begin, count),
                                    s.lse.rows(begin, count), scale, chunk);  // [count, V]
        ops::gemm_nn(ctx, chunk, w, dh.rows(begin, count));                   // [count, D]
      });
  Deferred d;
  d.h = h;
  d.targets = s.targets;
  d.lse = s.lse;
  d.dlogits = s.logits;
  d.scale = scale;
  d.memory = std::move(s.memory);
  return d;
}

void backward_weight(Context& ctx, const Config& c, const Operand& w, Deferred&& deferred, Acc dw) {
  const Deferred d = std::move(deferred);
  const int64_t T = d.h.dim(0);
  for_each_chunk(
      ctx, c, T, d.lse.dtype(), d.dlogits, [&](int64_t begin, int64_t count, Tensor chunk) {
        if (d.dlogits.empty()) {
          ops::gemm_nt(ctx, d.h.rows(begin, count), w, chunk);  // [count, V]
          ops::cross_entropy_backward(ctx, chunk, d.targets.rows(begin, count),
                                      d.lse.rows(begin, count), d.scale, chunk);  // [count, V]
        }
        ops::gemm_tn_acc(ctx, chunk, d.h.rows(begin, count), dw);  // [V, D] += [., V]^T [., D]
      });
}

void logits(Context& ctx, const Operand& w, In h, Out logits) { ops::gemm_nt(ctx, h, w, logits); }

}  // namespace hadal::head
