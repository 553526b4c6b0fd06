// tokenizer.json: what is written reads back alike, and every kind of damage is one sentence.
// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/rng.h"
#include "io/atomic.h"
#include "io/bpe_train.h"
#include "io/tokenizer.h"
#include "io/utf8.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

using hadal::testing::TempDir;

class TokenizerJson : public ::testing::Test {
 protected:
  TokenizerJson() { trained_.save(path_); }

  // The file with one thing changed.
  Tokenizer edited(const std::function<void(Json&)>& change) const {
    Json root = read_json(path_);
    change(root);
    write_json(edited_path_, root);
    return Tokenizer::load(edited_path_);
  }
  // "PATH: what", as every message about a field begins.
  std::string at(const std::string& what) const { return edited_path_ + ": " + what; }

  const TempDir dir_;
  const std::string path_ = dir_ / "tokenizer.json", edited_path_ = dir_ / "edited.json";
  const Tokenizer trained_ =
      train_bpe("In the beginning God created the heaven and the earth.", 263);
};

TEST_F(TokenizerJson, SaveAndLoadAreTheIdentity) {
  const Tokenizer loaded = Tokenizer::load(path_);
  EXPECT_EQ(loaded.hash(), trained_.hash());
  EXPECT_EQ(loaded.vocab_size(), 263);
  const std::string text = "the earth<|end_of_sentence|>\xff \u4f60";
  EXPECT_EQ(loaded.encode(text), trained_.encode(text));
  EXPECT_EQ(loaded.decode(loaded.encode(text)), text);
  loaded.save(edited_path_);
  EXPECT_EQ(read_file(edited_path_, 1 << 20), read_file(path_, 1 << 20));
}

int64_t resident_megabytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t size = 0, pages = 0;
  statm >> size >> pages;
  return pages * sysconf(_SC_PAGESIZE) >> 20;
}

// Gaps between ids cost a few bytes each, so that the highest id a file may have is no danger.
TEST_F(TokenizerJson, AWildIdCostsLittle) {
  const int64_t before = resident_megabytes();
  const Tokenizer wild = edited([](Json& root) {
    root["model"]["vocab"]["zq"] = 16777215;
    root["model"]["merges"].push_back("z q");
  });
  EXPECT_EQ(wild.vocab_size(), 16777216);
  EXPECT_EQ(wild.encode("zq"), (std::vector<int32_t>{16777215}));
  EXPECT_EQ(wild.decode({16777215}), "zq");
  EXPECT_FALSE(wild.knows(16777214));
  EXPECT_ERROR(wild.decode({16777214}),
               "there is no token 16777214; the vocabulary leaves this id out");
  EXPECT_LT(resident_megabytes() - before, 100);
}

// Everything that a file may hold beyond what train_bpe makes.
TEST_F(TokenizerJson, KeepsEveryField) {
  const Tokenizer first = edited([](Json& root) {
    root["model"]["ignore_merges"] = true;
    root["added_tokens"].push_back({{"id", 500}, {"content", "<| tool |>"}, {"special", false}});
    root["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
    root["post_processor"] = {{"type", "TemplateProcessing"}, {"single", Json::array()}};
    root["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
    Json pairs = Json::array();  // merges as lists of two, as newer files have them
    for (const Json& merge : root["model"]["merges"]) {
      const auto text = merge.get<std::string>();
      pairs.push_back({text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1)});
    }
    root["model"]["merges"] = pairs;
  });
  EXPECT_EQ(first.vocab_size(), 501);
  EXPECT_EQ(first.encode("<| tool |>"), std::vector<int32_t>{500});
  const std::string again = dir_ / "again.json";
  first.save(again);
  const Tokenizer second = Tokenizer::load(again);
  EXPECT_EQ(second.hash(), first.hash());
  EXPECT_EQ(second.spec().post_processor, first.spec().post_processor);
  EXPECT_FALSE(second.spec().added.back().special);
}

TEST_F(TokenizerJson, MissingTruncatedOrOfAnotherKind) {
  EXPECT_ERROR(Tokenizer::load(dir_ / "none.json"),
               "cannot open " + dir_ / "none.json" + ": No such file or directory; check the path");
  const std::string whole = read_file(path_, 1 << 20);
  write_file_atomic(edited_path_, whole.substr(0, 100));
  EXPECT_ERROR(Tokenizer::load(edited_path_),
               edited_path_ +
                   ", line 6, column 15: invalid JSON, unexpected end of input; expected "
                   "'[', '{', or a literal; correct it there");
  write_file_atomic(edited_path_, "");
  EXPECT_ERROR(Tokenizer::load(edited_path_),
               edited_path_ +
                   ", line 1, column 1: invalid JSON, unexpected end of input; expected "
                   "'[', '{', or a literal; correct it there");
  write_file_atomic(edited_path_, "[]");
  EXPECT_ERROR(Tokenizer::load(edited_path_), at("a list of 0 where an object { } is needed"));
  // Cut anywhere, it is an error.
  for (size_t size = 0; size + 3 < whole.size(); size += 397) {
    std::ofstream(edited_path_, std::ios::trunc) << whole.substr(0, size);
    EXPECT_THROW(Tokenizer::load(edited_path_), Error) << size;
  }
}

TEST_F(TokenizerJson, WhatIsNotSupported) {
  EXPECT_ERROR(
      edited([](Json& r) { r["model"]["type"] = "Unigram"; }),
      at("model: type is Unigram, which is not supported, only byte-level BPE; choose a model with "
         "such a tokenizer, or train one with hadal tokenizer train"));
  EXPECT_ERROR(edited([](Json& r) {
                 r["normalizer"] = {{"type", "NFC"}};
               }),
               at("normalizer: type is NFC; only null or an empty Sequence is supported"));
  EXPECT_ERROR(edited([](Json& r) {
                 r["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
               }),
               at("normalizer: type is Sequence; only null or an empty Sequence is supported"));
  EXPECT_ERROR(edited([](Json& r) { r["decoder"]["type"] = "Fuse"; }),
               at("decoder: type is Fuse; only ByteLevel is supported"));
  EXPECT_ERROR(
      edited([](Json& r) {
        r["truncation"] = {{"max_length", 5}};
      }),
      at("truncation is {\"max_length\":5}; cutting the text is not supported, only null"));
  EXPECT_ERROR(edited([](Json& r) { r["model"]["dropout"] = 0.1; }),
               at("model: dropout is not 0; only null or 0 is supported"));
  EXPECT_ERROR(edited([](Json& r) { r["model"]["byte_fallback"] = true; }),
               at("model: byte_fallback is true, as of SentencePiece, which is not supported, only "
                  "byte-level BPE; choose a model with "
                  "such a tokenizer, or train one with hadal tokenizer train"));
  EXPECT_ERROR(edited([](Json& r) { r["model"]["end_of_word_suffix"] = "</w>"; }),
               at("model: end_of_word_suffix is \"</w>\"; only null is supported"));
  EXPECT_ERROR(edited([](Json& r) { r["model"]["merge"] = 1; }),
               at("model: unknown key \"merge\"; did you mean \"merges\"?"));
  EXPECT_ERROR(edited([](Json& r) { r["pretokenizer"] = nullptr; }),
               at("unknown key \"pretokenizer\"; did you mean \"pre_tokenizer\"?"));
}

TEST_F(TokenizerJson, DamagedVocabulary) {
  EXPECT_ERROR(edited([](Json& r) { r["model"]["vocab"].erase("z"); }),
               at("model: the vocabulary has no token for the byte 122, spelled \"z\"; add it"));
  EXPECT_ERROR(
      edited([](Json& r) { r["model"]["vocab"]["z"] = "five"; }),
      at("model: vocab: the id of \"z\" is \"five\"; an integer from 0 to 16777215 is needed"));
  EXPECT_ERROR(edited([](Json& r) { r["model"]["vocab"]["z"] = 1.5; }),
               at("model: vocab: the id of \"z\" is 1.5; an integer from 0 to 16777215 is needed"));
  EXPECT_ERROR(edited([](Json& r) { r["model"]["vocab"]["z"] = -1; }),
               at("model: vocab: the id of \"z\" is -1; an integer from 0 to 16777215 is needed"));
  EXPECT_ERROR(
      edited([](Json& r) { r["model"]["vocab"]["z"] = 16777216; }),
      at("model: vocab: the id of \"z\" is 16777216; an integer from 0 to 16777215 is needed"));
  EXPECT_ERROR(edited([](Json& r) { r["model"]["vocab"]["z"] = 'y' + 2; }),
               at("model: vocab: \"y\" and \"z\" have the same id 123; give each its own"));
  EXPECT_ERROR(edited([](Json& r) { r["model"]["vocab"][""] = 400; }),
               at("model: vocab: the token with id 400 is empty; remove it"));
  EXPECT_ERROR(edited([](Json& r) { r["model"]["vocab"] = 3; }),
               at("model: vocab is 3; an object { } is needed"));
  EXPECT_ERROR(edited([](Json& r) { r["model"].erase("vocab"); }),
               at("model: vocab is missing; add it"));
  EXPECT_ERROR(edited([](Json& r) { r.erase("model"); }), at("model is missing; add it"));
}

TEST_F(TokenizerJson, DamagedMerges) {
  EXPECT_ERROR(edited([](Json& r) { r["model"]["merges"][1] = "q q"; }),
               at("model: merges[1] needs the token \"qq\", which vocab does not have; add it"));
  EXPECT_ERROR(edited([](Json& r) { r["model"]["merges"][0] = "xyz q"; }),
               at("model: merges[0] needs the token \"xyz\", which vocab does not have; add it"));
  for (const Json& bad : {Json("th"), Json("t h e"), Json(3), Json({"t"}), Json({"t", 1})})
    EXPECT_ERROR(edited([&](Json& r) { r["model"]["merges"][0] = bad; }),
                 at("model: merges[0] is " + bad.dump() +
                    "; \"left right\" or [\"left\", \"right\"] is needed"));
  EXPECT_ERROR(edited([](Json& r) { r["model"]["merges"] = "t h"; }),
               at("model: merges is no list; a list of pairs is needed"));
  EXPECT_ERROR(edited([](Json& r) { r["model"].erase("merges"); }),
               at("model: merges is missing; add it"));
}

TEST_F(TokenizerJson, DamagedAddedTokens) {
  const auto add = [&](int id, const char* content) {
    return edited([&](Json& r) {
      r["added_tokens"].push_back({{"id", id}, {"content", content}});
    });
  };
  EXPECT_ERROR(add(3, "<x>"), at("added_tokens[2]: the id 3 is that of \"\u0101\" in model.vocab; "
                                 "give it another"));
  EXPECT_ERROR(
      add(300, "z"),
      at("added_tokens[2]: \"z\" has the id 300, but 124 in model.vocab; make them equal"));
  EXPECT_ERROR(add(0, "<|begin_of_sentence|>"),
               at("added_tokens[2]: \"<|begin_of_sentence|>\" stands twice; remove one"));
  EXPECT_ERROR(edited([](Json& r) { r["added_tokens"] = 1; }),
               at("added_tokens is 1; a list of objects is needed"));
  EXPECT_ERROR(edited([](Json& r) {
                 r["added_tokens"].push_back({{"id", 300}, {"content", "<x>"}});
                 r["added_tokens"].push_back({{"id", 300}, {"content", "<y>"}});
               }),
               at("added_tokens[3]: the id 300 stands twice; give each token its own"));
}

// Random damage: an Error or a tokenizer that encodes, never a crash.
TEST_F(TokenizerJson, RandomDamageNeverCrashes) {
  const std::string good = read_file(path_, 1 << 20);
  const Rng rng(7, stream_id("damage"));
  uint64_t draw = 0;
  int errors = 0, loads = 0;
  for (int round = 0; round < 250; ++round) {
    std::string bytes = good;
    for (uint64_t e = 0; e < 1 + rng.u64(draw) % 2; ++e) {
      const size_t at = rng.u64(++draw) % bytes.size();
      const uint64_t kind = rng.u64(++draw) % 3;
      if (kind == 0) bytes[at] = static_cast<char>(rng.u64(++draw));
      if (kind == 1) bytes.erase(at, 1 + rng.u64(++draw) % 3);
      if (kind == 2) bytes.insert(at, 1, "{}[]\",:0ntf"[rng.u64(++draw) % 11]);
    }
    ++draw;
    std::ofstream(edited_path_, std::ios::binary | std::ios::trunc) << bytes;
    try {
      const Tokenizer tokenizer = Tokenizer::load(edited_path_);
      tokenizer.encode("In the beginning \xff");
      ++loads;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).rfind(edited_path_, 0), 0u) << error.what();
      ++errors;
    }
  }
  EXPECT_GT(errors, 50);
  EXPECT_GT(loads, 10);
}

}  // namespace
}  // namespace hadal::io
