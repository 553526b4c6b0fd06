// Token shards and the documents they are made of: what is written reads back, and what is cut
// short, damaged or foreign is refused with a sentence.
// SPDX-License-Identifier: Apache-2.0
#include "io/token_shard.h"

#include <zstd.h>

#include <filesystem>
#include <fstream>

#include "io/atomic.h"
#include "io/documents.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

using hadal::testing::TempDir;
namespace fs = std::filesystem;

constexpr const char* kAgain = "; make it again with hadal data prepare";

std::vector<TokenDocument> documents() {
  return {{.ids = {0, 5, 6, 1}, .mask = {}, .text_bytes = 7},
          {.ids = {0, 1}, .mask = {}, .text_bytes = 0},
          {.ids = {0, 9, 8, 7, 1}, .mask = {false, false, true, true, false}, .text_bytes = 3}};
}

TEST(TokenShard, WhatIsWrittenReadsBack) {
  const TempDir dir;
  for (int64_t size : {300, 65536, 65537, 129280}) {
    const Vocabulary vocabulary{.hash = 42, .size = size};
    std::vector<TokenDocument> written = documents();
    written[0].ids[1] = static_cast<int32_t>(size) - 1;
    write_token_shard(dir / "s", vocabulary, written);
    const TokenShard shard(dir / "s", vocabulary);
    EXPECT_EQ(fs::file_size(dir / "s"), 80u + 3 * 8 + 11 * (size <= 65536 ? 2u : 4u) + 2);
    ASSERT_EQ(shard.num_documents(), 3);
    EXPECT_EQ(shard.num_tokens(), 11);
    EXPECT_EQ(shard.text_bytes(), 10);
    EXPECT_EQ(shard.num_learned(), 3 + 1 + 2);
    for (int64_t d = 0; d < 3; ++d) {
      const TokenDocument& want = written[static_cast<size_t>(d)];
      ASSERT_EQ(shard.end_of(d) - shard.begin_of(d), static_cast<int64_t>(want.ids.size()));
      for (size_t i = 0; i < want.ids.size(); ++i) {
        const int64_t at = shard.begin_of(d) + static_cast<int64_t>(i);
        EXPECT_EQ(shard.token(at), want.ids[i]);
        EXPECT_EQ(shard.is_learned(at), want.mask.empty() ? i > 0 : want.mask[i]);
      }
    }
    shard.check_payload();
  }
}

TEST(TokenShard, WithoutMasksEveryTokenIsLearned) {
  const TempDir dir;
  const Vocabulary vocabulary{.hash = 1, .size = 10};
  write_token_shard(dir / "s", vocabulary, {{.ids = {0, 3, 1}, .mask = {}, .text_bytes = 2}});
  const TokenShard shard(dir / "s", vocabulary);
  EXPECT_FALSE(shard.has_mask());
  EXPECT_EQ(shard.num_learned(), 2);
  write_token_shard(dir / "none", vocabulary, {});
  EXPECT_EQ(TokenShard(dir / "none", vocabulary).num_documents(), 0);
}

TEST(TokenShard, RefusesWhatItCannotHold) {
  const TempDir dir;
  const Vocabulary vocabulary{.hash = 1, .size = 10};
  EXPECT_ERROR(write_token_shard(dir / "s", vocabulary, {{.ids = {10}, .mask = {}}}),
               "token 10 is outside a vocabulary of 10");
  EXPECT_ERROR(write_token_shard(dir / "s", vocabulary, {{.ids = {}, .mask = {}}}),
               "a document to store has no tokens");
  EXPECT_ERROR(write_token_shard(dir / "s", vocabulary, {{.ids = {1, 2}, .mask = {true}}}),
               "a document of 2 tokens has a mask of 1");
  EXPECT_FALSE(fs::exists(dir / "s"));
}

// Without waiting for the disk.
void put(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

// Cut at every byte, and with every byte of the header changed.
TEST(TokenShard, RefusesDamage) {
  const TempDir dir;
  const Vocabulary vocabulary{.hash = 7, .size = 300};
  write_token_shard(dir / "s", vocabulary, documents());
  const std::string whole = read_file(dir / "s", 1 << 20);
  const std::string path = dir / "t";
  for (size_t size = 0; size < whole.size(); ++size) {
    put(path, whole.substr(0, size));
    EXPECT_ERROR(TokenShard(path, vocabulary),
                 size < 80 ? concat(path, " has ", size,
                                    " bytes, fewer than the header of a token shard", kAgain)
                           : concat(path, " has ", size, " bytes where its header says ",
                                    whole.size(), ": it is cut short or damaged", kAgain));
  }
  put(path, whole + "x");
  EXPECT_THROW(TokenShard(path, vocabulary), Error);
  for (size_t i = 0; i < 80; ++i) {
    std::string damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ 4);
    put(path, damaged);
    EXPECT_THROW(TokenShard(path, vocabulary), Error) << "byte " << i;
  }
  for (size_t i = 80; i < whole.size(); ++i) {
    std::string damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    put(path, damaged);
    EXPECT_THROW(TokenShard(path, vocabulary).check_payload(), Error) << "byte " << i;
  }
}

TEST(TokenShard, RefusesAnotherVocabularyAndOtherFiles) {
  const TempDir dir;
  const std::string path = dir / "s";
  write_token_shard(path, {.hash = 7, .size = 300}, documents());
  EXPECT_ERROR(TokenShard(path, {.hash = 8, .size = 300}),
               path +
                   " was made with another tokenizer (300 tokens, hash 0000000000000007) than this "
                   "run's (300 tokens, hash 0000000000000008)" +
                   kAgain);
  EXPECT_THROW(TokenShard(path, {.hash = 7, .size = 301}), Error);
  write_file_atomic(path, std::string(200, 'x'));
  EXPECT_ERROR(TokenShard(path, {.hash = 7, .size = 300}),
               path + " is no token shard; make one with hadal data prepare");
}

TEST(Dataset, WhatIsWrittenReadsBack) {
  const TempDir dir;
  Dataset d;
  d.vocabulary = {.hash = 0xFEDCBA9876543210u, .size = 12};
  d.bos = 3, d.eos = 4;
  d.train = {"a", "b"};
  d.train_tokens = 5, d.train_targets = 4, d.train_documents = 1, d.train_bytes = 9;
  d.write(dir.path());
  const Dataset again = Dataset::read(dir.path());
  EXPECT_EQ(again.vocabulary.hash, d.vocabulary.hash);
  EXPECT_EQ(again.train, d.train);
  EXPECT_TRUE(again.held_out.empty());
  EXPECT_EQ(again.train_targets, 4);
  EXPECT_EQ(again.eos, 4);
  EXPECT_ERROR(
      Dataset::read(dir / "none"),
      dir / "none" + " holds no dataset.json: make one with hadal data prepare, or let it finish");
}

std::string packed(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

std::vector<std::string> texts(const std::vector<std::string>& paths, DocumentSplit split) {
  DocumentReader reader(paths, split);
  std::vector<std::string> all;
  Document document;
  while (reader.next(document)) all.push_back(document.text);
  EXPECT_EQ(reader.bytes_read(), reader.total_bytes());
  return all;
}

using Texts = std::vector<std::string>;

TEST(Documents, FilesLinesAndParagraphs) {
  const TempDir dir;
  write_file_atomic(dir / "a.txt", "one\ntwo\n\n\nthree\n \nfour");
  write_file_atomic(dir / "b.txt", "five\n");
  const Texts paths = {dir / "a.txt", dir / "b.txt"};
  EXPECT_EQ(texts(paths, DocumentSplit::kFile), (Texts{"one\ntwo\n\n\nthree\n \nfour", "five\n"}));
  EXPECT_EQ(texts(paths, DocumentSplit::kLine), (Texts{"one", "two", "three", "four", "five"}));
  EXPECT_EQ(texts(paths, DocumentSplit::kParagraph),
            (Texts{"one\ntwo\n", "three\n", "four\n", "five\n"}));
}

TEST(Documents, CompressedIsTheSame) {
  const TempDir dir;
  std::string text;
  for (int i = 0; i < 40000; ++i) text += concat("{\"text\": \"line ", i, "\"}\n");
  write_file_atomic(dir / "a.jsonl", text);
  // Two frames, as `zstd` and `cat` make them.
  write_file_atomic(dir / "b.jsonl.zst",
                    packed(text.substr(0, 500000)) + packed(text.substr(500000)));
  const Texts plain = texts({dir / "a.jsonl"}, DocumentSplit::kFile);
  EXPECT_EQ(plain.size(), 40000u);
  EXPECT_TRUE(texts({dir / "b.jsonl.zst"}, DocumentSplit::kFile) == plain);
}

TEST(Documents, DamageIsASentence) {
  const TempDir dir;
  const std::string whole = packed(std::string(100000, 'a') + "b"), path = dir / "a.txt.zst";
  write_file_atomic(path, whole.substr(0, whole.size() - 3));
  EXPECT_ERROR(texts({path}, DocumentSplit::kFile),
               path + " ends inside a zstd frame: it is cut short; get it again");
  write_file_atomic(path, "this is no zstd");
  EXPECT_ERROR(texts({path}, DocumentSplit::kLine),
               path + " is no zstd file or damaged (Unknown frame descriptor); get it again");
  EXPECT_ERROR(texts({dir / "none"}, DocumentSplit::kLine),
               "cannot open " + dir / "none" + ": No such file or directory; check the path");
}

}  // namespace
}  // namespace hadal::io
