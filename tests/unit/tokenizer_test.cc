// Encoding and decoding: the identity on any bytes, and byte-pair merging against a plain loop.
// SPDX-License-Identifier: Apache-2.0
#include "io/tokenizer.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "core/rng.h"
#include "io/atomic.h"
#include "io/bpe_train.h"
#include "io/utf8.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

using Ids = std::vector<int32_t>;

// Words of few letters, so that merges pile up.
std::string sample_text(std::string_view name, uint64_t words) {
  const Rng rng(1, stream_id(name));
  std::string text;
  for (uint64_t i = 0, draw = 0; i < words; ++i) {
    for (uint64_t n = 1 + rng.u64(draw++) % 9; n > 0; --n)
      text += static_cast<char>('a' + rng.u64(draw++) % 4);
    text += rng.u64(draw++) % 10 == 0 ? ".\n" : " ";
  }
  return text;
}

const Tokenizer& trained() {
  static const Tokenizer tokenizer = train_bpe(sample_text("train", 4000), 600);
  return tokenizer;
}

// Byte-pair merging as it is defined: the first rule of the list that applies, at its leftmost
// place, again and again.
Ids merge_plainly(const TokenizerSpec& spec, std::string_view piece) {
  std::map<std::string, int32_t> id_of;
  for (const TokenizerSpec::Token& token : spec.vocab)
    if (token.bytes.size() == 1) id_of[token.bytes] = token.id;
  Ids ids;
  for (char c : piece) ids.push_back(id_of.at(std::string(1, c)));
  for (size_t rank = 0; rank < spec.merges.size();) {
    const TokenizerSpec::Merge& merge = spec.merges[rank];
    const int32_t pair[] = {merge.left, merge.right};
    const auto at = std::search(ids.begin(), ids.end(), pair, pair + 2);
    if (at == ids.end()) {
      ++rank;
      continue;
    }
    *at = merge.result;
    ids.erase(at + 1);
    rank = 0;
  }
  return ids;
}

// One word of `length` letters is one piece.
std::string word(uint64_t seed, uint64_t length, uint64_t letters) {
  const Rng rng(seed, stream_id("word"));
  std::string text;
  for (uint64_t i = 0; i < length; ++i) text += static_cast<char>('a' + rng.u64(i) % letters);
  return text;
}

TEST(Tokenizer, MergesAsThePlainLoopDoesAtEveryLength) {
  for (uint64_t length = 1; length <= 110; length += length > 60 ? 7 : 1)
    for (uint64_t letters : {1, 2, 4}) {
      const std::string piece = word(length, length, letters);
      ASSERT_EQ(trained().encode(piece), merge_plainly(trained().spec(), piece))
          << length << " bytes: " << piece;
    }
}

TEST(Tokenizer, AMillionEqualBytesEndSoon) {
  const std::string text(1000000, 'a');
  const Ids ids = trained().encode(text);
  EXPECT_LE(ids.size(), text.size() / 2);
  EXPECT_EQ(trained().decode(ids), text);
}

TEST(Tokenizer, DecodeOfEncodeIsTheTextOnRandomBytes) {
  const Rng rng(2, stream_id("bytes"));
  for (uint64_t i = 0; i < 500; ++i) {
    std::string text;
    for (uint64_t j = 0; j < i; ++j) text += static_cast<char>(rng.u64(i << 16 | j));
    ASSERT_EQ(trained().decode(trained().encode(text)), text);
  }
}

TEST(Tokenizer, DecodeOfEncodeIsTheTextOnUnicode) {
  const Rng rng(3, stream_id("unicode"));
  for (uint64_t i = 0; i < 300; ++i) {
    std::string text;
    for (uint64_t j = 0; j < i; ++j) {
      const uint64_t draw = rng.u64(i << 16 | j);
      const char* parts[] = {"abc",        "\u00e9", "e\u0301", "\u4f60\u597d",
                             "\U0001f600", "\r\n",   "\u2028",  "\U0010ffff",
                             " ",          "\u0000", "42",      "'ll"};
      text += parts[draw % 12];
    }
    ASSERT_EQ(trained().decode(trained().encode(text)), text);
  }
  EXPECT_EQ(trained().encode(""), Ids{});
  EXPECT_EQ(trained().decode({}), "");
}

// A repeated piece comes from the cache, which must not change its ids.
TEST(Tokenizer, RepeatedPiecesEncodeAlike) {
  const std::string piece = " abcabd";
  const Ids once = trained().encode(piece);
  Ids thrice;
  for (int i = 0; i < 3; ++i) thrice.insert(thrice.end(), once.begin(), once.end());
  EXPECT_EQ(trained().encode(piece + piece + piece), thrice);
}

// The 256 bytes, then tokens for "ab" and "abc", of which only the first has a merge.
TokenizerSpec small_spec() {
  TokenizerSpec spec;
  for (int b = 0; b < 256; ++b) {
    const std::string byte(1, static_cast<char>(b));
    spec.vocab.push_back({b, spell_bytes(byte), byte});
  }
  spec.vocab.push_back({256, "ab", "ab"});
  spec.vocab.push_back({257, "abc", "abc"});
  spec.merges.push_back({'a', 'b', 256});
  return spec;
}

TEST(Tokenizer, IgnoreMergesTakesWholePieces) {
  TokenizerSpec spec = small_spec();
  EXPECT_EQ(Tokenizer(spec).encode("abc"), (Ids{256, 'c'}));
  spec.ignore_merges = true;
  EXPECT_EQ(Tokenizer(spec).encode("abc"), Ids{257});
  EXPECT_EQ(Tokenizer(spec).encode("abcd"), (Ids{256, 'c', 'd'}));  // not a token as a whole
  EXPECT_EQ(Tokenizer(spec).encode(" abc"), (Ids{' ', 256, 'c'}));
}

// Of a pair that stands twice in the list, the last place counts.
TEST(Tokenizer, TheLastOfTwoEqualMergesCounts) {
  TokenizerSpec spec = small_spec();
  spec.vocab.push_back({258, "bc", "bc"});
  spec.merges = {{'a', 'b', 256}, {'b', 'c', 258}, {'a', 'b', 256}};
  EXPECT_EQ(Tokenizer(spec).encode("abc"), (Ids{'a', 258}));
}

TEST(Tokenizer, AddedTokensAreCutOutFirstLongestFirst) {
  TokenizerSpec spec = small_spec();
  spec.added = {{.id = 300, .content = "<x>"},
                {.id = 302, .content = "<x><y>"},
                {.id = 256, .content = "ab"}};
  const Tokenizer tokenizer(spec);
  EXPECT_EQ(tokenizer.encode("a<x><y>b<x>"), (Ids{'a', 302, 'b', 300}));
  EXPECT_EQ(tokenizer.encode("abab"), (Ids{256, 256}));
  EXPECT_EQ(tokenizer.decode({300, 'a', 302}), "<x>a<x><y>");
  EXPECT_EQ(tokenizer.vocab_size(), 303);
  EXPECT_EQ(tokenizer.added_id("<x><y>"), 302);
  EXPECT_EQ(tokenizer.added_id("<y>"), std::nullopt);
  EXPECT_ERROR(tokenizer.decode({301}), "there is no token 301; the vocabulary leaves this id out");
  EXPECT_ERROR(tokenizer.decode({303}), "there is no token 303; the vocabulary has ids 0 to 302");
  EXPECT_ERROR(tokenizer.decode({-1}), "there is no token -1; the vocabulary has ids 0 to 302");
}

TEST(Tokenizer, EachByteNeedsAToken) {
  TokenizerSpec spec = small_spec();
  spec.vocab.erase(spec.vocab.begin() + 'z');
  EXPECT_ERROR(Tokenizer{spec},
               "the vocabulary has no token for the byte 122, spelled \"z\"; add it");
  spec = small_spec();
  spec.vocab.erase(spec.vocab.begin());
  EXPECT_ERROR(Tokenizer{spec},
               "the vocabulary has no token for the byte 0, spelled \"\u0100\"; add it");
}

TEST(Tokenizer, HashSeesWhatDecidesAboutIds) {
  const uint64_t hash = Tokenizer(small_spec()).hash();
  EXPECT_EQ(Tokenizer(small_spec()).hash(), hash);
  std::vector<TokenizerSpec> others(6, small_spec());
  others[0].ignore_merges = true;
  others[1].merges.clear();
  others[2].vocab[257] = {257, "abd", "abd"};
  others[3].added = {{.id = 256, .content = "ab"}};
  others[4].pre_tokenizer = PreTokenizer::from_json(
      JsonObject::parse(R"({"type": "ByteLevel", "add_prefix_space": false})", "x"));
  others[5].merges.push_back({256, 'c', 257});
  for (const TokenizerSpec& other : others) EXPECT_NE(Tokenizer(other).hash(), hash);
}

}  // namespace
}  // namespace hadal::io
