// The output head and its loss: logits = h W^T, cross-entropy against the targets.
//
//   T tokens   D model width   V vocabulary
//
// Tokens go through in chunks of loss_chunk_tokens(), so all logits of a long batch never
// exist at once: when the batch is one chunk its logits are kept for backward, else they are
// recomputed. Shared by the main model and every MTP module (report, 2.2). REQUIRES: h stays
// unchanged until backward_weight.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "model/config.h"
#include "model/params.h"
#include "model/tensor_group.h"

namespace hadal::head {

struct [[nodiscard]] Saved {
  Block memory;
  Tensor targets;    // [T] i32   the caller's; -1 has no target
  Tensor lse, loss;  // [T]  [T]  loss 0 where there is no target
  Tensor logits;     // [T, V]    only when the batch is one chunk
};
struct [[nodiscard]] Deferred {
  Block memory, dlogits_memory;
  Tensor h, targets, lse;  // [T, D]  [T]  [T]
  Tensor dlogits;          // [T, V]   in the type of h; only when the batch is one chunk
  double scale = 0.0;
};

Saved forward(Context& ctx, const Config& config, const Operand& w, In h, In targets);
// dh [T, D] = gradient of scale * sum(loss)
Deferred backward_input(Context& ctx, const Config& config, const Operand& w, Saved&& saved,
                        double scale, In h, Out dh);
void backward_weight(Context& ctx, const Config& config, const Operand& w, Deferred&& deferred,
                     Acc dw);  // [V, D] += ...

// Logits of a few rows, for generation.                                  h [T, D] -> [T, V]
// In a group w is this rank's part of the vocabulary [V/G, D]; all ranks get all logits.
void logits(Context& ctx, const Operand& w, In h, Out logits, const TensorGroup& group = {});

}  // namespace hadal::head
