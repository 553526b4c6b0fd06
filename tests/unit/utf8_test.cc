// UTF-8: every code point, every kind of invalid sequence, and the byte alphabet.
// SPDX-License-Identifier: Apache-2.0
#include "io/utf8.h"

#include <gtest/gtest.h>

#include <set>

#include "core/rng.h"

namespace hadal::io {
namespace {

// The bytes of a code point by the general pattern, valid or not.
std::string spell(uint32_t code, int length) {
  if (length == 1) return std::string(1, static_cast<char>(code));
  std::string text;
  for (int i = length - 1; i > 0; --i) {
    text.insert(text.begin(), static_cast<char>(0x80 | (code & 0x3F)));
    code >>= 6;
  }
  const uint32_t lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
  return static_cast<char>(lead[length] | code) + text;
}
int length_of(uint32_t code) { return code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4; }

TEST(Utf8, EveryCodePoint) {
  for (uint32_t code = 0; code <= 0x10FFFF; ++code) {
    const int length = length_of(code);
    const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
    ASSERT_EQ(utf8_length(spell(code, length), 0), surrogate ? 0u : static_cast<size_t>(length))
        << code;
  }
}

TEST(Utf8, InvalidSequences) {
  for (uint32_t code : {0x00u, 0x41u, 0x7Fu}) {  // overlong
    EXPECT_EQ(utf8_length(spell(code, 2), 0), 0u);
    EXPECT_EQ(utf8_length(spell(code, 3), 0), 0u);
    EXPECT_EQ(utf8_length(spell(code, 4), 0), 0u);
  }
  EXPECT_EQ(utf8_length(spell(0x7FF, 3), 0), 0u);
  EXPECT_EQ(utf8_length(spell(0xFFFF, 4), 0), 0u);
  EXPECT_EQ(utf8_length(spell(0x110000, 4), 0), 0u);
  EXPECT_EQ(utf8_length(spell(0x1FFFFF, 4), 0), 0u);
  for (int lead = 0x80; lead <= 0xFF; ++lead)  // alone: cut off, or no lead byte at all
    EXPECT_EQ(utf8_length(std::string(1, static_cast<char>(lead)), 0), 0u) << lead;
  EXPECT_EQ(utf8_length("\xE2\x82", 0), 0u);
  EXPECT_EQ(utf8_length("\xE2\x28\xA1", 0), 0u);
  EXPECT_EQ(utf8_length("\xF0\x9F\x98\x2E", 0), 0u);
  EXPECT_EQ(utf8_length("a\xC3\xA9", 1), 2u);
}

// The prefix found eight bytes at a time is the one found character by character.
TEST(Utf8, ValidPrefix) {
  EXPECT_EQ(utf8_valid_prefix(""), 0u);
  const Rng rng(1, 2);
  for (uint64_t i = 0; i < 3000; ++i) {
    std::string text;
    for (uint64_t j = 0; j < rng.u64(i) % 30; ++j) {
      const uint64_t draw = rng.u64(1000 * (i + 1) + j);
      const auto code =
          static_cast<uint32_t>(draw % 5 == 0 ? 0x80 + draw / 5 % 0xD000 : draw / 5 % 0x80);
      text += draw % 23 == 0 ? std::string("\xC3") : spell(code, length_of(code));
    }
    size_t want = 0;
    while (want < text.size() && utf8_length(text, want) > 0) want += utf8_length(text, want);
    ASSERT_EQ(utf8_valid_prefix(text), want);
  }
}

TEST(Alphabet, IsTheOneOfTokenizerJson) {
  EXPECT_EQ(spell_bytes(" the"), "\u0120the");
  EXPECT_EQ(spell_bytes("\n"), "\u010a");
  EXPECT_EQ(spell_bytes("\t"), "\u0109");
  EXPECT_EQ(spell_bytes(std::string(1, '\0')), "\u0100");
  EXPECT_EQ(spell_bytes("\x7f"), "\u0121");
  EXPECT_EQ(spell_bytes("\xad"), "\u0143");  // the last of the 68
  EXPECT_EQ(spell_bytes("\u00e9"), "\u00c3\u00a9");
  EXPECT_EQ(spell_bytes("!~"), "!~");
}

TEST(Alphabet, EveryByteAndBack) {
  std::set<std::string> names;
  std::string all;
  for (int b = 0; b < 256; ++b) {
    const std::string byte(1, static_cast<char>(b));
    names.insert(spell_bytes(byte));
    EXPECT_EQ(unspell_bytes(spell_bytes(byte)), byte);
    all += byte;
  }
  EXPECT_EQ(names.size(), 256u);
  EXPECT_EQ(utf8_valid_prefix(spell_bytes(all)), spell_bytes(all).size());
  EXPECT_EQ(unspell_bytes(spell_bytes(all)), all);
  EXPECT_EQ(unspell_bytes(""), "");
}

TEST(Alphabet, WhatIsNotInIt) {
  EXPECT_EQ(unspell_bytes("a b"), std::nullopt);     // the space is spelled \u0120
  EXPECT_EQ(unspell_bytes("\u0144"), std::nullopt);  // one after the last
  EXPECT_EQ(unspell_bytes("\u00ad"), std::nullopt);  // soft hyphen
  EXPECT_EQ(unspell_bytes("\uff5c"), std::nullopt);  // three bytes
  EXPECT_EQ(unspell_bytes("a\xC4"), std::nullopt);   // cut off
}

}  // namespace
}  // namespace hadal::io
