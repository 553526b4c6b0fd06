// Lines of PeerSums on the CPU, and sums of their words.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <bit>
#include <thread>

#include "core/dtype.h"
#include "ops/peer.h"

namespace hadal::ops::cpu {

// Of one sum, the next of this rank.
class PeerLines {
 public:
  explicit PeerLines(const PeerSums& sums) : sums_(sums) {
    uint32_t* const head = head_of(sums.view.place);
    number_ = *head == ~0u ? 2 : *head + 1;
    *head = number_;
  }
  // This rank's word for another one.
  void put(int64_t to, int64_t line, uint32_t word) const {
    at(to, sums_.view.place, line)
        .store(static_cast<uint64_t>(number_) << 32 | word, std::memory_order_relaxed);
  }
  // Waits for another one's word; false where sums have to end.
  bool get(int64_t from, int64_t line, uint32_t* word) const {
    for (;;) {
      const uint64_t got = at(sums_.view.place, from, line).load(std::memory_order_relaxed);
      *word = static_cast<uint32_t>(got);
      if (got >> 32 == number_) return true;
      if (sums_.stop != nullptr &&
          std::atomic_ref<int>(*const_cast<int*>(sums_.stop)).load(std::memory_order_relaxed) != 0)
        return false;
      std::this_thread::yield();
    }
  }

 private:
  uint32_t* head_of(int64_t rank) const {
    return static_cast<uint32_t*>(sums_.view.window[static_cast<size_t>(rank)]);
  }
  std::atomic_ref<uint64_t> at(int64_t window, int64_t from, int64_t line) const {
    auto* const lines =
        reinterpret_cast<uint64_t*>(reinterpret_cast<char*>(head_of(window)) + kPeerSumsHead);
    return std::atomic_ref<uint64_t>(
        lines[((number_ & 1) * sums_.view.size + from) * sums_.lines + line]);
  }

  const PeerSums& sums_;
  uint32_t number_ = 0;
};

// The sum of words of one f32, or of two bf16 that are added in f32 and rounded once.
class WordSum {
 public:
  explicit WordSum(DType dtype) : is_f32_(dtype == DType::kF32) {}
  void add(uint32_t word) {
    for (int j = 0; j < (is_f32_ ? 1 : 2); ++j) {
      const float term = std::bit_cast<float>(is_f32_ ? word : word >> 16 * j << 16);
      total_[j] = is_first_ ? term : total_[j] + term;
    }
    is_first_ = false;
  }
  uint32_t word() const {
    if (is_f32_) return std::bit_cast<uint32_t>(total_[0]);
    return static_cast<uint32_t>(to_bf16(total_[0]).bits) |
           static_cast<uint32_t>(to_bf16(total_[1]).bits) << 16;
  }

 private:
  bool is_f32_, is_first_ = true;
  float total_[2] = {};
};

}  // namespace hadal::ops::cpu
