// hadal chat with a random model: a line of standard input is a turn.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "tests/cli/base_copy.h"
#include "tests/unit/base_model.h"

namespace hadal::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// The base model with a tokenizer that has the tokens of a chat.
std::string chat_model(const TempDir& dir) {
  const std::string model = copy_of_base(dir);
  testing::chat_tokenizer().save(model + "/tokenizer.json");
  return model;
}

Arguments chat(const std::string& model) {
  return {"chat", "--model", model, "--chat-template", "deepseek-v3", "--max-tokens",
          "8",    "--seed",  "3"};
}

// A process takes its standard input from this one.
class Input {
 public:
  explicit Input(int fd) : saved_(::dup(STDIN_FILENO)) {
    ::dup2(fd, STDIN_FILENO);
    ::close(fd);
  }
  ~Input() {
    ::dup2(saved_, STDIN_FILENO);
    ::close(saved_);
  }

 private:
  int saved_;
};

Result run_with(const Arguments& arguments, const std::string& lines) {
  const TempDir dir;
  write_text(dir / "in", lines);
  const Input input(::open((dir / "in").c_str(), O_RDONLY));
  return run(arguments);
}

TEST(Chat, AnswersEachLineAndObeysCommands) {
  const TempDir dir;
  const std::string saved = dir / "talk.json", model = chat_model(dir);
  const Result r = run_with(chat(model), "hello\n\n/save " + saved +
                                             "\n/reset\nhello\n/set temperature 0\n/set warmth 1\n"
                                             "/set top_p 2\n/jump\n/exit\nnever\n");
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.err, "");
  const json talk = json::parse(read_text(saved));
  ASSERT_EQ(talk["messages"].size(), 2u);
  EXPECT_EQ(talk["messages"][0]["content"], "hello");
  // Each reply is shown as it is kept; the second run of the turn gives the same.
  const std::string reply = r.out.substr(0, r.out.find("\nsaved to"));
  EXPECT_NE(reply.find(talk["messages"][1]["content"].get<std::string>()), reply.npos);
  EXPECT_EQ(r.out, reply + "\nsaved to " + saved + "\nforgotten\n" + reply +
                       "\ntemperature is 0\n"
                       "there is no setting \"warmth\"; allowed: temperature, top_p, top_k, "
                       "max_tokens, seed, thinking\n"
                       "top_p is \"2\"; allowed: 1e-06 to 1\n"
                       "there is no command /jump; /help lists them\n");
}

TEST(Chat, KeepsTheSystemPrompt) {
  const TempDir dir;
  const std::string saved = dir / "talk.json", model = chat_model(dir);
  const Result r = run_with(chat(model), "/system Be brief.\nhello\nmore\n/save " + saved + "\n");
  EXPECT_EQ(r.status, 0) << r.err;
  const json messages = json::parse(read_text(saved))["messages"];
  ASSERT_EQ(messages.size(), 5u);
  EXPECT_EQ(messages[0]["content"], "Be brief.");
  EXPECT_EQ(messages[3]["content"], "more");
}

TEST(Chat, SpeculationChangesNoReply) {
  const TempDir dir;
  const std::string model = chat_model(dir), lines = "hello\nmore\n/set temperature 0\nand more\n";
  const Result plain = run_with(chat(model), lines);
  ASSERT_EQ(plain.status, 0) << plain.err;
  for (const char* drafts : {"1", "3"}) {
    Arguments arguments = chat(model);
    arguments.insert(arguments.end(), {"--speculate", drafts});
    EXPECT_EQ(run_with(arguments, lines).out, plain.out);
  }
  Arguments arguments = chat(model);
  arguments.insert(arguments.end(), {"--speculate", "17"});
  expect_refused(arguments, "--speculate is 17; allowed: 0 to 16");
}

// A whole talk on ranks that share the model: replies, drafts, commands and the end are those of
// one.
TEST(Chat, RanksShareATalk) {
  const TempDir dir;
  const std::string saved = dir / "talk.json", model = chat_model(dir);
  const std::string lines = "hello\n/system Be brief.\nand more\n/set temperature 0\nmore\n/save " +
                            saved + "\n/reset\nhello\n/exit\nnever\n";
  const Result one = run_with(chat(model), lines);
  ASSERT_EQ(one.status, 0) << one.err;
  const std::string talk = read_text(saved);
  for (const char* drafts : {"0", "2"})
    for (const char* ranks : {"2", "4"}) {
      Arguments arguments = chat(model);
      arguments.insert(arguments.end(), {"--ranks", ranks, "--speculate", drafts});
      const Result some = run_with(arguments, lines);
      EXPECT_EQ(some.status, 0) << some.err;
      EXPECT_EQ(some.out, one.out);
      EXPECT_EQ(read_text(saved), talk);
    }
  setenv("HADAL_SABOTAGE", "die_in_collective", 1);
  Arguments arguments = chat(model);
  arguments.insert(arguments.end(), {"--ranks", "2"});
  const Result dead = run_with(arguments, lines);
  unsetenv("HADAL_SABOTAGE");
  EXPECT_EQ(dead.status, 1);
  EXPECT_NE(dead.err.find("hadal: rank 1 failed at step "), std::string::npos) << dead.err;
}

TEST(Chat, RefusesModelsThatCannotChat) {
  const TempDir dir;
  const std::string model = chat_model(dir);
  const std::string list =
      "deepseek-v3|deepseek-v3-0324|deepseek-r1|deepseek-v3.1|vllm-deepseek-v3|vllm-deepseek-r1|"
      "vllm-deepseek-v3.1";
  expect_refused({"chat", "--model", model},
                 model +
                     "/tokenizer_config.json is missing, so the chat template is unknown; give "
                     "--chat-template " +
                     list);
  io::train_bpe("some words and some more words", 260).save(model + "/tokenizer.json");
  expect_refused(chat(model),
                 concat("the tokenizer has no token ", testing::kChatTokens[0],
                        ", which the chat template deepseek-v3 needs; use a model that was trained "
                        "to chat, or hadal generate"));
  fs::remove(model + "/tokenizer.json");
  expect_refused(chat(model), model +
                                  "/tokenizer.json is missing; copy it from the model, or train "
                                  "one with hadal tokenizer train");
  write_text(model + "/qwen.tiktoken", "");
  expect_refused(chat(model),
                 model +
                     "/qwen.tiktoken is the file of a tiktoken tokenizer, which hadal does not "
                     "read; save it as a byte-level BPE tokenizer.json with Hugging Face "
                     "transformers, if it is one, or choose another model");
}

TEST(Chat, GoesOnAfterOneInterruptAndEndsAtTheSecond) {
  const TempDir dir;
  const std::string log = dir / "log";
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const auto say = [&](const std::string& line) {
    ASSERT_EQ(::write(ends[1], line.data(), line.size()), static_cast<ssize_t>(line.size()));
  };
  const auto shown = [&](const std::string& text) {
    return wait_until([&] { return read_text(log + ".out").find(text) != std::string::npos; });
  };
  const std::string model = chat_model(dir);
  const Input input(ends[0]);
  Child child(chat(model), log);
  say("/reset\n");
  ASSERT_TRUE(shown("forgotten"));
  child.kill(SIGINT);
  ASSERT_TRUE(shown("ctrl-c again or /exit leaves"));
  say("/system x\n");  // a line in between starts the count anew
  ASSERT_TRUE(shown("system prompt set"));
  child.kill(SIGINT);
  ASSERT_TRUE(wait_until([&] {
    const std::string out = read_text(log + ".out");
    const std::string hint = "ctrl-c again";
    return out.find(hint, out.find(hint) + 1) != std::string::npos;
  }));
  child.kill(SIGINT);
  EXPECT_EQ(child.wait(), 130);
  ::close(ends[1]);
}

}  // namespace
}  // namespace hadal::test
