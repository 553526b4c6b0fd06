// A rank of an expert-parallel group by itself, for benches: layers of DeepSeek-V3 with a few of
// the experts.
//
//   T tokens   D model width
//
// The gate chooses among all experts, but choice k of a token goes to local expert k mod L, so that
// the L local experts get the same number of rows, as many as a balanced rank of the group
// receives. Nothing is sent: rows are grouped, multiplied and summed here.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "core/rng.h"
#include "model/batch.h"
#include "model/exchange.h"
#include "model/fp8_weights.h"
#include "model/param_store.h"

namespace hadal::cli {

inline constexpr int64_t kLocalExperts = 4;  // of a rank of 64

// Sends choice k to local expert k mod kLocalExperts.
class BalancedExchange : public Exchange {
 public:
  BalancedExchange(Context& ctx, RowPool& pool, int64_t tokens, int64_t choices);
  Ticket dispatch_start(Context& ctx, In x, In topk_idx, In topk_weight) override;
  void dispatch_finish(Context& ctx, Ticket& t, RowLease* rows) override;
  void combine_start(Context& ctx, Ticket& t, const ops::PagedRows& rows) override;
  void combine_finish(Context& ctx, Ticket& t, const ops::PagedRows& rows, Out y) override;
  void combine_backward_start(Context& ctx, Ticket& t, In dy, const ops::PagedRows& drows) override;
  void combine_backward_finish(Context& ctx, Ticket& t, const ops::PagedRows& drows) override;
  void dispatch_backward_start(Context& ctx, Ticket& t, const ops::PagedRows& drows,
                               In drow_weight) override;
  void dispatch_backward_finish(Context& ctx, Ticket& t, const ops::PagedRows& drows,
                                In drow_weight, Out dx, Out dtopk_weight) override;

 private:
  LocalExchange local_;
  Block memory_;
  Tensor idx_;
};

// `layers` MoE layers and their gradients; matrices in bf16, or in FP8 where the precision says so.
class RankLayers {
 public:
  RankLayers(Context& ctx, const Config& config, const Precision& precision, int64_t layers);
  RankLayers(const RankLayers&) = delete;
  RankLayers& operator=(const RankLayers&) = delete;

  const Config& config() const { return config_; }  // of the layers, with all experts in its gate
  const Weights& weights() const { return weights_; }
  Grads& grads() { return grads_tree_; }
  // Pages for what the layers save of `tokens` tokens.
  int64_t pages(int64_t tokens) const;

 private:
  void init_alike(Context& ctx);

  Config config_, local_;
  ParamStore masters_, grads_, copies_;
  std::unique_ptr<Fp8Weights> fp8_;
  Weights weights_;
  Grads grads_tree_;
  std::vector<Block> gates_;
};

// Normal values of bf16.
Tensor random_rows(Context& ctx, const char* name, const Shape& shape, double size, Block* memory);
Batch one_sequence(Context& ctx, const Config& config, int64_t tokens);
// Tokens that mean nothing.
std::vector<Sequence> random_sequences(const Rng& rng, int64_t count, int64_t length,
                                       int64_t vocab_size);
// "bf16", "fp8": how a layer's products are computed. An Error for another format.
Precision precision_of(const std::string& format);

}  // namespace hadal::cli
