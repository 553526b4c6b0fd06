// Turns with a random model: what is kept, what is shown, how a reply is stopped.
// SPDX-License-Identifier: Apache-2.0
#include "serve/conversation.h"

#include "io/utf8.h"
#include "tests/unit/base_model.h"
#include "tests/unit/expect_error.h"

namespace hadal::serve {
namespace {

using testing::BaseModel;

struct Talk {
  explicit Talk(const char* name = "deepseek-v3", int64_t speculate = 0)
      : decoder(model.decoder(64, speculate > 0 ? 1 : 0)),
        conversation(model.ctx, decoder, testing::chat_tokenizer(), io::ChatTemplate::named(name),
                     {1}) {
    conversation.settings.speculate = speculate;
    conversation.settings.sampling = {.temperature = 1.0, .top_k = 0, .top_p = 1.0, .seed = 3};
    conversation.settings.max_tokens = 40;
  }
  Conversation::Reply say(const std::string& text) {
    shown.clear();
    return conversation.reply(text, [&](std::string_view part) {
      EXPECT_EQ(io::utf8_valid_prefix(part), part.size());
      shown += part;
      return true;
    });
  }
  BaseModel model;
  Decoder decoder;
  Conversation conversation;
  std::string shown;
};

TEST(Conversation, KeepsItsTurnsAndRepeatsThem) {
  Talk talk;
  talk.conversation.reset("Be brief.");
  const auto one = talk.say("hello");
  EXPECT_EQ(talk.shown, one.text);
  EXPECT_GT(one.num_tokens, 0);
  const auto two = talk.say("and now?");
  const auto& messages = talk.conversation.messages();
  ASSERT_EQ(messages.size(), 5u);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[1].content, "hello");
  EXPECT_EQ(messages[2].role, "assistant");
  EXPECT_EQ(messages[2].content, io::without_reasoning(one.text, false));
  EXPECT_EQ(messages[4].content, io::without_reasoning(two.text, false));
  EXPECT_GT(two.num_prompt_tokens, one.num_prompt_tokens);
  talk.conversation.reset();
  ASSERT_EQ(talk.conversation.messages().size(), 1u);
  EXPECT_EQ(talk.say("hello").text, one.text);
  EXPECT_EQ(talk.say("and now?").text, two.text);
  talk.conversation.reset("");
  EXPECT_TRUE(talk.conversation.messages().empty());
}

// A turn runs only what is new, and says the same as one that runs all.
TEST(Conversation, IsTheSameWithoutTheCache) {
  Talk talk;
  const auto one = talk.say("hello");
  EXPECT_EQ(one.num_reused, 0);
  const auto two = talk.say("more");
  EXPECT_GE(two.num_reused, one.num_prompt_tokens);
  Talk fresh;
  fresh.say("hello");
  // An error gives up what was cached.
  fresh.conversation.settings.sampling.temperature = -1.0;
  EXPECT_THROW(fresh.say("more"), Error);
  fresh.conversation.settings.sampling.temperature = 1.0;
  const auto again = fresh.say("more");
  EXPECT_EQ(again.num_reused, 0);
  EXPECT_EQ(again.text, two.text);
  EXPECT_FALSE(one.text.empty());
}

TEST(Conversation, SpeculationChangesNoReply) {
  Talk plain;
  for (int64_t speculate : {1, 3}) {
    Talk talk("deepseek-v3", speculate);
    plain.conversation.reset("");
    for (const char* text : {"hello", "and now?", "the quick brown fox"}) {
      const auto reply = talk.say(text);
      EXPECT_EQ(reply.text, plain.say(text).text) << speculate;
      EXPECT_GE(reply.acceptance, 0.0);
    }
    // Speculation may be turned off and on between turns.
    talk.conversation.settings.speculate = 0;
    EXPECT_EQ(talk.say("off").text, plain.say("off").text);
    talk.conversation.settings.speculate = speculate;
    const auto reply = talk.say("on");
    EXPECT_EQ(reply.text, plain.say("on").text);
    EXPECT_GT(reply.num_reused, 0);
  }
  plain.conversation.settings.speculate = 1;
  EXPECT_ERROR(plain.say("x"), "speculation needs a model with an MTP module; use --speculate 0");
}

TEST(Conversation, StopsWhenAskedAndKeepsThePart) {
  Talk talk;
  int parts = 0;
  const auto reply =
      talk.conversation.reply("hello", [&](std::string_view) { return ++parts < 3; });
  EXPECT_EQ(parts, 3);
  EXPECT_FALSE(reply.complete);
  EXPECT_EQ(talk.conversation.messages()[1].content, io::without_reasoning(reply.text, false));
  talk.conversation.should_stop = [] { return true; };
  EXPECT_LE(talk.say("again").num_tokens, 1);
  talk.conversation.should_stop = nullptr;
  EXPECT_EQ(talk.conversation.messages().size(), 4u);
  EXPECT_GT(talk.say("go on").num_tokens, 1);
}

TEST(Conversation, KeepsNoReasoning) {
  Talk talk("deepseek-r1");
  talk.conversation.settings.max_tokens = 5;
  const auto reply = talk.say("hello");  // the prompt ends in <think>, which never ends
  EXPECT_FALSE(reply.text.empty());
  EXPECT_EQ(talk.conversation.messages()[1].content, "");
}

TEST(Conversation, LeavesTheHistoryAloneOnErrors) {
  Talk talk;
  std::string text;
  for (int i = 0; i < 400; ++i) text += "\u4F60";
  EXPECT_ERROR(talk.say(text),
               "the conversation has 1203 tokens, and the context holds 512; start anew or raise "
               "--context");
  EXPECT_TRUE(talk.conversation.messages().empty());
  EXPECT_GT(talk.say("short").num_tokens, 0);
}

TEST(Conversation, NeedsTheTokensOfItsTemplate) {
  BaseModel model;
  Decoder decoder = model.decoder(64);
  const io::Tokenizer plain = io::train_bpe("some words and some more words", 260);
  EXPECT_ERROR(Conversation(model.ctx, decoder, plain, io::ChatTemplate::named("deepseek-v3"), {}),
               concat("the tokenizer has no token ", testing::kChatTokens[0],
                      ", which the chat template deepseek-v3 needs; use a model that was trained "
                      "to chat, or hadal generate"));
}

}  // namespace
}  // namespace hadal::serve
