// Log probabilities as the loss has them: a logit less the row's log-sum-exp, in the logits' type.
// SPDX-License-Identifier: Apache-2.0
#include "serve/logprobs.h"

#include <algorithm>

#include "core/transfer.h"
#include "ops/loss.h"
#include "ops/sample.h"

namespace hadal::serve {
namespace {

template <class R>
std::vector<TokenLogprob> logprobs_in(Context& ctx, const Tensor& logits,
                                      const std::vector<int32_t>& tokens,
                                      const std::vector<int64_t>& num_top) {
  const auto [n, V] = HADAL_SHAPE(logits, 2);
  const int64_t K = std::min(V, *std::max_element(num_top.begin(), num_top.end()));
  const DType dtype = logits.dtype();
  Tensor targets, lse, loss, ids, values;
  const Block targets_memory = ctx.memory.take_tensor(DType::kI32, {n}, &targets);
  const Block lse_memory = ctx.memory.take_tensor(dtype, {n}, &lse);
  const Block loss_memory = ctx.memory.take_tensor(dtype, {n}, &loss);
  upload(ctx, tokens, targets);
  ops::cross_entropy_forward(ctx, logits, targets, lse, loss);  // [n]
  Block ids_memory, values_memory;
  std::vector<int32_t> top;
  std::vector<R> top_values;
  if (K > 0) {
    ids_memory = ctx.memory.take_tensor(DType::kI32, {n, K}, &ids);
    values_memory = ctx.memory.take_tensor(dtype, {n, K}, &values);
    ops::top_logits(ctx, logits, ids, values);  // [n, K]
    top = download<int32_t>(ctx, ids);
    top_values = download<R>(ctx, values);
  }
  const std::vector<R> log_sum = download<R>(ctx, lse), losses = download<R>(ctx, loss);
  std::vector<TokenLogprob> result(static_cast<size_t>(n));
  for (size_t i = 0; i < result.size(); ++i) {
    TokenLogprob& one = result[i];
    one.id = tokens[i];
    one.logprob = R(0) - losses[i];
    for (size_t k = 0; k < static_cast<size_t>(std::min(K, num_top[i])); ++k) {
      const size_t at = i * static_cast<size_t>(K) + k;
      one.top.emplace_back(top[at], R(0) - (log_sum[i] - top_values[at]));
    }
  }
  return result;
}

}  // namespace

std::vector<TokenLogprob> logprobs_of(Context& ctx, const Tensor& logits,
                                      const std::vector<int32_t>& tokens,
                                      const std::vector<int64_t>& num_top) {
  HADAL_CHECK(tokens.size() == num_top.size(), "log probabilities of ", tokens.size(),
              " tokens with ", num_top.size(), " lengths of lists");
  if (tokens.empty()) return {};
  return logits.dtype() == DType::kF64 ? logprobs_in<double>(ctx, logits, tokens, num_top)
                                       : logprobs_in<float>(ctx, logits, tokens, num_top);
}

}  // namespace hadal::serve
