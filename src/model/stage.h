// A pipeline stage: layers [first, last) of the model; embeds if it is the first, computes the
// losses of the main model and of every MTP module if it is the last. A stage with both is the
// whole model.
//
//   T tokens of this rank   D model width   L layers of the stage   Dm MTP depths
//   M MoE layers of the stage   E experts
//
// Per micro-batch: forward -> backward_input -> backward_weight, each once; backward() does both
// halves layer by layer and holds one layer's Deferred at a time, and overlap() does forward() of
// one micro-batch and backward() of another side by side; all with the same bits.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <vector>

#include "model/head.h"
#include "model/mtp.h"

namespace hadal::stage {

struct Stage {
  const Config& config;
  const hadal::Weights& w;
  Exchange& exchange;
  int64_t first_layer, last_layer;  // [first, last) of num_hidden_layers
  int64_t num_mtp;                  // MTP depths that train; 0 on stages without the loss
  TensorGroup tensor = {};          // ranks that share the micro-batch's tokens, heads and widths
  int spare_sms = 0;                // of a GPU: left to the exchange by layers of overlap()
  // Told of each layer before a forward reads its weights (numbers as below).
  std::function<void(int64_t layer)> layer_begins = {};
  // Told of each layer when a call has added all that it adds to its gradients (MTP module k:
  // num_hidden_layers + k; the embedding and the head are of no layer).
  std::function<void(int64_t layer)> layer_done = {};
  bool is_first() const { return first_layer == 0; }
  bool is_last() const { return last_layer == config.num_hidden_layers; }
};
Stage whole_model(const Config& config, const hadal::Weights& w, Exchange& exchange,
                  int64_t num_mtp);

// Factors of the objective, over the tokens and sequences of the whole step, so that it does not
// depend on how the step is cut into micro-batches:
//   main * sum(main losses) + sum_k mtp[k] * sum(losses of depth k)
//   + sum over MoE layers: balance (of MTP block k: mtp_balance[k]) * sum over sequences
struct LossScale {
  double main = 0.0;
  std::vector<double> mtp;  // [Dm]
  double balance = 0.0;
  std::vector<double> mtp_balance;  // [Dm]
};

// What a step adds up over its micro-batches. MoE layers in order, MTP blocks last.
struct Meter {
  Block memory;
  Tensor sums;     // [1+Dm+M] f64   main, mtp and balance
  Tensor main;     // [1] f64      sum of losses over targets
  Tensor mtp;      // [Dm] f64
  Tensor balance;  // [M] f64      sum over sequences, without alpha
  Tensor counts;   // [M, E] i64   (token, choice) pairs of each expert
};
Meter make_meter(Context& ctx, const Stage& stage);
void reset(Context& ctx, Meter& meter);
// The rows of `stage` in a meter of the whole model. REQUIRES: the meter outlives it.
Meter part_of(const Meter& whole, const Stage& stage);

struct [[nodiscard]] Saved {
  Block memory;
  std::vector<Tensor> x;  // [L+1] of [T, D]   residual stream between layers
  Tensor h, rstd;         // [T, D]  [T]       after the final norm (last stage)
  std::vector<block::Saved> blocks;
  head::Saved head;
  std::vector<mtp::Saved> mtp;
  std::vector<head::Saved> mtp_head;
};
struct [[nodiscard]] Deferred {
  Saved saved;  // what the deferred products still read
  Block memory;
  Tensor dx;     // [T, D]            gradient of the embedding's output
  Tensor dnorm;  // [D]
  std::vector<block::Deferred> blocks;
  head::Deferred head;
  std::vector<mtp::Deferred> mtp;
  std::vector<head::Deferred> mtp_head;
};

// x_in: from the stage before (empty on the first); the residual stream leaves as saved.x.back().
// Losses and counts are added to the meter; pass counts only for tokens that count once (training).
Saved forward(Context& ctx, const Stage& stage, const Batch& batch, In x_in, Meter& meter);
// dy_in: gradient from the stage after (empty on the last); dx_out: to the stage before (empty on
// the first).
struct BackwardArgs {
  const Batch& batch;
  const LossScale& scale;
  In dy_in;
  Out dx_out;
};
Deferred backward_input(Context& ctx, const Stage& stage, Saved&& saved, const BackwardArgs& args);
void backward_weight(Context& ctx, const Stage& stage, const Batch& batch, Deferred&& deferred,
                     hadal::Grads& grads);  // grads += ...
void backward(Context& ctx, const Stage& stage, Saved&& saved, const BackwardArgs& args,
              hadal::Grads& grads);  // grads += ...

// Layers in pairs, so that transfers of one micro-batch run beside work of the other (report,
// 3.2.1). The two may be of different stages.
struct ForwardArgs {
  const Stage& stage;
  const Batch& batch;
  In x_in;
  Meter& meter;
};
Saved overlap(Context& ctx, const ForwardArgs& forward, const Stage& stage, Saved&& saved,
              const BackwardArgs& args, hadal::Grads& grads);  // grads += ...

}  // namespace hadal::stage
