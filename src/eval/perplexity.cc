// Windows over a text, and what their scores amount to.
// SPDX-License-Identifier: Apache-2.0
#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/check.h"
#include "core/rng.h"
#include "eval/result_file.h"

namespace hadal::eval {

double TextScore::perplexity() const { return std::exp(nats_per_token()); }
double TextScore::bits_per_token() const { return nats_per_token() / std::log(2.0); }
double TextScore::bits_per_byte() const {
  return nats / std::log(2.0) / static_cast<double>(num_bytes);
}

std::optional<double> TextScore::standard_error() const {
  const auto n = static_cast<double>(blocks.size());
  if (blocks.size() < 2) return std::nullopt;
  // A ratio of sums over blocks, of which the last of a document may be shorter.
  double squares = 0.0;
  for (const Block& block : blocks)
    squares += std::pow(block.nats - nats_per_token() * static_cast<double>(block.num_tokens), 2.0);
  return std::sqrt(squares * n / (n - 1.0)) / static_cast<double>(num_tokens);
}

namespace {

void check(const Windows& w, int64_t max_tokens) {
  HADAL_CHECK(w.window >= 2 && w.window <= max_tokens, "--window is ", w.window,
              "; allowed: 2 to the context of ", max_tokens);
  HADAL_CHECK(w.stride >= 1 && w.stride < w.window, "--stride is ", w.stride,
              "; allowed: 1 to --window - 1 = ", w.window - 1);
}

io::Json settings_of(const std::vector<Document>& documents, int32_t bos, const TextOptions& o) {
  io::Json all = {bos, o.windows.window, o.windows.stride, o.identity};
  for (const Document& document : documents) {
    const std::string_view bytes(reinterpret_cast<const char*>(document.ids.data()),
                                 document.ids.size() * sizeof(int32_t));
    all.push_back({document.num_bytes, document.ids.size(), stream_id(bytes)});
  }
  return all;
}

}  // namespace

TextScore score_texts(serve::PrefixRunner& runner, const std::vector<Document>& documents,
                      int32_t bos, const TextOptions& options) {
  const Windows& w = options.windows;
  check(w, runner.max_tokens());
  int64_t total = 0;
  for (const Document& document : documents) total += static_cast<int64_t>(document.ids.size());
  HADAL_CHECK(total > 0, "the text has no tokens; give more text");
  ResultFile file(options.output, settings_of(documents, bos, options), {{"tokens", total}});
  TextScore score{.num_documents = static_cast<int64_t>(documents.size()), .blocks = {}};
  size_t num_windows = 0;
  int64_t resumed = 0;
  for (const Document& document : documents) {
    const auto n = static_cast<int64_t>(document.ids.size());
    const int64_t room = w.window - 1;
    for (int64_t done = 0; done < n;) {
      const int64_t end = std::min(n, done == 0 ? room : done + w.stride);
      const int64_t begin = std::max<int64_t>(0, end - room);
      const bool known = num_windows < file.lines().size();
      std::vector<double> log_probs;
      if (known) {
        log_probs = file.lines()[num_windows].numbers("log_probs");
      } else {
        std::vector<int32_t> window = {bos};
        window.insert(window.end(), document.ids.begin() + begin, document.ids.begin() + end);
        log_probs = runner.log_probs(window, 1 + done - begin);
        file.add({{"log_probs", log_probs}});
      }
      HADAL_CHECK(static_cast<int64_t>(log_probs.size()) == end - done, options.output,
                  " has a line of ", log_probs.size(), " tokens where ", end - done,
                  " are needed; remove it");
      for (double log_prob : log_probs) {
        if (done++ % kBlockTokens == 0) score.blocks.emplace_back();
        score.nats -= log_prob;
        score.blocks.back().nats -= log_prob;
        ++score.blocks.back().num_tokens;
      }
      score.num_tokens += static_cast<int64_t>(log_probs.size());
      ++num_windows;
      if (known) resumed = score.num_tokens;
      if (options.progress && !known) options.progress(score.num_tokens, total, resumed);
    }
    score.num_bytes += document.num_bytes;
  }
  HADAL_CHECK(file.lines().size() <= num_windows, options.output, " has ", file.lines().size(),
              " results for ", num_windows, " windows; remove it");
  return score;
}

}  // namespace hadal::eval
