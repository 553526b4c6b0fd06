// Bytes to whole characters, text to what is before a stop string.
// SPDX-License-Identifier: Apache-2.0
#include "io/stream_decoder.h"

#include <algorithm>
#include <utility>

#include "io/utf8.h"

namespace hadal::io {
namespace {

constexpr std::string_view kReplacement = "\uFFFD";

// Bytes at the start of `text` that begin a character and may still become one; `complete` when
// they are one. 0: the first byte begins none. Unicode 15, table 3-7: the second byte's range
// depends on the first.
size_t prefix_length(std::string_view text, bool& complete) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  complete = first < 0x80;
  if (complete) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;
  const size_t need = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  const uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  size_t n = 1;
  if (text.size() > 1 && byte(1) >= low && byte(1) <= high) {
    for (n = 2; n < need && n < text.size() && (byte(n) & 0xC0) == 0x80;) ++n;
  }
  complete = n == need;
  return n;
}

}  // namespace

std::string StreamDecoder::push(int32_t id) {
  return id < tokenizer_.vocab_size() ? push_bytes(tokenizer_.bytes(id)) : std::string();
}

std::string StreamDecoder::push_bytes(std::string_view bytes) {
  held_ += bytes;
  std::string out;
  std::string_view rest = held_;
  while (!rest.empty()) {
    const size_t valid = utf8_valid_prefix(rest);
    out += rest.substr(0, valid);
    rest.remove_prefix(valid);
    if (rest.empty()) break;
    bool complete = false;
    const size_t n = prefix_length(rest, complete);
    if (n == rest.size()) break;  // may go on with the next token
    // One mark for each longest start of a character, as Unicode advises.
    out += kReplacement;
    rest.remove_prefix(std::max<size_t>(n, 1));
  }
  held_ = std::string(rest);
  return out;
}

std::string StreamDecoder::finish() {
  const bool incomplete = !held_.empty();
  held_.clear();
  return incomplete ? std::string(kReplacement) : std::string();
}

StopScanner::StopScanner(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

std::string StopScanner::push(std::string_view text) {
  if (stopped_) return {};
  held_ += text;
  // The one that is complete first, so that it does not matter how the text was cut.
  size_t begin = std::string::npos, end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos || at + stop.size() > end) continue;
    begin = at + stop.size() < end ? at : std::min(begin, at);
    end = at + stop.size();
  }
  if (begin != std::string::npos) {
    stopped_ = true;
    std::string out = held_.substr(0, begin);
    held_.clear();
    return out;
  }
  size_t keep = 0;
  for (const std::string& stop : stops_)
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n)
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, out.size());
  return out;
}

std::string StopScanner::finish() { return std::exchange(held_, {}); }

}  // namespace hadal::io
