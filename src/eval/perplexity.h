// How well a model predicts texts: perplexity, bits per token, bits per byte.
//
//   W window   S stride
//
// A document is scored in windows of W tokens, the first of which is the one that begins a
// document: each window scores S tokens that none did before, behind W-1-S tokens of context (the
// first window scores all of its tokens). So every token is scored once, none without context.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "serve/prefix_runner.h"

namespace hadal::eval {

// Tokens of a document in a row that count as one observation of the standard error: neighbours
// depend on each other.
inline constexpr int64_t kBlockTokens = 128;

struct Block {
  double nats = 0.0;
  int64_t num_tokens = 0;
};

struct TextScore {
  int64_t num_documents = 0, num_tokens = 0, num_bytes = 0;
  double nats = 0.0;  // -sum of log probabilities
  std::vector<Block> blocks;
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

struct Document {
  std::vector<int32_t> ids;  // without a token that begins it
  int64_t num_bytes = 0;     // of its text
};

struct TextOptions {
  Windows windows;
  std::string output;    // file of results, a line a window (eval/result_file.h); none if empty
  std::string identity;  // what else decides about results: the model
  // Tokens so far, of all; `resumed` of them were in the file.
  std::function<void(int64_t done, int64_t total, int64_t resumed)> progress;
};

// `bos` stands before each document. An Error if there are no tokens at all.
TextScore score_texts(serve::PrefixRunner& runner, const std::vector<Document>& documents,
                      int32_t bos, const TextOptions& options);

}  // namespace hadal::eval
