// Grammars: the tokens that are allowed are those that a search over the language finds.
// SPDX-License-Identifier: Apache-2.0
#include "serve/grammar.h"

#include <set>
#include <thread>

#include "io/bpe_train.h"
#include "serve/grammar_queue.h"
#include "tests/unit/ops.h"

namespace hadal::serve {
namespace {

constexpr int64_t kVocab = 330;  // more than the tokenizer has
using Kind = GrammarSpec::Kind;

class GrammarTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!GrammarCompiler::why_not().empty()) GTEST_SKIP() << GrammarCompiler::why_not();
  }
  std::shared_ptr<const Grammar> compile(Kind kind, const std::string& text) {
    return compiler_.compile({.kind = kind, .text = text});
  }
  // Feeds a text token by token, as the tokenizer writes it.
  void feed(GrammarState& state, const std::string& text) {
    for (int32_t id : tokenizer_.encode(text)) state.accept(id);
  }
  bool takes(const Grammar& grammar, const std::string& text) {
    GrammarState state(grammar, {end_});
    for (int32_t id : tokenizer_.encode(text)) {
      if (!state.allows(id)) return false;
      state.accept(id);
    }
    return state.allows(end_);
  }

  io::Tokenizer tokenizer_ =
      io::train_bpe("yes yellow no {\"name\": \"yes\"} yes yellow no {\"name\": \"no\"}", 270,
                    {"<end>", "<other>"});
  int32_t end_ = *tokenizer_.added_id("<end>"), other_ = *tokenizer_.added_id("<other>");
  GrammarCompiler compiler_{tokenizer_, kVocab};
};

TEST_F(GrammarTest, AllowsWhatLeadsToATextOfTheLanguage) {
  const std::set<std::string> language = {"yes", "yellow", "no", "n", "\xC3\xA9!"};
  std::string ebnf = "root ::= ";
  for (const std::string& text : language) ebnf += (ebnf.size() > 9 ? " | \"" : "\"") + text + "\"";
  const auto grammar = compile(Kind::kEbnf, ebnf);
  // All beginnings that tokens can lead to, breadth first.
  std::vector<std::vector<int32_t>> paths = {{}};
  int64_t num_seen = 0;
  for (size_t i = 0; i < paths.size(); ++i) {
    const std::vector<int32_t> path = paths[i];
    std::string text;
    GrammarState state(*grammar, {end_});
    for (int32_t id : path) {
      text += tokenizer_.bytes(id);
      state.accept(id);
    }
    bool more = false;
    for (int32_t v = 0; v < kVocab; ++v) {
      bool want = false;
      if (v == end_) {
        want = language.contains(text);
      } else if (v != other_ && tokenizer_.knows(v)) {
        const std::string longer = text + std::string(tokenizer_.bytes(v));
        for (const std::string& whole : language) want = want || whole.starts_with(longer);
        if (want) paths.push_back(path), paths.back().push_back(v);
        more = more || want;
      }
      ASSERT_EQ(state.allows(v), want) << "token " << v << " after \"" << text << "\"";
      ++num_seen;
    }
    EXPECT_EQ(state.goes_on(), more) << text;
  }
  EXPECT_GT(num_seen, 20 * kVocab);
}

TEST_F(GrammarTest, ReadsSchemasRegularExpressionsAndTags) {
  const auto schema = compile(Kind::kSchema, R"({"type": "object", "properties": {
    "name": {"enum": ["yes", "no"]}, "n": {"type": "integer", "minimum": 3}},
    "required": ["name"], "additionalProperties": false})");
  EXPECT_TRUE(takes(*schema, R"({"name": "yes"})"));
  EXPECT_TRUE(takes(*schema, "{\n  \"name\": \"no\",\n  \"n\": 17\n}"));
  EXPECT_FALSE(takes(*schema, R"({"name": "maybe"})"));
  EXPECT_FALSE(takes(*schema, R"({"name": "yes", "n": 2})"));
  EXPECT_FALSE(takes(*schema, R"({"n": 4})"));
  EXPECT_FALSE(takes(*schema, R"({"name": "yes", "more": 1})"));
  EXPECT_FALSE(takes(*schema, R"({"name": "yes")"));
  const auto json = compile(Kind::kJson, "");
  EXPECT_TRUE(takes(*json, R"({"a": [1, {"b": null}], "c": "\u00e9"})"));
  EXPECT_FALSE(takes(*json, "[1]"));
  const auto regex = compile(Kind::kRegex, "[a-c]{2}-[0-9]+");
  EXPECT_TRUE(takes(*regex, "ab-120"));
  EXPECT_FALSE(takes(*regex, "abc-1"));
  const auto tag =
      compile(Kind::kStructuralTag,
              R"({"type": "structural_tag", "format": {"type": "sequence", "elements": [
          {"type": "token", "token": )" +
                  std::to_string(other_) + R"(}, {"type": "const_string", "value": "no"}]}})");
  GrammarState state(*tag, {end_});
  EXPECT_TRUE(state.allows(other_));  // named by its id
  EXPECT_FALSE(state.allows(tokenizer_.encode("n")[0]));
  state.accept(other_);
  feed(state, "no");
  EXPECT_TRUE(state.allows(end_));
}

TEST_F(GrammarTest, EndsWithTheStopTokensThatAreNoText) {
  const auto grammar = compile(Kind::kRegex, "no*");
  const int32_t text = tokenizer_.encode("n")[0];
  GrammarState state(*grammar, {text, other_, end_});
  EXPECT_TRUE(state.allows(text));
  EXPECT_FALSE(state.allows(end_));
  feed(state, "no");
  EXPECT_TRUE(state.allows(end_));
  EXPECT_TRUE(state.allows(other_));
  EXPECT_TRUE(state.goes_on());
  EXPECT_FALSE(state.allows(text));
  const std::string message =
      "a reply that is held to a form needs an end token; leave out ignore_eos";
  EXPECT_ERROR(GrammarState(*grammar, {}), message);
  EXPECT_ERROR(GrammarState(*grammar, {text}), message);
}

TEST_F(GrammarTest, WhatCannotBeHonouredIsRefused) {
  for (const auto& [kind, text] : std::vector<std::pair<Kind, std::string>>{
           {Kind::kRegex, "("},
           {Kind::kRegex, "a(?=b)c"},
           {Kind::kRegex, "a{2,1}"},
           {Kind::kEbnf, "root ::= other"},
           {Kind::kEbnf, "other ::= \"a\""},
           {Kind::kEbnf, ""},
           {Kind::kSchema, "{"},
           {Kind::kSchema, R"({"type": "strange"})"},
           {Kind::kSchema, R"({"type": "number", "multipleOf": 0.5})"},
           {Kind::kSchema, R"({"$ref": "#/nowhere"})"},
           {Kind::kStructuralTag, "{}"},
           {Kind::kStructuralTag, R"({"type": "structural_tag", "format": {"type": "x"}})"}})
    for (int again = 0; again < 2; ++again) {  // nor from a cache
      std::string message;
      try {
        compile(kind, text);
      } catch (const Error& e) {
        message = e.what();
      }
      EXPECT_FALSE(message.empty()) << text;
      EXPECT_EQ(message.find('\n'), message.npos) << message;
    }
  EXPECT_NO_THROW(compile(Kind::kRegex, "a"));  // an error leaves nothing behind
}

TEST_F(GrammarTest, AQueueCompilesAndSaysWhenItIsFull) {
  std::mutex mutex;
  std::vector<std::string> got;
  {
    GrammarQueue queue(tokenizer_, kVocab, 2);
    std::unique_lock hold(mutex);  // the first one's callback waits
    const auto done = [&](const std::shared_ptr<const Grammar>& grammar, const std::string& error) {
      const std::lock_guard lock(mutex);
      got.push_back(grammar ? "grammar" : error.empty() ? "nothing" : "error");
    };
    EXPECT_TRUE(queue.compile({.kind = Kind::kRegex, .text = "a"}, done));
    int64_t taken = 1;
    while (queue.compile({.kind = Kind::kRegex, .text = "("}, done)) ++taken;
    EXPECT_LE(taken, 3);
    hold.unlock();
    while (true) {
      const std::lock_guard lock(mutex);
      if (static_cast<int64_t>(got.size()) == taken) break;
      std::this_thread::yield();
    }
  }
  EXPECT_EQ(got.front(), "grammar");
  EXPECT_EQ(got.back(), "error");
}

}  // namespace
}  // namespace hadal::serve
