// hadal tokenizer: lines of JSON, the bench, and what they refuse.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "io/bpe_train.h"
#include "tests/cli/run.h"

namespace hadal::test {
namespace {

using nlohmann::json;

class TokenizerCommand : public ::testing::Test {
 protected:
  TokenizerCommand() { tokenizer_.save(path_); }
  Arguments with(const char* command, const Arguments& more) const {
    Arguments all = {"tokenizer", command, "--tokenizer", path_};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  std::string file(const std::string& text) const {
    write_text(dir_ / "lines.jsonl", text);
    return dir_ / "lines.jsonl";
  }

  const TempDir dir_;
  const std::string path_ = dir_ / "tokenizer.json";
  const io::Tokenizer tokenizer_ = io::train_bpe("the other thing there and then", 260);
};

TEST_F(TokenizerCommand, EncodesAndDecodesLines) {
  const std::string lines = "\"the other\"\n\"\"\n\"a\\nb \\u4f60\"\n[255, 116, 104, 228]\n";
  const Result r = run(with("encode", {"--json-lines", file(lines)}));
  ASSERT_EQ(r.status, 0) << r.err;
  std::string expected;
  for (const char* text : {"the other", "", "a\nb \u4f60", "\xffth\xe4"})
    expected += json(tokenizer_.encode(text)).dump() + "\n";
  EXPECT_EQ(r.out, expected);
  const Result back = run(with("decode", {"--json-lines", file(r.out)}));
  EXPECT_EQ(back.out, "\"the other\"\n\"\"\n\"a\\nb \u4f60\"\n[255,116,104,228]\n");
}

TEST_F(TokenizerCommand, RefusesOtherLines) {
  const auto refused = [&](const char* command, const std::string& lines, const std::string& what) {
    const std::string path = file(lines);
    expect_refused(with(command, {"--json-lines", path}), path + ":" + what);
  };
  refused("encode", "\"a\"\n3\n", "2 is number; a text, or a list of bytes, is needed");
  refused("encode", "[256]", "1 holds 256; a text, or a list of bytes, is needed");
  refused("encode", "[-1]", "1 holds -1; a text, or a list of bytes, is needed");
  refused("decode", "[1.5]", "1 holds 1.5; a list of token ids is needed");
  refused("decode", "\"a\"", "1 is string; a list of token ids is needed");
  expect_refused(with("encode", {"--text", "a", "--file", "b"}),
                 "give one of --text, --file and --json-lines");
  expect_refused(with("decode", {}), "give --ids or --json-lines");
  expect_refused(with("decode", {"--ids", "999"}),
                 "there is no token 999; the vocabulary has ids 0 to 259");
}

TEST_F(TokenizerCommand, BenchPrintsARowForEachText) {
  const std::string text = file("the other thing there and then\n");
  const Result r = run(with("bench", {"--text", text, "--text", path_, "--repeat", "3", "--json"}));
  ASSERT_EQ(r.status, 0) << r.err;
  const json row = json::parse(r.out.substr(0, r.out.find('\n')));
  EXPECT_EQ(row["text"], text);
  EXPECT_EQ(row["bytes"], 31);
  EXPECT_EQ(row["tokens"], tokenizer_.encode("the other thing there and then\n").size());
  EXPECT_EQ(row["repeat"], 3);
  EXPECT_GT(row["encode_mb_per_cpu_second"]["median"], 0.0);
  EXPECT_GE(row["decode_mb_per_cpu_second"]["p90"], row["decode_mb_per_cpu_second"]["p10"]);
  EXPECT_EQ(std::count(r.out.begin(), r.out.end(), '\n'), 2);
  EXPECT_NE(run(with("bench", {"--text", text})).out.find("31 bytes"), std::string::npos);
  expect_refused(with("bench", {"--text", text, "--repeat", "0"}),
                 "--repeat is 0; allowed: 1 to 1000");
  expect_refused(with("bench", {"--text", file("")}), file("") + " is empty; give a text");
}

}  // namespace
}  // namespace hadal::test
