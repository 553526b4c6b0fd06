// Data: splitting, shuffling and windows.
// SPDX-License-Identifier: Apache-2.0
#include "train/data.h"

#include <algorithm>
#include <limits>

#include "core/check.h"
#include "core/rng.h"
#include "io/atomic.h"
#include "train/shuffle.h"

namespace hadal::train {
namespace {

// Targets [begin, begin + length) of `tokens`; of them only those from `first_target` on count.
Sequence window(const std::vector<int32_t>& tokens, int32_t bos, int64_t begin, int64_t length,
                int64_t first_target) {
  const auto at = tokens.begin() + begin;
  Sequence s;
  s.ids.push_back(bos);
  s.ids.insert(s.ids.end(), at, at + length - 1);
  s.targets.assign(at, at + length);
  std::fill(s.targets.begin(), s.targets.begin() + (first_target - begin), -1);
  return s;
}

}  // namespace

size_t training_bytes(std::string_view text, double held_out) {
  auto at = text.size() - static_cast<size_t>(static_cast<double>(text.size()) * held_out);
  while (at < text.size() && at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

TextData load_text(const std::string& path, const io::Tokenizer& tokenizer, double held_out,
                   int32_t bos) {
  const std::string text = io::read_file(path, std::numeric_limits<size_t>::max());
  HADAL_CHECK(!text.empty(), path, " is empty; give a text to train on");
  const std::string_view whole = text;
  const size_t cut = training_bytes(whole, held_out);
  TextData data;
  data.bos = bos;
  data.train = tokenizer.encode(whole.substr(0, cut));
  data.held_out = tokenizer.encode(whole.substr(cut));
  data.train_bytes = static_cast<int64_t>(cut);
  data.held_out_bytes = static_cast<int64_t>(whole.size() - cut);
  return data;
}

void check_long_enough(const TextData& data, int64_t length) {
  const auto size = static_cast<int64_t>(data.train.size());
  HADAL_CHECK(size >= length, "the training text has ", size,
              " tokens, fewer than one sequence of ", length,
              "; give more text or lower train.sequence_length");
}

std::vector<Sequence> training_batch(const TextData& data, uint64_t seed, int64_t position,
                                     int64_t count, int64_t length) {
  const auto size = static_cast<int64_t>(data.train.size());
  check_long_enough(data, length);
  const int64_t windows = std::max<int64_t>(1, (size - 1) / length);
  std::vector<Sequence> batch;
  for (int64_t i = position; i < position + count; ++i) {
    const Rng rng(seed + static_cast<uint64_t>(i / windows), stream_id("data.epoch"));
    const auto slack = static_cast<uint64_t>(size - windows * length) + 1;
    const auto shift = static_cast<int64_t>(rng.u64(~uint64_t{0}) % slack);
    const int64_t begin = permute(i % windows, windows, rng) * length + shift;
    batch.push_back(window(data.train, data.bos, begin, length, begin));
  }
  return batch;
}

std::vector<Sequence> held_out_windows(const TextData& data, int64_t length, int64_t stride) {
  const auto size = static_cast<int64_t>(data.held_out.size());
  std::vector<Sequence> windows;
  int64_t counted = 0;
  for (int64_t begin = 0; counted < size; begin += stride) {
    const int64_t n = std::min(length, size - begin);
    windows.push_back(window(data.held_out, data.bos, begin, n, counted));
    counted = begin + n;
  }
  return windows;
}

}  // namespace hadal::train
