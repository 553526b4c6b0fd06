// Added tokens: left to right, longest first, the plain ones before the normalized ones.
// SPDX-License-Identifier: Apache-2.0
#include "io/added_tokens.h"

#include <nlohmann/json.hpp>

#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

// "text" for a stretch of text, "#3" for the token 3.
std::vector<std::string> split(const AddedTokens& tokens, std::string_view text) {
  std::vector<std::string> parts;
  tokens.split(
      text,
      [&](std::string_view stretch) {
        EXPECT_FALSE(stretch.empty());
        parts.emplace_back(stretch);
      },
      [&](int32_t id) { parts.push_back(concat("#", id)); });
  return parts;
}

using Parts = std::vector<std::string>;

TEST(AddedTokens, LongestFirstWhateverTheOrder) {
  const AddedToken a{.id = 1, .content = "<a>"}, ab{.id = 2, .content = "<a><b>"},
      b{.id = 3, .content = "<b>"};
  for (const auto& list : {std::vector{a, ab, b}, {ab, b, a}, {b, a, ab}}) {
    const AddedTokens tokens(list);
    EXPECT_EQ(split(tokens, "x<a><b>y"), (Parts{"x", "#2", "y"}));
    EXPECT_EQ(split(tokens, "<a><a><b><b>"), (Parts{"#1", "#2", "#3"}));
    EXPECT_EQ(split(tokens, "<a"), Parts{"<a"});
    EXPECT_EQ(split(tokens, ""), Parts{});
    EXPECT_EQ(split(tokens, "<<a>>"), (Parts{"<", "#1", ">"}));
  }
}

// Left to right: a token that begins earlier wins over a longer one that begins inside it.
TEST(AddedTokens, TheEarlierBegins) {
  const AddedTokens tokens({{.id = 1, .content = "ab"}, {.id = 2, .content = "bcd"}});
  EXPECT_EQ(split(tokens, "abcd"), (Parts{"#1", "cd"}));
  EXPECT_EQ(split(tokens, "bcd ab"), (Parts{"#2", " ", "#1"}));
}

TEST(AddedTokens, NormalizedOnesComeSecond) {
  const AddedTokens tokens(
      {{.id = 1, .content = "abc", .normalized = true}, {.id = 2, .content = "b"}});
  EXPECT_EQ(split(tokens, "abc"), (Parts{"a", "#2", "c"}));
  const AddedTokens both(
      {{.id = 1, .content = "abc", .normalized = true}, {.id = 2, .content = "x"}});
  EXPECT_EQ(split(both, "xabcx"), (Parts{"#2", "#1", "#2"}));
}

TEST(AddedTokens, AnyBytes) {
  const AddedTokens tokens({{.id = 1, .content = "\xff"}, {.id = 2, .content = "\u4f60"}});
  EXPECT_EQ(split(tokens, "a\xff\u4f60"), (Parts{"a", "#1", "#2"}));
  EXPECT_EQ(split(AddedTokens(), "ab"), Parts{"ab"});
}

AddedToken parse(const std::string& text) {
  return AddedTokens::from_json(JsonObject::parse(text, "t.json: added_tokens[0]"));
}

TEST(AddedTokens, JsonComesBack) {
  const std::string text = R"({"id": 7, "content": "<x>", "special": true, "normalized": false,
                               "lstrip": false, "rstrip": false, "single_word": false})";
  const AddedToken token = parse(text);
  EXPECT_EQ(token.id, 7);
  EXPECT_EQ(token.content, "<x>");
  EXPECT_TRUE(token.special);
  EXPECT_EQ(AddedTokens({token}).to_json()[0], parse_json(text, "x"));
}

TEST(AddedTokens, NamesWhatIsNotSupported) {
  const std::string at = "t.json: added_tokens[0]: ";
  EXPECT_ERROR(parse(R"({"id": 1, "content": ""})"), at + "content is empty; remove this token");
  EXPECT_ERROR(parse(R"({"id": 1})"), at + "content is missing; add it");
  EXPECT_ERROR(parse(R"({"id": -1, "content": "a"})"), at + "id is -1; allowed: 0 to 16777215");
  EXPECT_ERROR(parse(R"({"id": "1", "content": "a"})"), at + "id is \"1\"; an integer is needed");
  for (const std::string field : {"lstrip", "rstrip", "single_word"})
    EXPECT_ERROR(parse(R"({"id": 1, "content": "a", ")" + field + R"(": true})"),
                 at + field + " is true; only false is supported");
  EXPECT_ERROR(parse(R"({"id": 1, "content": "a", "normal": true})"),
               at + "unknown key \"normal\"; did you mean \"normalized\"?");
}

}  // namespace
}  // namespace hadal::io
