// Sampler: all that changes one sequence's logits before a token is drawn from them.
//
//   V vocabulary
//
// Works on host memory. What it does to position p depends on the tokens before p alone, so drafts
// are verified with the same tokens as without speculation.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "core/tensor.h"
#include "ops/sample.h"
#include "serve/grammar.h"
#include "serve/request.h"

namespace hadal::serve {

class Sampler {
 public:
  Sampler(const SamplingParams& params, const std::vector<int32_t>& prompt, int64_t vocab_size);

  // The rule for ops::sample, after process().
  const ops::SampleRule& rule() const { return rule_; }
  // That process() changes nothing, whatever is generated.
  bool is_plain() const { return plain_; }
  // logits [V] f32 or f64, in place. `tokens`: prompt and what was generated. An Error if no token
  // is left.
  void process(const Tensor& logits, const std::vector<int32_t>& tokens);
  // A token was generated.
  void accept(int32_t token);

 private:
  template <class T>
  void process_row(T* logits, const std::vector<int32_t>& tokens);
  bool is_held() const { return grammar_ && grammar_begun_; }

  const SamplingParams& params_;
  ops::SampleRule rule_;
  int64_t vocab_size_;
  bool plain_;
  std::unordered_set<int32_t> prompt_;              // kept for the repetition penalty
  std::unordered_map<int32_t, int64_t> generated_;  // how often
  int64_t num_generated_ = 0;
  std::optional<GrammarState> grammar_;
  bool grammar_begun_ = false;
};

}  // namespace hadal::serve
