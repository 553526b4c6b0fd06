// Announcements to words and back.
// SPDX-License-Identifier: Apache-2.0
#include "serve/rank_calls.h"

#include <bit>

namespace hadal::serve {

std::vector<int32_t> words_of(RankCall call, int64_t value) {
  WordWriter out;
  out.put(static_cast<int64_t>(call));
  out.put(value);
  return out.take();
}

std::vector<int32_t> words_of(const StepRunner::Input& input) {
  WordWriter out;
  out.put(static_cast<int64_t>(RankCall::kLaunch));
  out.put_list(input.tokens.ids);
  out.put_list(input.tokens.starts);
  out.put_list(input.tokens.counts);
  for (const std::vector<int64_t>* pages : input.tokens.pages) out.put_list(*pages);
  out.put_list(input.tokens.homes);
  out.put(static_cast<int64_t>(input.draws.size()));
  for (const StepRunner::Draw& draw : input.draws) {
    out.put(draw.row);
    out.put(draw.position);
    out.put64(std::bit_cast<uint64_t>(draw.rule.temperature));
    out.put64(std::bit_cast<uint64_t>(draw.rule.top_p));
    out.put64(static_cast<uint64_t>(draw.rule.top_k));
    out.put64(draw.rule.seed);
  }
  return out.take();
}

OwnedInput::OwnedInput(const std::vector<int32_t>& words) {
  WordReader in(words);
  in.get();
  input.tokens.ids = in.get_list<int32_t>();
  input.tokens.starts = in.get_list<int64_t>();
  input.tokens.counts = in.get_list<int64_t>();
  for (size_t s = 0; s < input.tokens.starts.size(); ++s) pages.push_back(in.get_list<int64_t>());
  for (const auto& list : pages) input.tokens.pages.push_back(&list);
  input.tokens.homes = in.get_list<int64_t>();
  const int64_t num_draws = in.get();
  for (int64_t d = 0; d < num_draws; ++d) {
    StepRunner::Draw draw;
    draw.row = in.get();
    draw.position = in.get();
    draw.rule.temperature = std::bit_cast<double>(in.get64());
    draw.rule.top_p = std::bit_cast<double>(in.get64());
    draw.rule.top_k = static_cast<int64_t>(in.get64());
    draw.rule.seed = in.get64();
    input.draws.push_back(draw);
  }
  in.check_end();
}

}  // namespace hadal::serve
