// Decoder: new tokens of some sequences through the whole model, over the latent cache.
//
//   T new tokens   D model width   V vocabulary   k MTP module (0, 1, ...)
//
// One form serves prefill, chunks, decode and verification: absorbed attention over the cache,
// every row computed on its own, so a token's state has the same bits however its tokens were cut
// into steps. A step may run again over positions whose tokens changed: their cache entries are
// replaced.
//
// Of several ranks that run a model together each has a decoder with its part of the weights, and
// all make the same calls. One of them may lead: before each call it announces it
// (decoder_call.h), and the others, which have no caller, make what they hear.
//
// Where they split sequences, a sequence has a home: the rank that has its pages and runs its
// attention. A step there is this rank's part of it, and step.of_ranks says what the others have;
// who leads says it to them himself (serve/paged_step.h).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "model/decoder_call.h"
#include "model/mtp.h"

namespace hadal {

// This rank among those that run a model together.
struct DecoderRanks {
  TensorGroup tensor = {};
  AttentionSplit attention = AttentionSplit::kHeads;
  Announce announce = {};  // of the one that leads
};

class Decoder {
 public:
  using Limits = DecoderLimits;
  // REQUIRES: config and weights outlive the decoder. act: f64, f32 or bf16. In a group config is
  // the whole model's, and weights are what decode_share() gives this rank, without the experts of
  // others.
  Decoder(Context& ctx, const Config& config, const Weights& weights, DType act, Limits limits,
          DecoderRanks ranks = {});

  LatentCache& cache() { return cache_; }
  const Config& config() const { return config_; }
  const Limits& limits() const { return limits_; }
  DType act() const { return act_; }

  // What one call works on: sequences seqs[s] (cache slots) with the tokens of `step`.
  struct Call {
    const Step& step;
    const std::vector<int64_t>& seqs;
  };
  // h [T, D]: states after the final norm.
  void forward(const Call& call, Out h);
  // MTP module k: state h of the depth before at these positions, step.ids the tokens after; out
  // [T, D] after the module's norm.
  void mtp_forward(int64_t k, const Call& call, In h, Out out);
  // logits [T, V] in the statistics type.
  void logits(In h, Out logits);
  // The first rows of a page of the cache into another one, in every layer; of `home`'s cache.
  void copy_rows(int64_t from, int64_t to, int64_t num_rows, int64_t home = 0);

  // What forward(), mtp_forward() and logits() do, for those who announce it themselves. prepare()
  // is the host's part: checks, room in the cache, the page table.
  void prepare(const Call& call);
  void run(const Step& step, Out h);
  void run_mtp(int64_t k, const Step& step, In h, Out out);
  void head(In h, Out logits);

  bool is_alone() const { return ranks_.tensor.is_alone(); }
  const TensorGroup& group() const { return ranks_.tensor; }
  // Ranks that have sequences of their own; 1: all have all of them.
  int num_homes() const { return splits_sequences() ? group().size() : 1; }
  int home() const { return splits_sequences() ? group().rank() : 0; }
  bool splits_sequences() const {
    return !is_alone() && ranks_.attention == AttentionSplit::kSequences;
  }
  // The others do what it announces, so it may not fail half-way and go on.
  bool leads() const { return static_cast<bool>(ranks_.announce); }
  void announce(const std::vector<int32_t>& words) const {
    if (leads()) ranks_.announce(words);
  }

 private:
  void announce(const Call& call, int64_t module) const;
  void check_mtp(int64_t k) const;

  Context& ctx_;
  const Config& config_;
  const Weights& weights_;
  DType act_;
  Limits limits_;
  DecoderRanks ranks_;
  Config part_;   // with this rank's heads and widths
  Operand head_;  // [V/G, D], or whole where sequences are split
  LatentCache cache_;
  RowPool rows_;
  LocalExchange exchange_;
};

}  // namespace hadal
