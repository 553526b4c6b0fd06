// PrefixRunner: one sequence after another through the model, each from where it differs from the
// one before.
//
//   T tokens of a step   V vocabulary
//
// A token's state has the same bits however its tokens were cut into steps, so results do not
// depend on what was run before. Used where much text comes again: turns of a conversation, the
// answers to one question, questions behind the same examples.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "model/decoder.h"
#include "ops/sample.h"

namespace hadal::serve {

class PrefixRunner {
 public:
  // Takes one sequence of the decoder's cache.
  PrefixRunner(Context& ctx, Decoder& decoder);
  ~PrefixRunner() { decoder_.cache().close(slots_[0]); }
  PrefixRunner(const PrefixRunner&) = delete;
  PrefixRunner& operator=(const PrefixRunner&) = delete;

  // Natural logarithms of the probabilities of ids[first], ids[first + 1], ..., each after all
  // tokens before it. REQUIRES: first >= 1.
  std::vector<double> log_probs(const std::vector<int32_t>& ids, int64_t first);
  // The token after ids; none if should_stop said so on the way.
  std::optional<int32_t> next(const std::vector<int32_t>& ids, const ops::SampleRule& rule);

  int64_t max_tokens() const { return decoder_.limits().max_tokens; }
  // Tokens that went through the model so far.
  int64_t num_run() const { return num_run_; }
  // Asked before each step of next().
  std::function<bool()> should_stop;

 private:
  using Visit = std::function<bool(int64_t position, In h)>;
  enum class Stopping : uint8_t { kNever, kWhenAsked };
  bool run(const std::vector<int32_t>& ids, int64_t from, Stopping stopping, const Visit& visit);

  Context& ctx_;
  Decoder& decoder_;
  std::vector<int64_t> slots_;
  std::vector<int32_t> cached_;  // tokens whose positions are in the cache
  int64_t num_run_ = 0;
  Block memory_;
  Tensor logits_, targets_, lse_, loss_;  // [T, V]  [T] i32  [T]  [T]
  Tensor where_, token_;                  // [1] i32   a position, and the token drawn for it
};

}  // namespace hadal::serve
