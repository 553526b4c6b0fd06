// A small training run of the built `hadal`: a text, a tokenizer of it, and a config of a few
// steps.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <filesystem>

#include "tests/cli/run.h"

namespace hadal::test {

namespace fs = std::filesystem;

inline constexpr const char* kTrainConfig = "configs/resume_check.json";

// A text, a tokenizer of it, and a run of a few small steps.
class TrainFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string text;
    uint32_t state = 7;
    for (int i = 0; i < 4000; ++i) {
      state = state * 1664525U + 1013904223U;
      text += static_cast<char>('a' + (state >> 16) % 9);
      text += i % 11 == 10 ? ".\n" : (state >> 24) % 2 == 0 ? " " : "";
    }
    write_text(dir_ / "text.txt", text);
    const Result r = run({"tokenizer", "train", "--input", dir_ / "text.txt", "--vocab-size", "280",
                          "--output", dir_ / "tokenizer"});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  std::string output() const { return dir_ / "out"; }
  Arguments train(const Arguments& more = {}) const {
    Arguments all = {"train", kTrainConfig};
    for (const std::string& assignment :
         {"data.text=\"" + dir_ / "text.txt\"", "data.tokenizer=\"" + dir_ / "tokenizer\"",
          "train.output=\"" + output() + "\"", std::string("train.sequence_length=16"),
          std::string("train.batch_sequences=2"), std::string("train.micro_batch_sequences=1"),
          std::string("train.checkpoint_every=2"), std::string("train.threads=1")})
      all.insert(all.end(), {"--set", assignment});
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  static Arguments set(const std::string& assignment) { return {"--set", assignment}; }
  // The checkpoint that `latest` points to; "" if there is none.
  std::string latest() const {
    std::error_code error;
    return fs::read_symlink(output() + "/checkpoints/latest", error).string();
  }
  // The error of generating from the newest checkpoint; "" if it works.
  std::string error_of_generate() const {
    const Result r =
        run({"generate", "--model", output(), "--prompt-ids", "5", "--max-tokens", "2"});
    return r.status == 0 ? "" : r.err;
  }
  const TempDir dir_;
};

inline std::string last_line(const std::string& text) {
  const size_t end = text.find_last_not_of('\n');
  const size_t begin = text.rfind('\n', end);
  return text.substr(begin == std::string::npos ? 0 : begin + 1, end - begin);
}

inline int64_t lines_of(const std::string& path) {
  const std::string text = read_text(path);
  return std::count(text.begin(), text.end(), '\n');
}

}  // namespace hadal::test
