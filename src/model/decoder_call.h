// DecoderCall: what a decoder is about to do, as words that another rank can do the same by.
//
//   T new tokens   S sequences
//
// Words are small: tokens, places and pages. States that a call reads follow from the leader by
// broadcast() (tensor_group.h).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "model/config.h"

namespace hadal {

// Of each rank, where ranks split sequences.
struct DecoderLimits {
  int64_t max_seqs = 1;
  int64_t max_tokens = 4096;      // of one sequence
  int64_t max_step_tokens = 256;  // T of one step
  int64_t num_mtp = 0;            // MTP modules to keep a cache for
  int64_t num_pages = 0;          // of the cache; 0: all sequences at their longest
  CacheFormat cache = CacheFormat::kCompute;
};

// Says words to the other ranks; they have them in order.
using Announce = std::function<void(const std::vector<int32_t>& words)>;

// The first word of what is announced. Those from kFirstOther on are no calls of a decoder.
enum class DecoderCallKind : int32_t { kMake, kForward, kMtp, kLogits, kCopyRows, kFirstOther };

struct DecoderCall {
  DecoderCallKind kind = DecoderCallKind::kForward;
  DecoderLimits limits = {};                       // kMake
  int64_t module = 0;                              // kMtp
  int64_t num_rows = 0;                            // kLogits: of the states; kCopyRows: of a page
  int64_t from = 0, to = 0, home = 0;              // kCopyRows: pages, and whose
  std::vector<int32_t> ids = {};                   // [T]   kForward, kMtp: tokens
  std::vector<int64_t> starts = {}, lengths = {};  // [S]
  std::vector<std::vector<int64_t>> pages = {};    // [S]
  std::vector<int64_t> homes = {};                 // [S] ranks; empty: of all

  std::vector<int32_t> words() const;
  // An Error if the words are none.
  static DecoderCall of(const std::vector<int32_t>& words);
};

// Words one after another, and back; for those who announce more than calls.
class WordWriter {
 public:
  void put(int64_t value);  // that fits 32 bits
  void put64(uint64_t value);
  void put_list(const std::vector<int64_t>& values);
  void put_list(const std::vector<int32_t>& values);
  std::vector<int32_t> take() { return std::move(words_); }

 private:
  std::vector<int32_t> words_;
};
class WordReader {
 public:
  explicit WordReader(const std::vector<int32_t>& words) : words_(words) {}
  int64_t get();
  uint64_t get64();
  template <class T>
  std::vector<T> get_list() {
    std::vector<T> values(count());
    for (T& value : values) value = static_cast<T>(get());
    return values;
  }
  void check_end() const;

 private:
  size_t count();

  const std::vector<int32_t>& words_;
  size_t next_ = 0;
};

}  // namespace hadal
