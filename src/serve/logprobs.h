// Log probabilities of tokens, on the device that has the logits.
//
//   n rows   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "core/context.h"
#include "serve/request.h"

namespace hadal::serve {

// For each row of logits [n, V] f32 or f64: that of tokens[i], and the num_top[i] most probable
// ones.
std::vector<TokenLogprob> logprobs_of(Context& ctx, const Tensor& logits,
                                      const std::vector<int32_t>& tokens,
                                      const std::vector<int64_t>& num_top);

}  // namespace hadal::serve
