// Follower: a rank without requests, tokenizer or scheduler. It hears what the leader is about to
// do with its decoder, and does the same with its own part of the model.
//
// What the leader decides from (tokens, pages, states that it chose) comes with each call, so the
// two cannot part; what a follower keeps between calls is its cache, and tokens that a StepRunner
// drew from logits of the same bits.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "model/decoder.h"
#include "serve/step_runner.h"

namespace hadal::serve {

class Follower {
 public:
  // config, weights, ranks: as a decoder of this rank takes them; the first two outlive it. The
  // leader is rank 0 of the group.
  Follower(Context& ctx, const Config& config, const Weights& weights, DType act,
           DecoderRanks ranks);

  // Does what it hears, until the leader ends it. hear() waits for the next announcement.
  void run(const std::function<std::vector<int32_t>()>& hear);

 private:
  void call(const DecoderCall& call);
  void make(const DecoderLimits& limits);
  void paged_call(const DecoderCall& call);
  Step step_of(const DecoderCall& call);

  Context& ctx_;
  const Config& config_;
  const Weights& weights_;
  DType act_;
  DecoderRanks ranks_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<StepRunner> runner_;
};

}  // namespace hadal::serve
