// Data: a text as training batches and held-out windows.
//
//   L sequence length   B sequences of a step   W = floor((tokens - 1) / L), at least 1: windows of
//   an epoch
//
// The last share of the text's bytes is held out, cut between characters. A sequence is the token
// that begins a document, as `hadal generate` puts it before a prompt, and L - 1 tokens of the
// text; each position predicts the next token of the text. An epoch visits W windows in an order
// drawn from (seed, epoch), shifted by less than a window: batch `position` is a pure function of
// its arguments.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer.h"
#include "model/batch.h"

namespace hadal::train {

struct TextData {
  int32_t bos = 0;                       // begins every sequence
  std::vector<int32_t> train, held_out;  // tokens
  int64_t train_bytes = 0, held_out_bytes = 0;
};

// Bytes of `text` that are trained on when the last `held_out` share is not.
size_t training_bytes(std::string_view text, double held_out);

// Reads and encodes PATH. An Error if it is empty or cannot be read.
TextData load_text(const std::string& path, const io::Tokenizer& tokenizer, double held_out,
                   int32_t bos);

// An Error unless the training text has a sequence of `length`.
void check_long_enough(const TextData& data, int64_t length);

// Sequences position, position + 1, ... position + count - 1 of the shuffled stream.
std::vector<Sequence> training_batch(const TextData& data, uint64_t seed, int64_t position,
                                     int64_t count, int64_t length);

// The held-out text in windows that start every `stride` tokens; each token is a target once, in
// the first window that reaches it. REQUIRES: 1 <= stride <= length.
std::vector<Sequence> held_out_windows(const TextData& data, int64_t length, int64_t stride);

}  // namespace hadal::train
