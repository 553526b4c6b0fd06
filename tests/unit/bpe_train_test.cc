// Training of byte-level BPE against counting everything again at every step.
// SPDX-License-Identifier: Apache-2.0
#include "io/bpe_train.h"

#include <map>

#include "core/rng.h"
#include "io/utf8.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

std::string random_text(uint64_t seed, uint64_t letters, uint64_t size) {
  const Rng rng(seed, stream_id("bpe"));
  std::string text;
  for (uint64_t i = 0; i < size; ++i) {
    const uint64_t draw = rng.u64(i) % (letters + 1);
    text += draw == letters ? ' ' : static_cast<char>('a' + draw);
  }
  return text;
}

// Merges by their bytes: count all pairs, take the most frequent (of several the smallest ids),
// replace it everywhere.
std::vector<std::pair<std::string, std::string>> train_plainly(const std::string& text,
                                                               size_t num_merges) {
  std::vector<std::vector<int32_t>> pieces;
  for (std::string_view piece : PreTokenizer::standard().split(text)) {
    pieces.emplace_back();
    for (char c : piece) pieces.back().push_back(2 + static_cast<uint8_t>(c));
  }
  std::vector<std::string> bytes = {"", ""};
  for (int b = 0; b < 256; ++b) bytes.emplace_back(1, static_cast<char>(b));
  std::vector<std::pair<std::string, std::string>> merges;
  while (merges.size() < num_merges) {
    std::map<std::pair<int32_t, int32_t>, int64_t> counts;
    for (const auto& piece : pieces)
      for (size_t i = 0; i + 1 < piece.size(); ++i) ++counts[{piece[i], piece[i + 1]}];
    std::pair<int32_t, int32_t> best;
    int64_t most = 1;
    for (const auto& [pair, count] : counts)  // in the order of ids
      if (count > most) best = pair, most = count;
    if (most < 2) break;
    const auto id = static_cast<int32_t>(bytes.size());
    merges.emplace_back(bytes[static_cast<size_t>(best.first)],
                        bytes[static_cast<size_t>(best.second)]);
    bytes.push_back(merges.back().first + merges.back().second);
    for (auto& piece : pieces)
      for (size_t i = 0; i + 1 < piece.size(); ++i)
        if (piece[i] == best.first && piece[i + 1] == best.second) {
          piece[i] = id;
          piece.erase(piece.begin() + static_cast<int64_t>(i) + 1);
        }
  }
  return merges;
}

TEST(BpeTrain, EqualsCountingAgainAtEveryStep) {
  for (uint64_t letters : {1, 2, 3, 8}) {
    const std::string text = random_text(letters, letters, 2000);
    // One letter gives few merges: words of up to some length.
    const auto want = train_plainly(text, letters == 1 ? 3 : 60);
    const Tokenizer tokenizer = train_bpe(text, 258 + static_cast<int64_t>(want.size()));
    const TokenizerSpec& spec = tokenizer.spec();
    ASSERT_EQ(spec.merges.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      const TokenizerSpec::Merge& m = spec.merges[i];
      ASSERT_EQ(spec.vocab[static_cast<size_t>(m.left)].bytes, want[i].first) << "merge " << i;
      ASSERT_EQ(spec.vocab[static_cast<size_t>(m.right)].bytes, want[i].second) << "merge " << i;
    }
  }
}

TEST(BpeTrain, IdsAreSpecialTokensBytesMerges) {
  const Tokenizer tokenizer = train_bpe("ababab ab", 260);
  const TokenizerSpec& spec = tokenizer.spec();
  EXPECT_EQ(tokenizer.added_id(kBeginOfSentence), 0);
  EXPECT_EQ(tokenizer.added_id(kEndOfSentence), 1);
  EXPECT_EQ(spec.vocab[2].bytes, std::string(1, '\0'));
  EXPECT_EQ(spec.vocab[2 + 'a'].bytes, "a");
  EXPECT_EQ(spec.vocab[258].bytes, "ab");
  EXPECT_EQ(spec.vocab[259].bytes, "abab");
  EXPECT_EQ(tokenizer.vocab_size(), 260);
  EXPECT_EQ(train_bpe("x", 256, {}).encode("x"), std::vector<int32_t>{'x'});
}

TEST(BpeTrain, TheSameTextGivesTheSameTokenizer) {
  const std::string text = random_text(9, 6, 20000);
  EXPECT_EQ(train_bpe(text, 400).hash(), train_bpe(text, 400).hash());
  // More merges only add to the list.
  const Tokenizer small = train_bpe(text, 300), large = train_bpe(text, 400);
  for (size_t i = 0; i < small.spec().merges.size(); ++i)
    ASSERT_EQ(small.spec().merges[i].left, large.spec().merges[i].left);
}

// Tokens never cross a special token or the border of two pieces.
TEST(BpeTrain, SpecialTokensCutTheText) {
  const Tokenizer tokenizer = train_bpe("ab<x>ab<x>ab<x>ab", 258, {"<x>"});
  EXPECT_EQ(tokenizer.spec().vocab[257].bytes, "ab");
  EXPECT_EQ(tokenizer.encode("ab<x>"), (std::vector<int32_t>{257, 0}));
  EXPECT_ERROR(train_bpe("ab<x>ab<x>ab<x>ab", 259, {"<x>"}),
               "the text of 17 bytes gives a vocabulary of 258 tokens at most, not 259; ask for "
               "fewer or give more text");
}

TEST(BpeTrain, BadInputIsASentence) {
  EXPECT_ERROR(train_bpe("", 300), "the text is empty; give one to train on");
  EXPECT_ERROR(train_bpe("abc", 257),
               "the vocabulary size is 257; 2 special tokens and 256 bytes need 258 or more");
  EXPECT_ERROR(train_bpe("abc", (int64_t{1} << 24) + 1),
               "the vocabulary size is 16777217; allowed: up to 16777216");
  EXPECT_ERROR(train_bpe("abc", 300),
               "the text of 3 bytes gives a vocabulary of 258 tokens at most, not 300; ask for "
               "fewer or give more text");
  EXPECT_ERROR(train_bpe("abc", 300, {"<x>", "<x>"}),
               "the special token \"<x>\" is empty or stands twice; give different ones");
  EXPECT_ERROR(train_bpe("abc", 300, {""}),
               "the special token \"\" is empty or stands twice; give different ones");
}

// A name can stand for one id only: "a" is the byte's, and a saved file would lose one of them.
TEST(BpeTrain, ASpecialTokenMustNotBeTheNameOfAnother) {
  EXPECT_ERROR(train_bpe("abc", 300, {"a"}),
               "the special token \"a\" is also the name of ordinary text in the vocabulary; "
               "choose another");
  EXPECT_ERROR(train_bpe(" the the the", 300, {"\u0120t"}),
               "the special token \"\u0120t\" is also the name of ordinary text in the "
               "vocabulary; choose another");
}

}  // namespace
}  // namespace hadal::io
