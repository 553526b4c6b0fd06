// The loops of well-known patterns against PCRE2, on random texts of what the patterns look at.
// SPDX-License-Identifier: Apache-2.0
#include "io/known_patterns.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/rng.h"
#include "io/pretokenizer.h"
#include "io/unicode.h"

namespace hadal::io {
namespace {

const std::vector<std::string> kParts = {
    "a",          "Z",      "s",          "t",      "re",
    "ll",         "'",      "\"",         "!",      "$",
    "_",          "-",      "(",          "<",      " ",
    "  ",         "\n",     "\r",         "\t",     "\r\n",
    "\x0b",       "0",      "12",         "3456",   "\u0660",
    "\u00bd",     "\u2163", "\u00e9",     "\u0301", "\u4e00",
    "\u9fa5",     "\u9fa6", "\u3040",     "\u30a0", "\u30fb",
    "\u309b",     "\u3099", "\u3042",     "\u30ff", "\u3100",
    "\u3000",     "\u00a0", "\u2028",     "\u0085", "\u200b",
    "\ufeff",     "\u20ac", "\u2014",     "\u0939", "\u093f",
    "\u0416",     "\uac00", "\U0001f600", "\u200d", "\U00020000",
    "\U0010ffff", "\u00aa", "\u02c6",     "\x01",   "\x7f",
    "\u00ad",     "\ue000", "\u0e31",     "\u0378", std::string(1, '\0')};

PreTokenizer of(const std::vector<std::string_view>& patterns) {
  Json steps = Json::array();
  for (std::string_view pattern : patterns)
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", std::string(pattern)}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
  const Json json = {{"type", "Sequence"}, {"pretokenizers", steps}};
  return PreTokenizer::from_json(JsonObject(json, "pre_tokenizer"));
}

TEST(KnownPatterns, CutAsPcre2Does) {
  const std::vector<std::vector<std::string_view>> lists = {
      {kByteLevelPattern}, {kStandardPattern}, {kDeepseekNumbers},
      {kDeepseekCjk},      {kDeepseekWords},   {kDeepseekNumbers, kDeepseekCjk, kDeepseekWords}};
  for (size_t l = 0; l < lists.size(); ++l) {
    for (std::string_view pattern : lists[l]) ASSERT_NE(known_cut(pattern), nullptr) << pattern;
    const PreTokenizer fast = of(lists[l]), slow = fast.with_pcre2();
    const Rng rng(l, stream_id("texts"));
    for (uint64_t i = 0, draw = 0; i < 4000; ++i) {
      // Few different parts in a text, so that what needs a sequence of them happens.
      std::vector<std::string> some;
      for (int k = 0; k < 5; ++k) some.push_back(kParts[rng.u64(draw++) % kParts.size()]);
      std::string text;
      for (uint64_t n = rng.u64(draw++) % 24; n > 0; --n) text += some[rng.u64(draw++) % 5];
      ASSERT_EQ(fast.split(text), slow.split(text)) << Json(text).dump(-1, ' ', true);
    }
  }
}

TEST(KnownPatterns, OthersAreLeftToPcre2) {
  EXPECT_EQ(known_cut("\\p{L}+"), nullptr);
  EXPECT_EQ(known_cut(""), nullptr);
  EXPECT_EQ(known_cut(std::string(kDeepseekWords) + "|x"), nullptr);
}

// The code points that a pattern of one character matches.
std::vector<bool> matched(std::string_view pattern) {
  // U+200B, which no pattern here matches, keeps them apart.
  const std::string apart = "\u200b";
  std::string text = apart;
  for (uint32_t code = 0; code < kNumCodePoints; ++code) {
    if (code >= 0xD800 && code < 0xE000) continue;
    if (code < 0x80) {
      text += static_cast<char>(code);
    } else {
      const uint32_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
      text += static_cast<char>((0xF00u >> length & 0xFF) | code >> (6 * (length - 1)));
      for (uint32_t i = length - 1; i > 0; --i)
        text += static_cast<char>(0x80 | (code >> (6 * (i - 1)) & 0x3F));
    }
    text += apart;
  }
  std::vector<bool> found(kNumCodePoints);
  for (std::string_view piece : of({pattern}).with_pcre2().split(text))
    if (piece.find(apart) == piece.npos) found[character_at(piece, 0).code] = true;
  return found;
}

// PCRE2's version of Unicode is older: it knows fewer characters, but none that it knows otherwise.
TEST(KnownPatterns, ClassesAreThoseOfPcre2WhereItKnowsTheCharacter) {
  const char* names[] = {"\\p{L}", "\\p{M}", "\\p{N}", "\\p{P}", "\\p{S}", "\\s"};
  const std::vector<bool> unassigned = matched("\\p{Cn}");
  for (size_t k = 0; k < 6; ++k) {
    const std::vector<bool> theirs = matched(names[k]);
    size_t both = 0;
    for (uint32_t code = 0; code < kNumCodePoints; ++code) {
      const bool ours = (unicode_classes()[code] & (1u << k)) != 0;
      both += ours && theirs[code];
      // NOTE: PCRE2's \s has U+180E, which has been no white space since Unicode 6.3.
      if (ours != theirs[code]) {
        ASSERT_TRUE(ours ? unassigned[code] : k == 5 && code == 0x180E) << names[k] << " " << code;
      }
    }
    EXPECT_GE(both, 25u) << names[k];
  }
}

}  // namespace
}  // namespace hadal::io
