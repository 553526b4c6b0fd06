// Pre-tokenizers: what the pieces are, that they are the text, and what is refused.
// SPDX-License-Identifier: Apache-2.0
#include "io/pretokenizer.h"

#include <nlohmann/json.hpp>

#include "core/rng.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

using Pieces = std::vector<std::string>;

Pieces split(const PreTokenizer& by, std::string_view text) {
  Pieces pieces;
  for (std::string_view piece : by.split(text)) pieces.emplace_back(piece);
  return pieces;
}
Pieces split(std::string_view text) { return split(PreTokenizer::standard(), text); }

PreTokenizer parse(const std::string& text) {
  return PreTokenizer::from_json(JsonObject::parse(text, "t.json: pre_tokenizer"));
}

const std::string kByteLevel =
    R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false})";
std::string sequence(const std::string& steps) {
  return R"({"type": "Sequence", "pretokenizers": [)" + steps + "]}";
}
std::string regex_step(const std::string& pattern) {
  return R"({"type": "Split", "pattern": {"Regex": ")" + pattern +
         R"("}, "behavior": "Isolated", "invert": false}, )";
}

TEST(PreTokenizer, StandardPieces) {
  EXPECT_EQ(split(""), Pieces{});
  EXPECT_EQ(split("And God said"), (Pieces{"And", " God", " said"}));
  EXPECT_EQ(split("it's 12345 don't"), (Pieces{"it", "'s", " ", "123", "45", " don", "'t"}));
  EXPECT_EQ(split("x  =\ty;\n\nz"), (Pieces{"x", " ", " =", "\t", "y", ";\n\n", "z"}));
  EXPECT_EQ(split("na\u00efve \u4f60\u597d"), (Pieces{"na\u00efve", " \u4f60\u597d"}));
  EXPECT_EQ(split("end   "), (Pieces{"end", "   "}));
}

// A byte that is no character stands alone; what is around it is split as usual.
TEST(PreTokenizer, InvalidBytesStandAlone) {
  EXPECT_EQ(split("ab\xff\xfe cd"), (Pieces{"ab", "\xff", "\xfe", " cd"}));
  EXPECT_EQ(split("\xe4\xbd"), (Pieces{"\xe4", "\xbd"}));
}

TEST(PreTokenizer, PiecesAreTheText) {
  const Rng rng(1, stream_id("pieces"));
  const PreTokenizer by_default = parse(
      R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})");
  for (uint64_t i = 0; i < 400; ++i) {
    std::string text;
    for (uint64_t j = 0; j < i % 60; ++j) {
      const uint64_t draw = rng.u64(1000 * i + j);
      const char* parts[] = {"a", "B", " ",      "\n",     "1",         "'",
                             "s", "!", "\u00e9", "\u4f60", "\U0001f600"};
      text += i % 2 == 0 ? std::string(1, static_cast<char>(draw)) : parts[draw % 11];
    }
    for (const PreTokenizer& by : {PreTokenizer::standard(), by_default}) {
      std::string joined;
      for (std::string_view piece : by.split(text)) {
        ASSERT_FALSE(piece.empty());
        ASSERT_EQ(piece.data(), text.data() + joined.size());  // points into the text
        joined += piece;
      }
      ASSERT_EQ(joined, text);
    }
  }
}

TEST(PreTokenizer, StepsCutThePiecesOfTheStepBefore) {
  const PreTokenizer by = parse(sequence(regex_step("[a-z]+") + R"({"type": "Digits",
      "individual_digits": true}, )" + kByteLevel));
  EXPECT_EQ(split(by, "ab12.cd"), (Pieces{"ab", "1", "2", ".", "cd"}));
  EXPECT_EQ(split(parse(sequence(R"({"type": "Digits"}, )" + kByteLevel)), "a12b"),
            (Pieces{"a", "12", "b"}));
  const PreTokenizer literal = parse(sequence(
      R"({"type": "Split", "pattern": {"String": "."}, "behavior": "Isolated"}, )" + kByteLevel));
  EXPECT_EQ(split(literal, "a.bc"), (Pieces{"a", ".", "bc"}));
  EXPECT_EQ(split(parse(kByteLevel), "a b"), Pieces{"a b"});
}

// Matches of nothing, and line anchors, neither lose text nor loop.
TEST(PreTokenizer, EmptyMatches) {
  EXPECT_EQ(split(parse(sequence(regex_step("x*") + kByteLevel)), "axxb\u00e9"),
            (Pieces{"a", "xx", "b\u00e9"}));
  EXPECT_EQ(split(parse(sequence(regex_step("^b") + kByteLevel)), "ab\nbb"),
            (Pieces{"ab\n", "b", "b"}));
}

TEST(PreTokenizer, JsonComesBack) {
  const std::string text = sequence(regex_step("[a-z]+") + kByteLevel);
  EXPECT_EQ(parse(text).to_json(), parse_json(text, "x"));
}

TEST(PreTokenizer, NamesWhatIsNotSupported) {
  const std::string at = "t.json: pre_tokenizer";
  EXPECT_ERROR(parse(R"({"type": "Metaspace"})"),
               at + ": type is Metaspace; only Split, Digits and ByteLevel are supported");
  EXPECT_ERROR(parse("{}"), at + ": type is missing; add it");
  EXPECT_ERROR(parse(sequence("")),
               at + ": no ByteLevel step ends it; only byte-level BPE is supported");
  EXPECT_ERROR(parse(R"({"type": "Digits"})"),
               at + ": no ByteLevel step ends it; only byte-level BPE is supported");
  EXPECT_ERROR(parse(sequence(kByteLevel + ", " + kByteLevel)),
               at + ": pretokenizers[0]: ByteLevel stands before other steps; only as the last one "
                    "is it supported");
  EXPECT_ERROR(parse(R"({"type": "ByteLevel", "add_prefix_space": true})"),
               at + ": add_prefix_space is true; only false is supported");
  EXPECT_ERROR(parse(R"({"type": "ByteLevel", "use_regx": true})"),
               at + ": unknown key \"use_regx\"; did you mean \"use_regex\"?");
  EXPECT_ERROR(parse(sequence(R"({"type": "Split", "pattern": {"Regex": "a"},
                                  "behavior": "Removed"}, )" +
                              kByteLevel)),
               at + ": pretokenizers[0]: behavior is Removed; only Isolated is supported");
  EXPECT_ERROR(parse(sequence(R"({"type": "Split", "pattern": {"Regex": "a"},
                                  "behavior": "Isolated", "invert": true}, )" +
                              kByteLevel)),
               at + ": pretokenizers[0]: invert is true; only false is supported");
  EXPECT_ERROR(parse(sequence(regex_step("") + kByteLevel)),
               at + ": pretokenizers[0]: pattern: the pattern is empty; give a regular expression");
  EXPECT_ERROR(parse(sequence(regex_step("(a") + kByteLevel)),
               at + ": pretokenizers[0]: pattern: the regular expression \"(a\" is invalid at byte "
                    "2: missing closing parenthesis");
  EXPECT_ERROR(parse(sequence(R"({"type": "Split", "pattern": "a", "behavior": "Isolated"}, )" +
                              kByteLevel)),
               at + ": pretokenizers[0]: pattern is \"a\"; an object { } is needed");
}

}  // namespace
}  // namespace hadal::io
