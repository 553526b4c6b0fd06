// hadal's help and its refusals of command lines, by their exact words.
// SPDX-License-Identifier: Apache-2.0
#include "tests/cli/run.h"

namespace hadal::test {
namespace {

class Help : public ::testing::TestWithParam<const char*> {};

Arguments words(const std::string& text) {
  Arguments list;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    list.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return list;
}

TEST_P(Help, HasAnExample) {
  Arguments arguments = words(GetParam());
  arguments.emplace_back("--help");
  const Result r = run(arguments);
  EXPECT_EQ(r.status, 0);
  EXPECT_EQ(r.err, "");
  EXPECT_NE(r.out.find(std::string("Example: hadal ") + GetParam()), std::string::npos) << r.out;
}

INSTANTIATE_TEST_SUITE_P(All, Help,
                         ::testing::Values("train", "generate", "chat", "serve", "eval", "verify",
                                           "info", "init", "check", "env", "tokenizer train",
                                           "tokenizer encode", "tokenizer decode",
                                           "tokenizer bench", "bench serve", "bench frontend"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name)
                             if (c == ' ') c = '_';
                           return name;
                         });

TEST(Usage, ListsEverySubcommand) {
  const Result r = run({"--help"});
  EXPECT_EQ(r.status, 0);
  for (const char* name : {"train", "generate", "chat", "serve", "eval", "verify", "info", "init",
                           "check", "tokenizer", "env"})
    EXPECT_NE(r.out.find(std::string("\n  ") + name + " "), std::string::npos) << name;
}

TEST(Usage, PrintsTheVersion) {
  const Result r = run({"--version"});
  EXPECT_EQ(r.status, 0);
  EXPECT_EQ(r.out, std::string(HADAL_VERSION) + "\n");
}

void expect_usage(const Arguments& arguments, const std::string& message) {
  const Result r = run(arguments);
  EXPECT_EQ(r.status, 2);
  EXPECT_EQ(r.out, "");
  EXPECT_EQ(r.err, "hadal: " + message + "\n");
}

TEST(Usage, RefusesWhatItDoesNotKnow) {
  expect_usage({}, "A subcommand is required; see: hadal --help");
  expect_usage({"frobnicate"}, "there is no subcommand frobnicate; see: hadal --help");
  expect_usage({"--nope"}, "there is no option --nope; see: hadal --help");
  expect_usage({"info", "--nope"}, "unexpected argument --nope; see: hadal info --help");
  expect_usage({"tokenizer"}, "A subcommand is required; see: hadal tokenizer --help");
}

TEST(Usage, NamesWhatIsMissing) {
  expect_usage({"train"}, "config is required; see: hadal train --help");
  expect_usage({"generate", "--prompt", "x"}, "--model is required; see: hadal generate --help");
  expect_usage({"tokenizer", "decode", "--ids", "1"},
               "--tokenizer is required; see: hadal tokenizer decode --help");
  expect_usage({"generate", "--model", "x", "--max-tokens", "many"},
               "Could not convert: --max-tokens = many; see: hadal generate --help");
}

TEST(Usage, NamesEveryEnvironmentVariable) {
  const Result r = run({"env"});
  EXPECT_EQ(r.status, 0);
  for (const char* name : {"HADAL_ISA", "HADAL_TRACE", "HADAL_SABOTAGE"})
    EXPECT_NE(r.out.find(name), std::string::npos) << name;
}

TEST(Usage, RefusesABadEnvironmentVariable) {
  ::setenv("HADAL_ISA", "sse", 1);
  expect_refused({"generate", "--model", "tests/goldens/base", "--prompt-ids", "1"},
                 "HADAL_ISA is 'sse'; use one of: portable, avx2, avx512");
  ::unsetenv("HADAL_ISA");
}

}  // namespace
}  // namespace hadal::test
