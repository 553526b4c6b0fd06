// Token sources and feeds: packing, coverage, orders, mixtures, and going on exactly.
// SPDX-License-Identifier: Apache-2.0
#include "train/token_source.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "io/bpe_train.h"
#include "tests/unit/train.h"
#include "train/feed.h"

namespace hadal::train {
namespace {

using hadal::testing::TempDir;

constexpr io::Vocabulary kVocabulary{.hash = 5, .size = 60000};
constexpr int32_t kBos = 0, kEos = 1;

// Documents BOS, n, n+1, ..., EOS whose inner tokens tell their place; `sizes` with both ends.
std::vector<io::TokenDocument> numbered(const std::vector<int64_t>& sizes, int32_t first = 1000) {
  std::vector<io::TokenDocument> documents;
  for (int64_t size : sizes) {
    io::TokenDocument document{.ids = {kBos}, .mask = {}, .text_bytes = size};
    for (int64_t i = 0; i < size - 2; ++i) document.ids.push_back(first++);
    document.ids.push_back(kEos);
    documents.push_back(std::move(document));
  }
  return documents;
}

void write_dataset(const std::string& dir, const std::vector<io::TokenDocument>& train,
                   const std::vector<io::TokenDocument>& held_out,
                   const io::Vocabulary& vocabulary) {
  std::filesystem::create_directories(dir);
  io::Dataset d;
  d.vocabulary = vocabulary;
  d.bos = kBos, d.eos = kEos;
  // Two shards, so that documents of several are put together.
  const auto half = static_cast<std::ptrdiff_t>(train.size() / 2);
  io::write_token_shard(dir + "/a", vocabulary, {train.begin(), train.begin() + half});
  io::write_token_shard(dir + "/b", vocabulary, {train.begin() + half, train.end()});
  io::write_token_shard(dir + "/h", vocabulary, held_out);
  d.train = {"a", "b"}, d.held_out = {"h"};
  for (const auto& document : train) {
    ++d.train_documents;
    d.train_tokens += static_cast<int64_t>(document.ids.size());
    d.train_targets += document.num_learned();
    d.train_bytes += document.text_bytes;
  }
  for (const auto& document : held_out) {
    ++d.held_out_documents;
    d.held_out_tokens += static_cast<int64_t>(document.ids.size());
    d.held_out_targets += document.num_learned();
    d.held_out_bytes += document.text_bytes;
  }
  d.write(dir);
}

const std::vector<int64_t> kSizes = {5, 17, 2, 40, 9, 9, 3, 26, 11};  // 122 tokens

class TokenSourceTest : public ::testing::Test {
 protected:
  TokenSourceTest() {
    write_dataset(dir_.path(), numbered(kSizes), numbered({8, 30, 4}), kVocabulary);
  }
  TokenSource source(Packing packing, bool cross, int64_t length = 16, uint64_t seed = 1) const {
    return TokenSource(
        {.shards = dir_.path(), .packing = packing, .cross_document_attention = cross}, kVocabulary,
        length, seed);
  }
  const TempDir dir_;
};

bool same(const Sequence& a, const Sequence& b) {
  return a.ids == b.ids && a.targets == b.targets && a.documents == b.documents;
}

// Targets follow their tokens; beginnings of documents are no targets; documents begin at BOS.
void check(const Sequence& s, bool cross) {
  ASSERT_EQ(s.ids.size(), s.targets.size());
  for (size_t i = 0; i < s.ids.size(); ++i) {
    if (s.ids[i] == kEos) {
      EXPECT_EQ(s.targets[i], -1);
    } else if (s.targets[i] != kEos && i + 1 < s.ids.size()) {
      EXPECT_EQ(s.targets[i], s.ids[i + 1]);
    }
    EXPECT_NE(s.targets[i], kBos);
    const bool begins = i == 0 || s.ids[i] == kBos;
    EXPECT_EQ(std::count(s.documents.begin(), s.documents.end(), static_cast<int64_t>(i)),
              begins && !cross ? 1 : 0);
  }
}

TEST_F(TokenSourceTest, StreamsCoverEachTokenOnceAnEpoch) {
  for (bool cross : {true, false}) {
    TokenSource s = source(Packing::kStream, cross);
    Cursor cursor;
    for (int64_t epoch = 0; epoch < 4; ++epoch) {
      std::map<int32_t, int> times;
      for (int64_t row = 0; row < 121 / 16; ++row) {
        const Sequence sequence = s.next(cursor);
        EXPECT_EQ(cursor.epoch, epoch);
        ASSERT_EQ(sequence.ids.size(), 16u);
        check(sequence, cross);
        for (int32_t target : sequence.targets)
          if (target > kEos) ++times[target];
      }
      EXPECT_GE(times.size(), 122u - 16u - 2 * kSizes.size());
      for (const auto& [token, count] : times) EXPECT_EQ(count, 1) << token;
    }
  }
}

TEST_F(TokenSourceTest, WholeDocumentsAreNeverCutInside) {
  TokenSource s = source(Packing::kWhole, false);
  EXPECT_EQ(s.num_cut(), 2);  // of 40 and 26 tokens
  Cursor cursor;
  std::set<std::vector<int32_t>> orders;
  for (int64_t epoch = 0; epoch < 5; ++epoch) {
    std::multiset<int64_t> sizes;
    std::vector<int32_t> order;
    do {
      const Sequence sequence = s.next(cursor);
      ASSERT_LE(sequence.ids.size(), 16u);
      check(sequence, false);
      for (int64_t d = 0; d < sequence.num_documents(); ++d) {
        EXPECT_EQ(sequence.ids[static_cast<size_t>(sequence.begin_of(d))], kBos);
        sizes.insert(sequence.end_of(d) - sequence.begin_of(d));
        order.push_back(sequence.targets[static_cast<size_t>(sequence.begin_of(d))]);
      }
    } while (sizes.size() < kSizes.size());
    EXPECT_EQ(sizes, (std::multiset<int64_t>{4, 16, 1, 16, 8, 8, 2, 16, 10}));
    orders.insert(order);
  }
  EXPECT_EQ(orders.size(), 5u);
}

TEST_F(TokenSourceTest, AFunctionOfSeedAndCursor) {
  for (Packing packing : {Packing::kStream, Packing::kWhole}) {
    TokenSource s = source(packing, false), again = source(packing, false),
                other = source(packing, false, 16, 2);
    Cursor cursor, other_cursor;
    bool all_same = true;
    for (int i = 0; i < 40; ++i) {
      Cursor from = cursor;
      const Sequence want = s.next(cursor);
      EXPECT_TRUE(same(again.next(from), want)) << i;
      EXPECT_EQ(from.row, cursor.row);
      all_same = all_same && same(other.next(other_cursor), want);
    }
    EXPECT_FALSE(all_same);
  }
}

TEST_F(TokenSourceTest, HeldOutTokensCountOnce) {
  for (int64_t stride : {4, 8, 16}) {
    std::map<int32_t, int> times;
    for (const Sequence& s : source(Packing::kStream, true).held_out(stride)) {
      ASSERT_LE(s.ids.size(), 16u);
      for (int32_t target : s.targets)
        if (target > kEos) ++times[target];
    }
    EXPECT_EQ(times.size(), 42u - 6u);
    for (const auto& [token, count] : times) EXPECT_EQ(count, 1) << token << " at " << stride;
  }
  EXPECT_EQ(source(Packing::kWhole, false).held_out(16).size(), 3u);
}

TEST_F(TokenSourceTest, MasksHideTargets) {
  io::TokenDocument chat{.ids = {0, 7, 8, 9, 1}, .mask = {false, false, false, true, true}};
  write_dataset(dir_ / "chat", {chat, chat}, {}, kVocabulary);
  TokenSource s(
      {.shards = dir_ / "chat", .packing = Packing::kWhole, .cross_document_attention = false},
      kVocabulary, 8, 1);
  Cursor cursor;
  const Sequence sequence = s.next(cursor);
  EXPECT_EQ(sequence.ids, (std::vector<int32_t>{0, 7, 8, 9, 0, 7, 8, 9}));
  EXPECT_EQ(sequence.targets, (std::vector<int32_t>{-1, -1, 9, 1, -1, -1, 9, 1}));
  EXPECT_EQ(sequence.documents, (std::vector<int64_t>{0, 4}));
}

TEST_F(TokenSourceTest, TooLittleDataIsASentence) {
  EXPECT_ERROR(source(Packing::kStream, true, 122),
               dir_.path() +
                   " has 122 training tokens, fewer than one sequence of 122 and its last target; "
                   "prepare more text or lower train.sequence_length");
  EXPECT_EQ(source(Packing::kStream, true, 121).bytes_per_target(), 122.0 / (122 - 9));
}

// A run config with two sources and a tokenizer.
class FeedTest : public ::testing::Test {
 protected:
  FeedTest() {
    const io::Tokenizer tokenizer = io::train_bpe("abc abc abc", 260);
    tokenizer.save(dir_ / "tokenizer.json");
    const io::Vocabulary vocabulary{.hash = tokenizer.hash(), .size = tokenizer.vocab_size()};
    write_dataset(dir_ / "x", numbered(kSizes, 2), numbered({8, 30}, 2), vocabulary);
    write_dataset(dir_ / "y", numbered(kSizes, 130), numbered({20, 20}, 130), vocabulary);
    run_ = test::tiny_run(dir_ / "out");
    run_.model.vocab_size = 260;
    run_.data.tokenizer = dir_.path();
    run_.data.sources = {{.shards = dir_ / "x", .weight = 3.0},
                         {.shards = dir_ / "y", .weight = 1.0}};
  }
  static bool is_of_y(const Sequence& s) {
    return *std::max_element(s.ids.begin(), s.ids.end()) >= 130;
  }
  const TempDir dir_;
  RunConfig run_;
};

TEST_F(FeedTest, SourcesComeByTheirWeights) {
  Feed feed(run_);
  int64_t of_y = 0;
  for (int64_t n = 1; n <= 200; ++n) {
    of_y += is_of_y(feed.next(1)[0]) ? 1 : 0;
    EXPECT_LT(std::abs(static_cast<double>(of_y) - 0.25 * static_cast<double>(n)), 1.0) << n;
  }
}

TEST_F(FeedTest, GoesOnFromItsState) {
  Feed straight(run_), first(run_), second(run_);
  for (const Sequence& s : first.next(37)) EXPECT_TRUE(same(s, straight.next(1)[0]));
  second.restore(io::JsonObject::parse(first.state().dump(), "state"));
  for (const Sequence& s : second.next(60)) EXPECT_TRUE(same(s, straight.next(1)[0]));
  EXPECT_EQ(second.state(), straight.state());
}

TEST_F(FeedTest, HeldOutSourcesTakeTurns) {
  const std::vector<Sequence> rows = Feed(run_).held_out(9);
  ASSERT_GE(rows.size(), 8u);
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(is_of_y(rows[i]), i % 2 == 1);
}

TEST_F(FeedTest, MistakesAreSentences) {
  RunConfig run = run_;
  run.model.bos_token_id = 2;
  EXPECT_ERROR(Feed{run},
               dir_ / "x" +
                   " begins documents with token 0, and model.bos_token_id is 2; prepare "
                   "it again with --bos, or change the model");
  run = run_;
  run.model.eos_token_ids = {7, 8};
  EXPECT_ERROR(Feed{run},
               dir_ / "x" +
                   " ends documents with token 1, which model.eos_token_id does not have; "
                   "prepare it again with --eos, or change the model");
  Feed feed(run_);
  run = run_;
  run.data.sources.pop_back();
  EXPECT_ERROR(
      Feed{run}.restore(io::JsonObject::parse(feed.state().dump(), "state")),
      "state is of 2 data sources, and this run has 1; resume with the sources that wrote it");
  run = run_;
  write_dataset(dir_ / "y", numbered({20, 20}, 130), {},
                {.hash = io::Tokenizer::load(dir_ / "tokenizer.json").hash(), .size = 260});
  EXPECT_ERROR(Feed{run}.restore(io::JsonObject::parse(feed.state().dump(), "state")),
               "state: sources[1] is of 9 documents with 122 tokens, and " + dir_ / "y" +
                   " has 2 with 40; resume with the sources that wrote it");
  run.data.sources = {};
  EXPECT_ERROR(Feed{run}, "data.text is empty; name a text file, or list data.sources");
}

}  // namespace
}  // namespace hadal::train
