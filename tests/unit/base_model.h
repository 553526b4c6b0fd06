// The random model of tests/goldens/base, a tokenizer for it, and likelihoods without any cache.
//
//   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "io/bpe_train.h"
#include "io/hf.h"
#include "io/tokenizer.h"
#include "model/decoder.h"

namespace hadal::testing {

inline constexpr const char* kChatTokens[] = {"<\uFF5Cbegin\u2581of\u2581sentence\uFF5C>",
                                              "<\uFF5Cend\u2581of\u2581sentence\uFF5C>",
                                              "<\uFF5CUser\uFF5C>",
                                              "<\uFF5CAssistant\uFF5C>",
                                              "<think>",
                                              "</think>"};

// With the tokens of the chat templates; ids 0 and 1 begin and end a text, as in the model.
inline io::Tokenizer chat_tokenizer() {
  std::string text;
  for (int i = 0; i < 50; ++i)
    text += "the quick brown fox jumps over the lazy dog; some more words are here\n";
  return io::train_bpe(text, 300, {std::begin(kChatTokens), std::end(kChatTokens)});
}

struct BaseModel {
  BaseModel() : memory_block(io::load_weights(ctx, checkpoint, io::WeightFormat::kF32, weights)) {}
  const Config& config() const { return checkpoint.config; }
  Decoder decoder(int64_t max_step_tokens, int64_t num_mtp = 0) {
    return {
        ctx,
        config(),
        weights,
        DType::kF32,
        {.max_seqs = 1, .max_tokens = 512, .max_step_tokens = max_step_tokens, .num_mtp = num_mtp}};
  }
  // Of each token after the first, in a step of its own sequence.
  std::vector<double> naive_log_probs(const std::vector<int32_t>& ids) {
    const auto n = static_cast<int64_t>(ids.size()), V = config().vocab_size;
    Decoder fresh = decoder(512);
    const std::vector<int64_t> seqs = {fresh.cache().open()};
    const Step step = make_step(ctx, config(), ids, {0}, {n}, DType::kF32);
    Tensor h, logits;
    const Block states = ctx.memory.take_tensor(DType::kF32, {n, config().hidden_size}, &h);
    const Block values = ctx.memory.take_tensor(DType::kF32, {n, V}, &logits);
    fresh.forward({.step = step, .seqs = seqs}, h);
    fresh.logits(h, logits);
    std::vector<double> result;
    for (int64_t i = 0; i + 1 < n; ++i) {
      const float* row = logits.data<float>() + i * V;
      double sum = 0.0;
      for (int64_t v = 0; v < V; ++v) sum += std::exp(double{row[v]});
      result.push_back(row[ids[static_cast<size_t>(i) + 1]] - std::log(sum));
    }
    return result;
  }

  ThreadPool threads{1};
  Pool memory;
  Context ctx{.device = {}, .stream = {}, .threads = threads, .memory = memory};
  io::HfCheckpoint checkpoint = io::open_checkpoint("tests/goldens/base");
  Weights weights;
  Block memory_block;
};

}  // namespace hadal::testing
