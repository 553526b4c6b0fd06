// Windows over a text, and what their scores amount to.
// SPDX-License-Identifier: Apache-2.0
#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace hadal::eval {

double TextScore::perplexity() const { return std::exp(nats_per_token()); }
double TextScore::bits_per_token() const { return nats_per_token() / std::log(2.0); }
double TextScore::bits_per_byte() const {
  return nats / std::log(2.0) / static_cast<double>(num_bytes);
}

std::optional<double> TextScore::standard_error() const {
  const auto n = static_cast<double>(block_nats.size());
  if (block_nats.size() < 2) return std::nullopt;
  // A ratio of sums over blocks, of which the last may be shorter.
  double squares = 0.0;
  int64_t left = num_tokens;
  for (double block : block_nats) {
    const auto tokens = static_cast<double>(std::min(left, kBlockTokens));
    squares += std::pow(block - nats_per_token() * tokens, 2.0);
    left -= kBlockTokens;
  }
  return std::sqrt(squares * n / (n - 1.0)) / static_cast<double>(num_tokens);
}

TextScore score_text(serve::PrefixRunner& runner, const std::vector<int32_t>& ids,
                     int64_t num_bytes, int32_t bos, const Windows& windows,
                     const std::function<void(int64_t done)>& progress) {
  HADAL_CHECK(windows.window >= 2 && windows.window <= runner.max_tokens(), "--window is ",
              windows.window, "; allowed: 2 to the context of ", runner.max_tokens());
  HADAL_CHECK(windows.stride >= 1 && windows.stride < windows.window, "--stride is ",
              windows.stride, "; allowed: 1 to --window - 1 = ", windows.window - 1);
  const auto n = static_cast<int64_t>(ids.size());
  HADAL_CHECK(n > 0, "the text has no tokens; give more text");
  TextScore score{.num_tokens = n, .num_bytes = num_bytes, .block_nats = {}};
  score.block_nats.assign(static_cast<size_t>((n + kBlockTokens - 1) / kBlockTokens), 0.0);
  const int64_t room = windows.window - 1;
  for (int64_t done = 0; done < n;) {
    const int64_t end = std::min(n, done == 0 ? room : done + windows.stride);
    const int64_t begin = std::max<int64_t>(0, end - room);
    std::vector<int32_t> window = {bos};
    window.insert(window.end(), ids.begin() + begin, ids.begin() + end);
    const std::vector<double> log_probs = runner.log_probs(window, 1 + done - begin);
    for (double log_prob : log_probs) {
      score.nats -= log_prob;
      score.block_nats[static_cast<size_t>(done++ / kBlockTokens)] -= log_prob;
    }
    if (progress) progress(done);
  }
  return score;
}

}  // namespace hadal::eval
