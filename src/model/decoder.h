// Decoder: new tokens of some sequences through the whole model, over the latent cache.
//
//   T new tokens   D model width   V vocabulary   k MTP module (0, 1, ...)
//
// One form serves prefill, chunks, decode and verification: absorbed attention over the cache,
// every row computed on its own, so a token's state has the same bits however its tokens were cut
// into steps. A step may run again over positions whose tokens changed: their cache entries are
// replaced.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "model/mtp.h"

namespace hadal {

class Decoder {
 public:
  struct Limits {
    int64_t max_seqs = 1;
    int64_t max_tokens = 4096;      // of one sequence
    int64_t max_step_tokens = 256;  // T of one step
    int64_t num_mtp = 0;            // MTP modules to keep a cache for
    int64_t num_pages = 0;          // of the cache; 0: all sequences at their longest
    CacheFormat cache = CacheFormat::kCompute;
  };
  // REQUIRES: config and weights outlive the decoder. act: f64, f32 or bf16.
  Decoder(Context& ctx, const Config& config, const Weights& weights, DType act, Limits limits);

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
  // forward() in two parts. prepare() is the host's: checks, room in the cache, the page table.
  void prepare(const Call& call);
  void run(const Step& step, Out h);
  // MTP module k: state h of the depth before at these positions, step.ids the tokens after; out
  // [T, D] after the module's norm.
  void mtp_forward(int64_t k, const Call& call, In h, Out out);
  // logits [T, V] in the statistics type.
  void logits(In h, Out logits);

 private:
  Context& ctx_;
  const Config& config_;
  const Weights& weights_;
  DType act_;
  Limits limits_;
  LatentCache cache_;
  RowPool rows_;
  LocalExchange exchange_;
};

}  // namespace hadal
