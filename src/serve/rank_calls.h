// What the leader of several ranks announces beside calls of its decoder: steps of a StepRunner,
// and the end.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "model/decoder_call.h"
#include "serve/step_runner.h"

namespace hadal::serve {

// The first word, after those of DecoderCallKind.
enum class RankCall : int32_t {
  kStepRunner = static_cast<int32_t>(DecoderCallKind::kFirstOther),  // the decoder gets one
  kRecord,                                                           // record_steps()
  kLaunch,                                                           // launch()
  kEnd,                                                              // nothing more comes
};

std::vector<int32_t> words_of(RankCall call, int64_t value = 0);
std::vector<int32_t> words_of(const StepRunner::Input& input);

// An input with the pages that it points to.
struct OwnedInput {
  explicit OwnedInput(const std::vector<int32_t>& words);
  std::vector<std::vector<int64_t>> pages;
  StepRunner::Input input;
};

}  // namespace hadal::serve
