// Penalties, bias and bans on one row of logits.
// SPDX-License-Identifier: Apache-2.0
#include "serve/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace hadal::serve {

Sampler::Sampler(const SamplingParams& p, const std::vector<int32_t>& prompt, int64_t vocab_size)
    : params_(p),
      rule_{.temperature = p.temperature, .top_k = p.top_k, .top_p = p.top_p, .seed = p.seed},
      vocab_size_(vocab_size),
      plain_(p.logit_bias.empty() && p.bad_words.empty() && p.presence_penalty == 0.0 &&
             p.frequency_penalty == 0.0 && p.repetition_penalty == 1.0 &&
             (p.min_p == 0.0 || p.temperature == 0.0) &&
             (p.min_tokens == 0 || p.stop_ids.empty()) && !p.grammar),
      grammar_begun_(p.grammar_after < 0) {
  if (p.grammar) grammar_.emplace(*p.grammar, p.stop_ids);
  if (p.repetition_penalty != 1.0) prompt_.insert(prompt.begin(), prompt.end());
}

void Sampler::accept(int32_t token) {
  ++num_generated_;
  if (!plain_) ++generated_[token];
  if (is_held())
    grammar_->accept(token);
  else if (token == params_.grammar_after)
    grammar_begun_ = true;
}

template <class T>
void Sampler::process_row(T* logits, const std::vector<int32_t>& tokens) {
  constexpr T kNever = -std::numeric_limits<T>::infinity();
  if (is_held()) {
    const std::vector<int32_t>& allowed = grammar_->allowed();
    for (int64_t v = 0; v < vocab_size_; ++v)
      if (((static_cast<uint32_t>(allowed[static_cast<size_t>(v / 32)]) >> (v % 32)) & 1u) == 0)
        logits[v] = kNever;
  }
  for (const std::vector<int32_t>& word : params_.bad_words) {
    const size_t n = word.size() - 1;  // that must stand before its last token
    // Only generated tokens count as its beginning.
    if (static_cast<int64_t>(n) <= num_generated_ &&
        std::equal(word.begin(), word.end() - 1, tokens.end() - static_cast<int64_t>(n)))
      logits[word.back()] = kNever;
  }
  // A reply that is complete by its grammar cannot be made longer.
  if (num_generated_ < params_.min_tokens && (!is_held() || grammar_->goes_on()))
    for (int32_t id : params_.stop_ids) logits[id] = kNever;
  for (const auto& [id, bias] : params_.logit_bias) logits[id] += static_cast<T>(bias);
  const double r = params_.repetition_penalty;
  if (r != 1.0) {
    const auto repeat = [&](int32_t id) {
      T& logit = logits[id];
      logit = static_cast<T>(logit > 0 ? static_cast<double>(logit) / r
                                       : static_cast<double>(logit) * r);
    };
    for (int32_t id : prompt_) repeat(id);
    for (const auto& [id, count] : generated_)
      if (!prompt_.contains(id)) repeat(id);
  }
  if (params_.presence_penalty != 0.0 || params_.frequency_penalty != 0.0)
    for (const auto& [id, count] : generated_)
      logits[id] = static_cast<T>(static_cast<double>(logits[id]) - params_.presence_penalty -
                                  params_.frequency_penalty * static_cast<double>(count));
  // A row that nothing can be drawn from is found here, so that it fails alone.
  T best = kNever;
  bool has_nan = false;
  for (int64_t v = 0; v < vocab_size_; ++v) {
    best = logits[v] > best ? logits[v] : best;
    has_nan = has_nan || std::isnan(logits[v]);
  }
  HADAL_CHECK(!has_nan && best < -kNever,
              "the logits have NaN or infinity after logit_bias and penalties: nothing can be ",
              "drawn from them");
  HADAL_CHECK(best > kNever, "no token may come next: the form that was asked for, bad_words and ",
              "min_tokens exclude each other");
  if (params_.min_p > 0.0 && params_.temperature > 0.0) {
    const auto least =
        static_cast<T>(static_cast<double>(best) + std::log(params_.min_p) * params_.temperature);
    for (int64_t v = 0; v < vocab_size_; ++v)
      if (logits[v] < least) logits[v] = kNever;
  }
}

void Sampler::process(const Tensor& logits, const std::vector<int32_t>& tokens) {
  HADAL_CHECK_SHAPE(logits, vocab_size_);
  if (logits.dtype() == DType::kF64)
    process_row(logits.data<double>(), tokens);
  else
    process_row(logits.data<float>(), tokens);
}

}  // namespace hadal::serve
