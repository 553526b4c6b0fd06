// Mixture of experts: gate -> dispatch -> routed experts + shared expert -> combine, as separate
// calls.
//
//   T tokens   D model width   K choices of a token
//
// y = sum_k weight_k * Expert_k(x) + SharedExpert(x) (report, 2.1.2). The shared expert's first
// half runs while the dispatch is under way, its second half beside the combine. forward(),
// backward_input() call the stages in order; a schedule that overlaps micro-batches calls them
// apart. REQUIRES: the x and dy given to the backward stages stay unchanged until backward_weight.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "model/exchange.h"
#include "model/experts.h"
#include "model/gate.h"
#include "model/mlp.h"
#include "model/tensor_group.h"

namespace hadal::moe {

struct [[nodiscard]] Saved {
  gate::Saved gate;
  Ticket ticket;
  experts::Saved experts;
  mlp::Saved shared;      // empty where there is no shared expert
  Block memory;           // between mlp_forward and combine_forward, as are
  ops::PagedRows y_rows;  // [P, kPageRows, D]
  mlp::Half half;         // of the shared expert
};
struct [[nodiscard]] Deferred {
  Ticket ticket;
  gate::Deferred gate;
  experts::Deferred experts;
  mlp::Deferred shared;
  Block memory;            // between mlp_backward and dispatch_backward
  ops::PagedRows dx_rows;  // [P, kPageRows, D]
  Tensor drow_weight;      // [P*kPageRows]
  Tensor dx_shared;        // [T, D]
  bool has_shared = false;
};

using Weights = Params<Operand>;
using Grads = Params<Tensor>;

// In a tensor group x is this rank's tokens, and only the balance loss needs the others'.
Saved dispatch_forward(Context& ctx, const Config& config, const Weights& w, Exchange& exchange,
                       const Packed& seq, In x, const TensorGroup& group = {});
void mlp_forward(Context& ctx, const Config& config, const Weights& w, Exchange& exchange, In x,
                 Saved& saved, const ops::TileRows& x_tiles = {});
void combine_forward(Context& ctx, const Config& config, const Weights& w, Exchange& exchange,
                     Saved& saved, Out y);

Deferred combine_backward(Context& ctx, const Config& config, Exchange& exchange, Saved& saved,
                          In dy);
void mlp_backward(Context& ctx, const Config& config, const Weights& w, Exchange& exchange,
                  Saved& saved, In x, In dy, Deferred& d);
void dispatch_backward(Context& ctx, const Config& config, const Weights& w, Exchange& exchange,
                       Saved&& saved, In x, double balance_scale, Deferred& d, Out dx);
void mlp_backward_weight(Context& ctx, Deferred& d, Grads& dw);   // after mlp_backward
void gate_backward_weight(Context& ctx, Deferred& d, Grads& dw);  // after dispatch_backward

Saved forward(Context& ctx, const Config& config, const Weights& w, Exchange& exchange,
              const Packed& seq, In x, Out y);
// forward() for generation: nothing is kept, the balance loss is not computed. logits [T, E] of the
// gate, or empty where they are not known yet, as where ranks have tokens of their own. y [T, D] +=
// ... over the group, of whose experts each rank has an equal run.
void decode(Context& ctx, const Config& config, const Weights& w, Exchange& exchange,
            const DecodeGroup& group, In x, In logits, Acc y);
struct BackwardArgs {
  In x, dy;              // [T, D]  [T, D]
  double balance_scale;  // of the gradient of the balance loss
};
Deferred backward_input(Context& ctx, const Config& config, const Weights& w, Exchange& exchange,
                        Saved&& saved, const BackwardArgs& args, Out dx);
void backward_weight(Context& ctx, Deferred&& deferred, Grads& dw);  // dw += ...

}  // namespace hadal::moe
