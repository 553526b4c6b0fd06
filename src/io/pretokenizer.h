// PreTokenizer: cuts text into the pieces inside which byte-level BPE merges, as tokenizer.json
// says.
//
// A list of regular expressions; each cuts every piece of the one before into its matches and what
// lies between them. `^` and `$` match at line breaks, as in the Ruby syntax that tokenizer.json
// files are written for. The patterns of well-known tokenizers are evaluated by loops of their own
// (io/known_patterns.h), with the classes of Unicode 16; any other by PCRE2, compiled at
// construction (JIT), with the Unicode version of that library (14 in Debian 12).
// A byte that is not part of a valid character is a piece of its own.
// Immutable and cheap to copy; split() may run on several threads at once.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"
#include "io/known_patterns.h"

namespace hadal::io {

class PreTokenizer {
 public:
  // Words with their leading space, up to three digits, punctuation with the line breaks after it.
  static PreTokenizer standard();
  // The pre_tokenizer object; an Error names what is not supported.
  static PreTokenizer from_json(const JsonObject& object);
  Json to_json() const;

  // The pieces, in order; together they are `text`. They point into it.
  void split(std::string_view text, const Emit& emit) const;
  std::vector<std::string_view> split(std::string_view text) const;

  // The same with PCRE2 for every pattern: the slow twin that tests compare with.
  PreTokenizer with_pcre2() const;

 private:
  struct Rules;
  enum class Evaluation : uint8_t { kFast, kPcre2 };
  explicit PreTokenizer(std::shared_ptr<const Rules> rules) : rules_(std::move(rules)) {}
  std::shared_ptr<const Rules> rules_;
  Evaluation evaluation_ = Evaluation::kFast;
};

}  // namespace hadal::io
