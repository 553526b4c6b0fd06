// The gate: affinity scores, bias-corrected choice in groups, balance loss, bias update.
//
//   T tokens   G rows (core/packed.h)   D model width   E experts   K choices of a token
//   Ta tokens of all ranks of a tensor group; T where there is none
//
// Auxiliary-loss-free balancing (report, 2.1.2): the bias takes part in the choice alone; weights
// are the unbiased scores; nothing flows to the bias or through the choice. The complementary
// sequence-wise balance loss (eq. 17-20) adds its gradient to the scores.
// REQUIRES: the x given to backward_input stays unchanged until backward_weight.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "core/packed.h"
#include "model/config.h"
#include "model/params.h"
#include "model/tensor_group.h"
#include "ops/routing.h"

namespace hadal::gate {

struct [[nodiscard]] Saved {
  Block memory, all_memory;
  Packed seq;
  TensorGroup group;
  Tensor scores;       // [T, E]   unbiased
  Tensor all_scores;   // [Ta, E]  of which the balance loss is made
  Tensor topk_idx;     // [T, K] i32, ascending
  Tensor topk_weight;  // [T, K]   normalised and scaled
  Tensor fraction;     // [G, E]   f_i of the balance loss
  Tensor balance;      // [G]      the balance loss of each row, without alpha
};
struct [[nodiscard]] Deferred {
  Block memory;
  Tensor x;        // [T, D]   the caller's
  Tensor dlogits;  // [T, E]
};

using Weights = Params<Operand>;
using Grads = Params<Tensor>;
ops::GateRule rule(const Config& config);
// Every rank of the group measures the balance loss of all tokens.
Saved forward(Context& ctx, const Config& config, const Weights& w, const Packed& seq, In x,
              const TensorGroup& group = {});
// The choice alone: balance and fraction stay unwritten. logits [T, E], or empty.
Saved decode(Context& ctx, const Config& config, const Weights& w, In x, In logits);
// dx [T, D] += ...; balance_scale multiplies the gradient of the sum of `balance`.
Deferred backward_input(Context& ctx, const Config& config, const Weights& w, Saved&& saved, In x,
                        In dtopk_weight, double balance_scale, Acc dx);
void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw);  // dw.weight += ...

}  // namespace hadal::gate
