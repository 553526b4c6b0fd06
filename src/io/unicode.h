// Classes of characters: the general category's first letter, and white space.
//
// Of Unicode 16, as Hugging Face tokenizers matches; PCRE2 may know another version. The table is
// in unicode_table.cc; tests/peers compares it with theirs at every code point.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace hadal::io {

enum CharClass : uint8_t {
  kLetter = 1,       // \p{L}
  kMark = 2,         // \p{M}
  kNumber = 4,       // \p{N}
  kPunctuation = 8,  // \p{P}
  kSymbol = 16,      // \p{S}
  kSpace = 32,       // \s
};

inline constexpr uint32_t kNumCodePoints = 0x110000;

// The ranges of one set of classes: first code point << 8 | classes.
const std::vector<uint32_t>& unicode_ranges();

// The classes of every code point, in one byte each; made at the first call.
const uint8_t* unicode_classes();

// A character at the start of `text`. REQUIRES: `text` is not empty and valid UTF-8.
struct Character {
  uint32_t code;
  uint32_t length;  // in bytes
};
inline Character character_at(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) -> uint32_t { return static_cast<uint8_t>(text[at + i]); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0xF) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(lead & 7) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}

}  // namespace hadal::io
