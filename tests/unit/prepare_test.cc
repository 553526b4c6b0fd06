// hadal data prepare: proportions of what is drawn, masks of chats, and that threads, shards and
// interruptions change nothing.
// SPDX-License-Identifier: Apache-2.0
#include "train/prepare.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "io/atomic.h"
#include "io/bpe_train.h"
#include "io/json.h"
#include "io/utf8.h"
#include "tests/unit/base_model.h"
#include "tests/unit/expect_error.h"
#include "tests/unit/train.h"

namespace hadal::train {
namespace {

using hadal::testing::TempDir;
namespace fs = std::filesystem;

const std::string kFim[] = {"<\uFF5Cfim\u2581begin\uFF5C>", "<\uFF5Cfim\u2581hole\uFF5C>",
                            "<\uFF5Cfim\u2581end\uFF5C>"};

class PrepareTest : public ::testing::Test {
 protected:
  PrepareTest() {
    std::string text;
    for (int i = 0; i < 400; ++i)
      text += concat("Line ", i, " says: h\u00e9llo w\u00f6rld, again.\nAnd more.\n\n");
    io::write_file_atomic(dir_ / "text.txt", text);
    std::vector<std::string> special(std::begin(hadal::testing::kChatTokens),
                                     std::end(hadal::testing::kChatTokens));
    special.insert(special.end(), std::begin(kFim), std::end(kFim));
    fs::create_directory(dir_ / "tok");
    io::train_bpe(text, 320, special).save(dir_ / "tok/tokenizer.json");
  }
  PrepareConfig config(const std::string& name) const {
    return {.inputs = {dir_ / "text.txt"},
            .tokenizer = dir_ / "tok",
            .output = dir_ / name,
            .split = io::DocumentSplit::kParagraph,
            .part_bytes = 4000};
  }
  io::Dataset make(const PrepareConfig& c, int threads = 1) const {
    const test::Machine machine(threads);
    Context ctx = machine.ctx;
    return prepare(ctx, c, [](const PrepareProgress&) {});
  }
  io::Tokenizer tokenizer() const { return io::Tokenizer::load(dir_ / "tok/tokenizer.json"); }
  // All documents of the training (or held-out) shards.
  static std::vector<std::vector<int32_t>> documents(const io::Dataset& d, const std::string& dir,
                                                     const std::vector<std::string>& names) {
    std::vector<std::vector<int32_t>> all;
    for (const std::string& name : names) {
      const io::TokenShard shard(dir + "/" + name, d.vocabulary);
      for (int64_t n = 0; n < shard.num_documents(); ++n) {
        all.emplace_back();
        for (int64_t i = shard.begin_of(n); i < shard.end_of(n); ++i)
          all.back().push_back(shard.token(i));
      }
    }
    return all;
  }
  static std::vector<std::string> files(const std::string& dir) {
    std::vector<std::string> all;
    for (const auto& entry : fs::directory_iterator(dir))
      all.push_back(entry.path().filename().string() + ":" + io::read_file(entry.path(), 1 << 24));
    std::sort(all.begin(), all.end());
    return all;
  }
  const TempDir dir_;
};

TEST_F(PrepareTest, DocumentsDecodeToTheText) {
  const PrepareConfig c = config("out");
  const io::Dataset d = make(c);
  EXPECT_GT(d.train.size(), 4u);
  const auto all = documents(d, c.output, d.train);
  ASSERT_EQ(all.size(), 400u);
  EXPECT_EQ(d.train_documents, 400);
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].front(), 0);
    EXPECT_EQ(all[i].back(), 1);
    EXPECT_EQ(tokenizer().decode({all[i].begin() + 1, all[i].end() - 1}),
              concat("Line ", i, " says: h\u00e9llo w\u00f6rld, again.\nAnd more.\n"));
  }
}

TEST_F(PrepareTest, ThreadsAndInterruptionsChangeNothing) {
  PrepareConfig a = config("a"), b = config("b");
  a.held_out = b.held_out = 0.2;
  a.fim_rate = b.fim_rate = 0.5;
  a.split_rate = b.split_rate = 0.3;
  make(a, 1);
  make(b, 3);
  EXPECT_EQ(files(a.output), files(b.output));
  // As a process that was killed leaves it: some shards, a temporary file, no list.
  fs::remove(b.output + "/dataset.json");
  fs::remove(b.output + "/train-000002.tokens");
  fs::remove(b.output + "/held_out-000003.tokens");
  fs::remove(b.output + "/train-000003.tokens");
  EXPECT_ERROR(
      io::Dataset::read(b.output),
      b.output + " holds no dataset.json: make one with hadal data prepare, or let it finish");
  const auto kept = fs::last_write_time(b.output + "/train-000001.tokens");
  make(b, 2);
  EXPECT_EQ(files(a.output), files(b.output));
  EXPECT_EQ(fs::last_write_time(b.output + "/train-000001.tokens"), kept);
}

TEST_F(PrepareTest, GoesOnOnlyWithTheSameConfig) {
  PrepareConfig c = config("out");
  make(c);
  c.fim_rate = 0.5;
  EXPECT_ERROR(make(c), c.output +
                            " was begun with another fim_rate; use the same options to go on, or "
                            "choose another --output");
  c = config("out");
  c.inputs.push_back(dir_ / "text.txt");
  EXPECT_ERROR(make(c), c.output +
                            " was begun with another inputs; use the same options to go on, or "
                            "choose another --output");
  c = config("tok");
  EXPECT_ERROR(make(c), c.output +
                            " is not empty and no data set was begun there; choose another "
                            "--output");
}

// PSM: the pieces put together again are the document, cut at characters; the rate is met.
TEST_F(PrepareTest, FillInTheMiddle) {
  PrepareConfig c = config("out");
  c.fim_rate = 0.25;
  const io::Dataset d = make(c);
  const io::Tokenizer t = tokenizer();
  const int32_t begin = *t.added_id(kFim[0]), hole = *t.added_id(kFim[1]),
                end = *t.added_id(kFim[2]);
  int64_t count = 0, number = 0;
  std::vector<size_t> cuts;
  for (const std::vector<int32_t>& ids : documents(d, c.output, d.train)) {
    const std::string want =
        concat("Line ", number++, " says: h\u00e9llo w\u00f6rld, again.\nAnd more.\n");
    if (ids[1] != begin) continue;
    ++count;
    const auto at_hole = std::find(ids.begin(), ids.end(), hole),
               at_end = std::find(ids.begin(), ids.end(), end);
    ASSERT_LT(at_hole, at_end);
    const std::string prefix = t.decode({ids.begin() + 2, at_hole}),
                      suffix = t.decode({at_hole + 1, at_end}),
                      middle = t.decode({at_end + 1, ids.end() - 1});
    EXPECT_EQ(prefix + middle + suffix, want);
    EXPECT_EQ(io::utf8_valid_prefix(prefix), prefix.size());
    EXPECT_EQ(io::utf8_valid_prefix(middle), middle.size());
    cuts.push_back(prefix.size());
  }
  // 400 draws at 0.25: within four standard deviations.
  EXPECT_NEAR(static_cast<double>(count), 100.0, 4 * std::sqrt(400 * 0.25 * 0.75));
  std::sort(cuts.begin(), cuts.end());
  EXPECT_GT(std::unique(cuts.begin(), cuts.end()) - cuts.begin(), 20);
}

TEST_F(PrepareTest, CombinedTokensAreSplitAtARate) {
  const io::Tokenizer t = tokenizer();
  const auto combined = t.encode(".\n");
  ASSERT_EQ(combined.size(), 1u) << "the vocabulary joins a full stop and a line break";
  const auto count = [&](double rate, const std::string& name) {
    PrepareConfig c = config(name);
    c.split_rate = rate;
    const io::Dataset d = make(c);
    int64_t whole = 0;
    std::string text;
    for (const std::vector<int32_t>& ids : documents(d, c.output, d.train)) {
      whole += std::count(ids.begin(), ids.end(), combined[0]);
      text += t.decode({ids.begin() + 1, ids.end() - 1});
    }
    EXPECT_EQ(std::count(text.begin(), text.end(), '.'), 800);  // the text is the same
    return whole;
  };
  EXPECT_EQ(count(0.0, "none"), 800);
  EXPECT_EQ(count(1.0, "all"), 0);
  EXPECT_NEAR(static_cast<double>(count(0.3, "some")), 560.0, 4 * std::sqrt(800 * 0.3 * 0.7));
}

TEST_F(PrepareTest, HeldOutDocumentsAreApart) {
  PrepareConfig c = config("out");
  c.held_out = 0.25;
  const io::Dataset d = make(c);
  EXPECT_EQ(d.train_documents + d.held_out_documents, 400);
  EXPECT_NEAR(static_cast<double>(d.held_out_documents), 100.0, 35.0);
  auto all = documents(d, c.output, d.train);
  const auto held_out = documents(d, c.output, d.held_out);
  all.insert(all.end(), held_out.begin(), held_out.end());
  std::sort(all.begin(), all.end());
  EXPECT_EQ(std::unique(all.begin(), all.end()), all.end());  // none is in both
  EXPECT_EQ(all.size(), 400u);
}

TEST_F(PrepareTest, OfAChatTheRepliesAreLearned) {
  io::write_file_atomic(
      dir_ / "c.jsonl",
      R"({"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
          )"
      R"({"role": "assistant", "content": "hello again."}, {"role": "user", "content": "More"},
          )"
      R"({"role": "assistant", "content": "world"}]})"
      "\n");
  std::string json = io::read_file(dir_ / "c.jsonl", 1 << 20);
  std::replace(json.begin(), json.end() - 1, '\n', ' ');
  io::write_file_atomic(dir_ / "c.jsonl", json);
  PrepareConfig c = config("out");
  c.inputs = {dir_ / "c.jsonl"};
  EXPECT_ERROR(make(c),
               dir_ / "c.jsonl" + ":1 is a chat; name the model's template with --chat-template");
  c = config("again");
  c.inputs = {dir_ / "c.jsonl"};
  c.chat_template = "deepseek-v3";
  const io::Dataset d = make(c);
  const io::TokenShard shard(c.output + "/" + d.train.at(0), d.vocabulary);
  const io::Tokenizer t = tokenizer();
  std::string learned, all;
  for (int64_t i = 0; i < shard.num_tokens(); ++i) {
    all += t.bytes(shard.token(i));
    learned += shard.is_learned(i) ? std::string(t.bytes(shard.token(i))) : "|";
  }
  const std::string end = hadal::testing::kChatTokens[1];
  learned.erase(std::unique(learned.begin(), learned.end(),
                            [](char a, char b) { return a == '|' && b == '|'; }),
                learned.end());
  EXPECT_EQ(learned, "|hello again." + end + "|world" + end);
  EXPECT_NE(all.find("Be kind."), std::string::npos);
  EXPECT_EQ(d.train_bytes, static_cast<int64_t>(std::string("hello again.world").size()));
}

TEST_F(PrepareTest, MistakesAreSentences) {
  PrepareConfig c = config("a");
  io::write_file_atomic(dir_ / "r.jsonl", "{\"text\": \"a\"}\n{\"body\": \"b\"}\n");
  c.inputs = {dir_ / "r.jsonl"};
  EXPECT_ERROR(make(c), dir_ / "r.jsonl" +
                            ":2 has neither \"text\" nor \"messages\"; name the key of its text "
                            "with --text-key");
  c = config("b");
  io::write_file_atomic(dir_ / "empty.txt", "\n\n");
  c.inputs = {dir_ / "empty.txt"};
  EXPECT_ERROR(make(c), "the inputs hold no document; give a text or JSONL with records");
  c = config("c");
  c.eos = "<end>";
  EXPECT_ERROR(make(c), "--eos needs the token <end>, which " + dir_ / "tok" +
                            " does not have; train one with hadal tokenizer train --special <end>");
  fs::create_directory(dir_ / "plain");
  io::train_bpe("some text, some text", 262).save(dir_ / "plain/tokenizer.json");
  c = config("d");
  c.tokenizer = dir_ / "plain";
  c.fim_rate = 0.1;
  EXPECT_ERROR(make(c), "--fim-rate needs the token " + kFim[0] + ", which " + dir_ / "plain" +
                            " does not have; train one with hadal tokenizer train --special " +
                            kFim[0]);
}

}  // namespace
}  // namespace hadal::train
