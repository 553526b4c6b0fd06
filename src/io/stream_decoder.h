// Text from tokens as they come: never a part of a character, never a part of a stop string.
//
//   StreamDecoder   tokens to whole characters
//   StopScanner     text to the text before a stop string
//
// Both keep only what they hold back, so a token costs the same however long the text is.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer.h"

namespace hadal::io {

// All that push() and finish() return is valid UTF-8: what Python's decode("utf-8", "replace")
// makes of the bytes of all tokens, U+FFFD where they are no UTF-8.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}
  // The characters that are complete with this token; often none. Ids above the vocabulary, which
  // a model has when its own was padded, have no text.
  std::string push(int32_t id);
  // The same for bytes that came from elsewhere.
  std::string push_bytes(std::string_view bytes);
  // U+FFFD if the last character is incomplete, else nothing. Starts anew.
  std::string finish();

 private:
  Tokenizer tokenizer_;
  std::string held_;  // the start of a character
};

// The stop string that is complete first counts; of two, the longer.
class StopScanner {
 public:
  // Empty stop strings are left out.
  explicit StopScanner(std::vector<std::string> stops);
  // What can be shown now. Nothing once a stop string has appeared.
  std::string push(std::string_view text);
  // What was held back and has become no stop string.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;  // may be the start of a stop string
  bool stopped_ = false;
};

}  // namespace hadal::io
