// StepChannel: the number of words, then the words.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/step_channel.h"

namespace hadal {
namespace {

constexpr uint32_t kCountTag = 101, kWordsTag = 102, kMeetTag = 103;

}  // namespace

void StepChannel::meet() {
  world_.at("wait", "all to be ready");
  std::vector<Parcel> there, back;
  const auto add = [&](int peer, bool send) {
    there.push_back({.send = send, .peer = peer, .data = nullptr, .bytes = 0, .tag = kMeetTag});
    back.push_back({.send = !send, .peer = peer, .data = nullptr, .bytes = 0, .tag = kMeetTag});
  };
  if (world_.rank() > 0) add(0, true);
  for (int r = 1; world_.rank() == 0 && r < world_.size(); ++r) add(r, false);
  world_.exchange(there, Patience::kForever);
  world_.exchange(back, Patience::kForever);
}

void StepChannel::say(const std::vector<int32_t>& words) {
  // Exchanges do not change what is sent.
  uint64_t count = words.size();
  auto* data = const_cast<int32_t*>(words.data());
  std::vector<Parcel> parcels;
  for (int r = 1; r < world_.size(); ++r) {
    parcels.push_back(
        {.send = true, .peer = r, .data = &count, .bytes = sizeof(count), .tag = kCountTag});
    if (count > 0)
      parcels.push_back({.send = true,
                         .peer = r,
                         .data = data,
                         .bytes = words.size() * sizeof(int32_t),
                         .tag = kWordsTag});
  }
  world_.exchange(parcels);
}

std::vector<int32_t> StepChannel::hear() {
  world_.at("wait", "next step");
  uint64_t count = 0;
  Parcel parcel{.send = false, .peer = 0, .data = &count, .bytes = sizeof(count), .tag = kCountTag};
  world_.exchange({&parcel, 1}, Patience::kForever);
  std::vector<int32_t> words(count);
  if (count == 0) return words;
  parcel = {.send = false,
            .peer = 0,
            .data = words.data(),
            .bytes = count * sizeof(int32_t),
            .tag = kWordsTag};
  world_.exchange({&parcel, 1});
  return words;
}

}  // namespace hadal
