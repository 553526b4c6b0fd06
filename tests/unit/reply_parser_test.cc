// Replies to reasoning, content and calls: what is found, and that it does not matter how the text
// was cut.
// SPDX-License-Identifier: Apache-2.0
#include "io/reply_parser.h"

#include <gtest/gtest.h>

#include "core/check.h"
#include "core/rng.h"
#include "io/chat_tokens.h"

namespace hadal::io {
namespace {

using namespace chat_tokens;
using Kind = ReplyParser::Event::Kind;

// "R:...|C:...|0 name:...": everything in order.
std::string text_of(const std::vector<ReplyParser::Event>& events) {
  std::string text;
  Kind last = Kind::kCall;
  for (const auto& e : events) {
    if (e.kind == Kind::kCall) {
      text += concat("|", e.call, " ", e.text, ":");
    } else if (e.kind == Kind::kArguments) {
      EXPECT_TRUE(last == Kind::kCall || last == Kind::kArguments);
      text += e.text;
    } else {
      if (e.kind != last) text += e.kind == Kind::kReasoning ? "|R:" : "|C:";
      text += e.text;
    }
    last = e.kind;
  }
  return text;
}

std::string parse(const ReplyParser::Settings& settings, const std::vector<std::string>& parts) {
  ReplyParser parser(settings);
  std::vector<ReplyParser::Event> events;
  for (const std::string& part : parts)
    for (auto& e : parser.push(part)) events.push_back(std::move(e));
  for (auto& e : parser.finish()) events.push_back(std::move(e));
  return text_of(events);
}

// Whole, byte by byte, at every single place, and at random places.
std::string parse_every_way(const ReplyParser::Settings& settings, const std::string& text) {
  const std::string want = parse(settings, {text});
  std::vector<std::string> bytes;
  for (char c : text) bytes.emplace_back(1, c);
  EXPECT_EQ(parse(settings, bytes), want);
  for (size_t at = 0; at <= text.size(); ++at)
    EXPECT_EQ(parse(settings, {text.substr(0, at), text.substr(at)}), want) << "cut at " << at;
  const Rng rng(text.size(), stream_id("cuts"));
  for (uint64_t round = 0; round < 50; ++round) {
    std::vector<std::string> parts;
    for (size_t at = 0; at < text.size();) {
      const size_t n = 1 + rng.u64(round * 1000 + parts.size()) % 9;
      parts.push_back(text.substr(at, n));
      at += n;
    }
    EXPECT_EQ(parse(settings, parts), want);
  }
  return want;
}

std::string fenced(const std::string& name, const std::string& arguments) {
  return concat(kCall, "function", kSep, name, "\n```json\n", arguments, "\n```", kCallEnd);
}
std::string bare(const std::string& name, const std::string& arguments) {
  return concat(kCall, name, kSep, arguments, kCallEnd);
}

TEST(ReplyParser, PlainContent) {
  const ReplyParser::Settings v3{.family = ChatFamily::kV3, .tools = true};
  EXPECT_EQ(parse_every_way(v3, ""), "");
  EXPECT_EQ(parse_every_way(v3, "Hello <b>there</b> \n```json\n{}\n```"),
            "|C:Hello <b>there</b> \n```json\n{}\n```");
  // Without tools their tokens are text; V3 does not reason.
  EXPECT_EQ(parse_every_way({.family = ChatFamily::kV3}, concat("<think>", kCalls)),
            concat("|C:<think>", kCalls));
}

TEST(ReplyParser, Reasoning) {
  const ReplyParser::Settings opened{.family = ChatFamily::kR1, .in_reasoning = true};
  EXPECT_EQ(parse_every_way(opened, "why\n</think>\n\nbecause </think> so"),
            "|R:why\n|C:\n\nbecause </think> so");
  EXPECT_EQ(parse_every_way(opened, "cut off </thin"), "|R:cut off </thin");
  const ReplyParser::Settings itself{.family = ChatFamily::kR1};
  EXPECT_EQ(parse_every_way(itself, "\n<think>hm</think>yes"), "|R:hm|C:yes");
  EXPECT_EQ(parse_every_way(itself, "<thin air"), "|C:<thin air");
  EXPECT_EQ(parse_every_way(itself, "<thin"), "|C:<thin");
  EXPECT_EQ(parse_every_way(itself, "no <think>ing"), "|C:no <think>ing");
}

TEST(ReplyParser, Calls) {
  const std::string a = R"({"city": "Paris"})", b = "{\n  \"x\": \"```\"\n}";
  for (ChatFamily family : {ChatFamily::kV3, ChatFamily::kR1, ChatFamily::kV31}) {
    const auto call = family == ChatFamily::kV31 ? bare : fenced;
    const ReplyParser::Settings s{.family = family, .tools = true};
    EXPECT_EQ(parse_every_way(s, concat("Let me see.", kCalls, call("weather", a), "\n",
                                        call("f", b), kCallsEnd, " ")),
              concat("|C:Let me see.|0 weather:", a, "|1 f:", b, "|C: "));
    // Without the token that opens the list, and cut off in the arguments.
    const std::string cut = call("g", "{\"y\": 1");
    EXPECT_EQ(parse_every_way(s, cut.substr(0, cut.size() - kCallEnd.size() -
                                                   (family == ChatFamily::kV31 ? 0 : 4))),
              "|0 g:{\"y\": 1");
    const ReplyParser::Settings thinks{.family = family, .in_reasoning = true, .tools = true};
    EXPECT_EQ(parse_every_way(thinks, concat("hm", kThinkEnd, kCalls, call("f", "{}"), kCallsEnd)),
              "|R:hm|0 f:{}");
  }
}

// What is no call is not lost.
TEST(ReplyParser, BrokenCallsAreText) {
  const ReplyParser::Settings s{.family = ChatFamily::kV3, .tools = true};
  EXPECT_EQ(parse_every_way(s, concat("a", kCalls, kCall, "function")),
            concat("|C:a", kCall, "function"));
  EXPECT_EQ(parse_every_way(s, concat(kCalls, "why?", fenced("f", "{}"), kCallsEnd)),
            "|C:why?|0 f:{}");
  const std::string long_name(2000, 'x');
  EXPECT_EQ(parse_every_way(s, concat(kCalls, kCall, long_name)), concat("|C:", kCall, long_name));
  // Ended by its token alone.
  EXPECT_EQ(parse_every_way(s, concat(kCalls, kCall, "function", kSep, "f\n```json\n{}", kCallEnd)),
            "|0 f:{}");
}

// Random sequences of pieces of all markers: streamed equals whole, and text outside of markers is
// never lost.
TEST(ReplyParser, RandomPieces) {
  const std::vector<std::string> pieces = {std::string(kThink),
                                           std::string(kThinkEnd),
                                           std::string(kCalls),
                                           std::string(kCallsEnd),
                                           std::string(kCall),
                                           std::string(kCallEnd),
                                           std::string(kSep),
                                           "\n```json\n",
                                           "\n```",
                                           "```",
                                           "name",
                                           "{\"a\": 1}",
                                           "\n",
                                           " ",
                                           "<",
                                           "\xEF\xBD\x9C",
                                           "\xEF\xBD",
                                           "function"};
  for (uint64_t seed = 0; seed < 400; ++seed) {
    const Rng rng(seed, stream_id("pieces"));
    std::string text;
    for (uint64_t i = 0; i < 4 + seed % 12; ++i) text += pieces[rng.u64(i) % pieces.size()];
    for (ChatFamily family : {ChatFamily::kV3, ChatFamily::kR1, ChatFamily::kV31}) {
      const ReplyParser::Settings s{
          .family = family, .in_reasoning = seed % 3 == 0, .tools = seed % 5 != 0};
      const std::string want = parse(s, {text});
      for (uint64_t round = 0; round < 4; ++round) {
        std::vector<std::string> parts;
        for (size_t at = 0; at < text.size();) {
          const size_t n = round == 0 ? 1 : 1 + rng.u64(1000 + at * 7 + round) % 12;
          parts.push_back(text.substr(at, n));
          at += n;
        }
        ASSERT_EQ(parse(s, parts), want) << text;
      }
    }
  }
}

}  // namespace
}  // namespace hadal::io
