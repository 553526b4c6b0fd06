// Data: the cut, the shuffle, and that every token counts once.
// SPDX-License-Identifier: Apache-2.0
#include "train/data.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "io/atomic.h"
#include "io/bpe_train.h"
#include "io/utf8.h"
#include "tests/unit/expect_error.h"

namespace hadal::train {
namespace {

using hadal::testing::TempDir;

constexpr int32_t kBos = 7;

// Tokens 1000, 1001, ...: each tells its place.
TextData numbered(int64_t train, int64_t held_out) {
  TextData data;
  data.bos = kBos;
  data.train.resize(static_cast<size_t>(train));
  data.held_out.resize(static_cast<size_t>(held_out));
  std::iota(data.train.begin(), data.train.end(), 1000);
  std::iota(data.held_out.begin(), data.held_out.end(), 1000);
  return data;
}

bool same(const std::vector<Sequence>& a, const std::vector<Sequence>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.ids == y.ids && x.targets == y.targets;
  });
}

TEST(TrainingBytes, NeverInsideACharacter) {
  const std::string text = "a\u00e9\u4f60\U0001f600b\u00e9\u4f60\U0001f600";
  for (int percent = 0; percent <= 90; ++percent) {
    const size_t cut = training_bytes(text, percent / 100.0);
    ASSERT_EQ(io::utf8_valid_prefix(text.substr(0, cut)), cut) << percent;
    ASSERT_EQ(io::utf8_valid_prefix(text.substr(cut)), text.size() - cut) << percent;
    // At most one character more is held out than asked for.
    const double held_out = static_cast<double>(text.size() - cut);
    ASSERT_GE(held_out, static_cast<double>(text.size()) * percent / 100.0 - 1.0);
    ASSERT_LE(held_out, static_cast<double>(text.size()) * percent / 100.0 + 3.0);
  }
}

TEST(TrainingBytes, Edges) {
  EXPECT_EQ(training_bytes("", 0.5), 0u);
  EXPECT_EQ(training_bytes("abcdefghij", 0.0), 10u);
  EXPECT_EQ(training_bytes("abcdefghij", 0.3), 7u);
  EXPECT_EQ(training_bytes("\x80\x80\x80\x80", 0.5), 0u);  // no character begins anywhere
}

TEST(LoadText, CutsEncodesAndCounts) {
  const TempDir dir;
  const std::string text = "the cat sat on the mat; the cat sat";
  io::write_file_atomic(dir / "t.txt", text);
  const io::Tokenizer tokenizer = io::train_bpe(text, 262);
  const TextData data = load_text(dir / "t.txt", tokenizer, 0.2, kBos);
  EXPECT_EQ(data.train_bytes, 28);
  EXPECT_EQ(data.held_out_bytes, 7);
  EXPECT_EQ(tokenizer.decode(data.train), text.substr(0, 28));
  EXPECT_EQ(tokenizer.decode(data.held_out), text.substr(28));
  EXPECT_EQ(data.bos, kBos);
}

TEST(LoadText, EmptyOrMissing) {
  const TempDir dir;
  io::write_file_atomic(dir / "empty.txt", "");
  const io::Tokenizer tokenizer = io::train_bpe("x", 258);
  EXPECT_ERROR(load_text(dir / "empty.txt", tokenizer, 0.1, kBos),
               dir / "empty.txt" + " is empty; give a text to train on");
  EXPECT_ERROR(load_text(dir / "none.txt", tokenizer, 0.1, kBos),
               "cannot open " + dir / "none.txt" + ": No such file or directory; check the path");
}

TEST(TrainingBatch, ASequencePredictsTheTextAfterTheDocumentToken) {
  for (const Sequence& s : training_batch(numbered(1000, 0), 1, 0, 20, 16)) {
    ASSERT_EQ(s.ids.size(), 16u);
    ASSERT_EQ(s.targets.size(), 16u);
    EXPECT_EQ(s.ids[0], kBos);
    for (size_t i = 0; i < 16; ++i) ASSERT_EQ(s.targets[i], s.targets[0] + static_cast<int32_t>(i));
    for (size_t i = 1; i < 16; ++i) ASSERT_EQ(s.ids[i], s.targets[i - 1]);
  }
}

TEST(TrainingBatch, EachTokenIsATargetAtMostOnceAnEpoch) {
  for (int64_t length : {2, 3, 16, 33})
    for (int64_t size : {length, length + 1, 2 * length, 2 * length + 1, int64_t{250},
                         64 * length + 1, 65 * length}) {
      const TextData data = numbered(size, 0);
      const int64_t windows = std::max<int64_t>(1, (size - 1) / length);
      for (int64_t epoch = 0; epoch < 3; ++epoch) {
        std::set<int32_t> targets;
        int64_t count = 0;
        for (const Sequence& s : training_batch(data, 5, epoch * windows, windows, length))
          for (int32_t target : s.targets) {
            ASSERT_GE(target, 1000);
            ASSERT_LT(target, 1000 + size);
            targets.insert(target);
            ++count;
          }
        ASSERT_EQ(static_cast<int64_t>(targets.size()), count);
        ASSERT_EQ(count, windows * length);
      }
    }
}

// The order of an epoch's windows is a permutation of them, for every number of windows.
TEST(TrainingBatch, TheOrderIsABijection) {
  for (int64_t windows = 1; windows <= 300; ++windows) {
    const TextData data = numbered(2 * windows + 1, 0);
    std::set<int32_t> first;
    for (const Sequence& s : training_batch(data, 3, 0, windows, 2)) first.insert(s.targets[0]);
    ASSERT_EQ(static_cast<int64_t>(first.size()), windows);
    ASSERT_LE(*first.rbegin() - *first.begin(), 2 * (windows - 1));
  }
}

TEST(TrainingBatch, APureFunctionOfSeedAndPosition) {
  const TextData data = numbered(500, 0);
  const std::vector<Sequence> all = training_batch(data, 9, 0, 200, 8);
  for (int64_t position : {0, 1, 61, 62, 63, 150}) {
    const auto some = training_batch(data, 9, position, 7, 8);
    const auto at = all.begin() + position;
    EXPECT_TRUE(same(some, {at, at + 7})) << position;
  }
  EXPECT_TRUE(training_batch(data, 9, 5, 0, 8).empty());
  EXPECT_FALSE(same(training_batch(data, 10, 0, 20, 8), {all.begin(), all.begin() + 20}));
}

TEST(TrainingBatch, EpochsDifferInOrderAndInWhereWindowsBegin) {
  const TextData data = numbered(517, 0);  // 64 windows of 8, and 5 tokens of slack
  std::set<std::vector<int32_t>> orders;
  std::set<int32_t> shifts;
  for (int64_t epoch = 0; epoch < 40; ++epoch) {
    std::vector<int32_t> order;
    for (const Sequence& s : training_batch(data, 1, 64 * epoch, 64, 8))
      order.push_back(s.targets[0]);
    shifts.insert(*std::min_element(order.begin(), order.end()) - 1000);
    EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
    orders.insert(order);
  }
  EXPECT_EQ(orders.size(), 40u);
  EXPECT_EQ(shifts, (std::set<int32_t>{0, 1, 2, 3, 4, 5}));
}

TEST(TrainingBatch, TextShorterThanASequence) {
  EXPECT_EQ(training_batch(numbered(16, 0), 1, 0, 1, 16).size(), 1u);
  EXPECT_ERROR(training_batch(numbered(15, 0), 1, 0, 1, 16),
               "the training text has 15 tokens, fewer than one sequence of 16; give more text or "
               "lower train.sequence_length");
  EXPECT_ERROR(training_batch(numbered(0, 0), 1, 0, 1, 2),
               "the training text has 0 tokens, fewer than one sequence of 2; give more text or "
               "lower train.sequence_length");
}

TEST(HeldOutWindows, EachTokenIsATargetOnce) {
  for (int64_t length : {1, 2, 7, 32})
    for (int64_t stride : {int64_t{1}, (length + 1) / 2, length})
      for (int64_t size : {int64_t{0}, int64_t{1}, length - 1, length, length + 1, int64_t{100}}) {
        std::map<int32_t, int> times;
        for (const Sequence& s : held_out_windows(numbered(0, size), length, stride)) {
          ASSERT_EQ(s.ids.size(), s.targets.size());
          ASSERT_LE(static_cast<int64_t>(s.ids.size()), length);
          ASSERT_EQ(s.ids[0], kBos);
          ASSERT_EQ((s.targets.front() - 1000) % stride == 0 || s.targets.front() == -1, true);
          for (size_t i = 0; i < s.targets.size(); ++i) {
            if (s.targets[i] < 0) continue;
            ++times[s.targets[i]];
            // What it is predicted from is the token before it.
            ASSERT_EQ(s.ids[i], i == 0 ? kBos : s.targets[i] - 1);
          }
        }
        ASSERT_EQ(static_cast<int64_t>(times.size()), size);
        for (const auto& [token, count] : times) ASSERT_EQ(count, 1) << token;
      }
}

// With half the length as stride, every token but those of the first window sees half a window.
TEST(HeldOutWindows, OverlapGivesContext) {
  const auto windows = held_out_windows(numbered(0, 100), 16, 8);
  for (size_t w = 1; w < windows.size(); ++w)
    for (size_t i = 0; i < windows[w].targets.size(); ++i)
      if (windows[w].targets[i] >= 0) {
        ASSERT_GE(i, 8u);
      }
}

}  // namespace
}  // namespace hadal::train
