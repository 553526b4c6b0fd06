// What the engine is asked for, and what it answers step by step.
//
//   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace hadal::serve {

class Grammar;

// Order, as far as it matters: grammar, bad words, minimum length, bias, penalties, then
// temperature, min_p, top_k, top_p, and the draw for (seed, position). Log probabilities are the
// model's own, before any of these.
struct SamplingParams {
  double temperature = 1.0;  // 0 is greedy
  double top_p = 1.0, min_p = 0.0;
  int64_t top_k = 0;  // 0 keeps all
  uint64_t seed = 0;
  double presence_penalty = 0.0, frequency_penalty = 0.0;  // of generated tokens
  double repetition_penalty = 1.0;                         // of prompt and generated tokens
  std::vector<std::pair<int32_t, double>> logit_bias;
  std::vector<std::vector<int32_t>> bad_words;  // token sequences that are never completed

  int64_t max_tokens = 16, min_tokens = 0;  // to generate; nothing stops before the minimum
  std::vector<int32_t> stop_ids;            // end tokens of the model included, unless ignored
  std::vector<std::string> stop;            // the text ends before any of these
  int64_t num_logprobs = -1;                // alternatives of each token; -1: no log probabilities
  int64_t num_prompt_logprobs = -1;

  std::shared_ptr<const Grammar> grammar = {};  // that the reply is held to; null: to none
  int32_t grammar_after = -1;  // it begins behind this token, which ends reasoning; -1: at once
};

struct Request {
  uint64_t id = 0;  // unique and not 0
  std::vector<int32_t> prompt;
  SamplingParams params;
  int64_t priority = 0;  // smaller is more urgent
  uint64_t leader = 0;   // waits for this one's prompt, to share it; 0: none
};

struct TokenLogprob {
  int32_t id = 0;
  double logprob = 0.0;
  std::vector<std::pair<int32_t, double>> top;  // most probable first
};

enum class Finish : uint8_t { kStop, kLength, kCancelled, kError };
const char* finish_name(Finish finish);

// What a step brought for one request; the last one says how it ended.
struct Output {
  uint64_t id = 0;
  std::string text;                           // whole characters
  std::vector<int32_t> tokens;                // without an end token
  std::vector<TokenLogprob> logprobs;         // of these tokens, if asked for
  std::vector<TokenLogprob> prompt_logprobs;  // of prompt tokens from the second on, once
  int64_t num_prompt = 0, num_cached = 0, num_generated = 0;  // so far, the end token included
  std::optional<Finish> finish;
  std::string error;  // of kError
};

}  // namespace hadal::serve
