// Generator: one sequence after another, each from where its prompt differs from the one before,
// token by token or several at a time by MTP speculation.
//
//   D model width   V vocabulary   N drafts of a round
//
// Lossless: the target's token at position p is drawn with a counter-based generator of (seed, p)
// whether or not it was drafted, and a draft is accepted when it equals that token. So greedy and
// sampled text are the same with speculation on and off, at any depth and chunk size.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "model/decoder.h"
#include "ops/sample.h"

namespace hadal::serve {

struct GenerateRequest {
  std::vector<int32_t> prompt;  // one token or more
  int64_t max_tokens = 128;     // to generate
  ops::SampleRule sampling;
  std::vector<int64_t> stop_ids;  // end-of-sequence tokens; they are not part of the result
  int64_t speculate = 0;          // N; 0 is off
  // Called for each token in order; false ends the generation after it.
  std::function<bool(int32_t token)> on_token;
  // Asked between the steps of a long prompt; true ends the generation there.
  std::function<bool()> should_stop;
};

struct GenerateResult {
  std::vector<int32_t> tokens;
  bool stopped = false;                    // ended by one of stop_ids
  int64_t num_rounds = 0;                  // runs of the main model after the prompt
  int64_t num_reused = 0;                  // tokens of the prompt that were in the cache
  std::vector<int64_t> drafted, accepted;  // [N] by place in the round
  double prefill_seconds = 0.0, decode_seconds = 0.0;
  double acceptance() const;         // of the first draft; 0 without drafts
  double tokens_per_second() const;  // after the first token
};

class Generator {
 public:
  // The decoder's cache gives one sequence to the generator while this lives.
  Generator(Context& ctx, Decoder& decoder);
  ~Generator();
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;
  GenerateResult run(const GenerateRequest& request);

 private:
  struct Session;
  Context& ctx_;
  Decoder& decoder_;
  std::unique_ptr<Session> session_;  // none before the first run, and after an Error
};

}  // namespace hadal::serve
