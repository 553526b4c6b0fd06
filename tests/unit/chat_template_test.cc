// Chat templates against texts that the public Jinja templates made, and their errors.
// SPDX-License-Identifier: Apache-2.0
#include "io/chat_template.h"

#include <nlohmann/json.hpp>

#include "io/atomic.h"
#include "io/bpe_train.h"
#include "io/json.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

using nlohmann::ordered_json;
using testing::TempDir;

ordered_json read_vectors(const std::string& name) {
  return ordered_json::parse(read_file("tests/vectors/chat_" + name + ".json", size_t{1} << 30));
}

TEST(ChatTemplate, EqualsThePublicTemplates) {
  const ordered_json chats = read_vectors("conversations");
  ASSERT_GT(chats.size(), 30u);
  for (const std::string& name : ChatTemplate::names()) {
    const ordered_json texts = read_vectors(name);
    ASSERT_EQ(texts.size(), chats.size()) << name;
    const ChatTemplate chat_template = ChatTemplate::named(name);
    EXPECT_EQ(chat_template.name(), name);
    int64_t compared = 0;
    for (size_t i = 0; i < chats.size(); ++i) {
      if (texts[i].is_null()) continue;
      const Chat chat = Chat::parse(chats[i].dump(), "vector");
      EXPECT_EQ(chat_template.render(chat), texts[i].get<std::string>())
          << name << ", conversation " << i;
      ++compared;
    }
    EXPECT_GT(compared, 25) << name;
  }
}

TEST(ChatTemplate, NamesItsErrors) {
  EXPECT_ERROR(ChatTemplate::named("chatml"),
               "there is no chat template chatml; allowed: deepseek-v3, deepseek-v3-0324, "
               "deepseek-r1, deepseek-v3.1, vllm-deepseek-v3, vllm-deepseek-r1, "
               "vllm-deepseek-v3.1");
  EXPECT_ERROR(ChatTemplate::named("v3-tools"),
               "there is no chat template v3-tools; allowed: deepseek-v3, deepseek-v3-0324, "
               "deepseek-r1, deepseek-v3.1, vllm-deepseek-v3, vllm-deepseek-r1, "
               "vllm-deepseek-v3.1");
  const ChatTemplate v3 = ChatTemplate::named("deepseek-v3");
  const auto render = [&](const char* json) { return v3.render(Chat::parse(json, "request")); };
  EXPECT_ERROR(render(R"({"messages": [{"role": "user"}]})"),
               "messages[0]: content of the user is missing; only an assistant with tool_calls may "
               "leave it out");
  EXPECT_ERROR(render(R"({"messages": [{"role": "bot", "content": ""}]})"),
               "messages[0]: role is \"bot\"; allowed: system, user, assistant, tool");
  EXPECT_ERROR(render(R"({"messages": [{"role": "user", "content": "", "tool_calls":
                          [{"function": {"name": "f"}}]}]})"),
               "request: messages[0]: tool_calls of role user; only an assistant calls tools");
  EXPECT_ERROR(render(R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})"),
               "request: messages[0]: content[0]: type is image_url; only text is supported");
  EXPECT_ERROR(render(R"({"messages": [], "tool": []})"),
               "request: unknown key \"tool\"; did you mean \"tools\"?");
  EXPECT_ERROR(
      ChatTemplate::named("vllm-deepseek-v3")
          .render(Chat::parse(R"({"messages": [{"role": "assistant", "tool_calls":
                     [{"function": {"name": "f", "arguments": "{a"}}]}]})",
                              "request")),
      "messages[0]: arguments of f, line 1, column 2: invalid JSON, invalid literal; last read: "
      "'{a'; expected string literal; correct it there");
  Chat chat{.messages = {}, .tools = {"{}"}};
  EXPECT_ERROR(ChatTemplate::named("deepseek-v3.1").render(chat),
               "tools[0]: function is missing; add {\"name\": ..., \"parameters\": ...}");
}

TEST(ChatTemplate, JoinsTextPartsAndTakesArgumentsAsObjects) {
  const Chat chat = Chat::parse(
      R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"},
                                                     {"type": "text", "text": "b"}]},
                       {"role": "assistant", "content": null, "tool_calls":
                        [{"function": {"name": "f", "arguments": {"z": 1, "a": [1.0]}}},
                         {"function": {"name": "g"}}]},
                       {"role": "assistant", "content": "x", "tool_calls": []}]})",
      "request");
  ASSERT_EQ(chat.messages.size(), 3u);
  EXPECT_EQ(chat.messages[0].content, "a\nb");
  EXPECT_EQ(chat.messages[1].tool_calls[0].arguments, R"({"z": 1, "a": [1.0]})");
  EXPECT_EQ(chat.messages[1].tool_calls[1].arguments, "");
  EXPECT_TRUE(chat.messages[2].tool_calls.empty());
  EXPECT_TRUE(chat.add_generation_prompt);
  EXPECT_FALSE(chat.thinking);
}

TEST(ChatTemplate, WritesNumbersAsPython) {
  EXPECT_EQ(
      python_json("[1.5, 1e15, 1e16, 123456789012345680.0, 1e-4, 1.25e-5, 0.1, -0.0, 1E5]", ""),
      "[1.5, 1000000000000000.0, 1e+16, 1.2345678901234568e+17, 0.0001, 1.25e-05, 0.1, -0.0, "
      "100000.0]");
  EXPECT_EQ(python_json("[5e-324, 1.7976931348623157e308, -12, 18446744073709551615]", ""),
            "[5e-324, 1.7976931348623157e+308, -12, 18446744073709551615]");
  EXPECT_EQ(python_json(R"({"b": "\u001f\u007f\u00e9", "a": {}})", ""),
            "{\"b\": \"\\u001f\x7f\xC3\xA9\", \"a\": {}}");
}

TEST(ChatTemplate, IsKnownByTheModelsOwnTemplate) {
  const TempDir dir;
  const std::string list =
      "deepseek-v3|deepseek-v3-0324|deepseek-r1|deepseek-v3.1|vllm-deepseek-v3|vllm-deepseek-r1|"
      "vllm-deepseek-v3.1";
  const std::string path = dir / "tokenizer_config.json";
  EXPECT_ERROR(ChatTemplate::of_model(dir.path()),
               path + " is missing, so the chat template is unknown; give --chat-template " + list);
  write_file_atomic(path, "{}");
  EXPECT_ERROR(ChatTemplate::of_model(dir.path()),
               path + ": chat_template is missing; give --chat-template " + list);
  write_file_atomic(path, R"({"chat_template": "{{ messages }}"})");
  EXPECT_ERROR(ChatTemplate::of_model(dir.path()),
               path + ": chat_template is none that hadal knows; give --chat-template " + list);
}

TEST(ChatTemplate, NeedsItsTokens) {
  const std::string bar = "\uFF5C",
                    begin = concat("<", bar, "begin\u2581of\u2581sentence", bar, ">");
  const std::string user = concat("<", bar, "User", bar, ">");
  const auto trained = [](const std::vector<std::string>& special) {
    return train_bpe("some words and some more words", 260, special);
  };
  const ChatTemplate v3 = ChatTemplate::named("deepseek-v3");
  const auto message = [](const std::string& token, const char* name) {
    return concat("the tokenizer has no token ", token, ", which the chat template ", name,
                  " needs; use a model that was trained to chat, or hadal generate");
  };
  const std::string end(ChatTemplate::end_of_turn());
  EXPECT_ERROR(v3.check_tokens(trained({end})), message(begin, "deepseek-v3"));
  EXPECT_ERROR(v3.check_tokens(trained({begin, end})), message(user, "deepseek-v3"));
  const Tokenizer chat = trained({begin, end, user, concat("<", bar, "Assistant", bar, ">")});
  v3.check_tokens(chat);
  EXPECT_ERROR(ChatTemplate::named("deepseek-v3.1").check_tokens(chat),
               message("<think>", "deepseek-v3.1"));
}

TEST(ChatTemplate, TellsReasoningFromTheReply) {
  EXPECT_EQ(without_reasoning("plain", false), "plain");
  EXPECT_EQ(without_reasoning("<think>a</think>b", false), "b");
  EXPECT_EQ(without_reasoning("a</think>b", true), "b");
  EXPECT_EQ(without_reasoning("never ends", true), "");
  EXPECT_EQ(without_reasoning("<think>never ends", false), "");
}

}  // namespace
}  // namespace hadal::io
