// RankStatus: where a rank is, as the others read it: in memory that its host shares, or in a frame
// that it sent to another host.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <string>

namespace hadal {

enum class RankState : uint32_t {
  kStarting,
  kRunning,
  kDone,
  kFailed,   // threw an Error of its own
  kStopped,  // because of another rank
  kDead,     // its process is gone
};

// A few words that one thread writes while others read; a reader may see half of two of them.
class Label {
 public:
  static constexpr size_t kWords = 5;
  void set(const char* text) {
    uint64_t words[kWords] = {};
    std::memcpy(words, text, std::min(std::strlen(text), sizeof(words) - 1));
    for (size_t i = 0; i < kWords; ++i) words_[i].store(words[i], std::memory_order_relaxed);
  }
  std::string get() const {
    uint64_t words[kWords] = {};
    for (size_t i = 0; i < kWords; ++i) words[i] = words_[i].load(std::memory_order_relaxed);
    const char* text = reinterpret_cast<const char*>(words);
    return {text, strnlen(text, sizeof(words))};
  }

 private:
  std::atomic<uint64_t> words_[kWords] = {};
};

inline constexpr size_t kErrorBytes = 512;

// NOTE: zeros are a status, that of a rank that has not begun.
struct RankStatus {
  alignas(64) std::atomic<uint32_t> doorbell{0};  // of the ranks of one host
  std::atomic<uint32_t> state{0};
  std::atomic<uint32_t> has_met{0};  // 1: it needs no other process any more to reach this memory
  std::atomic<uint64_t> beat{0}, progress{0};
  std::atomic<int64_t> steps_begun{0};
  Label what, group;
  char error[kErrorBytes] = {};  // complete before the state says so

  RankState get_state() const {
    return static_cast<RankState>(state.load(std::memory_order_acquire));
  }
  void end(RankState how, const std::string& why) {
    std::strncpy(error, why.c_str(), kErrorBytes - 1);
    state.store(static_cast<uint32_t>(how), std::memory_order_release);
  }
  bool has_ended() const { return get_state() > RankState::kRunning; }
};
static_assert(std::atomic<uint32_t>::is_always_lock_free);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

}  // namespace hadal
