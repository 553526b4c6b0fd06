// How well a model predicts a text: perplexity, bits per token, bits per byte.
//
//   W window   S stride
//
// The text is scored in windows of W tokens, the first of which is the one that begins a document:
// each window scores S tokens that none did before, behind W-1-S tokens of context (the first
// window scores all of its tokens). So every token is scored once, none without context.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "serve/prefix_runner.h"

namespace hadal::eval {

// Tokens in a row that count as one observation of the standard error: neighbours depend on each
// other.
inline constexpr int64_t kBlockTokens = 128;

struct TextScore {
  int64_t num_tokens = 0, num_bytes = 0;
  double nats = 0.0;  // -sum of log probabilities
  std::vector<double> block_nats;
  double nats_per_token() const { return nats / static_cast<double>(num_tokens); }
  double perplexity() const;
  double bits_per_token() const;
  double bits_per_byte() const;
  // Of nats_per_token(), from the spread between blocks; none with fewer than two of them.
  std::optional<double> standard_error() const;
};

struct Windows {
  int64_t window = 2048, stride = 1024;  // tokens; stride: 1 to window - 1
};

// progress: tokens scored so far. `ids` are those of num_bytes bytes of text, without `bos`.
TextScore score_text(serve::PrefixRunner& runner, const std::vector<int32_t>& ids,
                     int64_t num_bytes, int32_t bos, const Windows& windows,
                     const std::function<void(int64_t done)>& progress);

}  // namespace hadal::eval
