// Steps over what is not in the cache yet.
// SPDX-License-Identifier: Apache-2.0
#include "serve/prefix_runner.h"

#include <algorithm>

#include "core/transfer.h"
#include "model/bytes.h"
#include "ops/loss.h"

namespace hadal::serve {

PrefixRunner::PrefixRunner(Context& ctx, Decoder& decoder)
    : ctx_(ctx), decoder_(decoder), slots_{decoder.cache().open()} {
  const DType stat = stat_dtype(decoder.act());
  const int64_t T = decoder.limits().max_step_tokens;
  const Shape logits{T, decoder.config().vocab_size};
  ByteCount bytes;
  bytes.add(stat, logits).add(stat, {T}).add(stat, {T}).add(DType::kI32, {T});
  bytes.add(DType::kI32, {1}).add(DType::kI32, {1});
  memory_ = ctx.memory.take(bytes.total());
  logits_ = memory_.tensor(stat, logits);
  lse_ = memory_.tensor(stat, {T});
  loss_ = memory_.tensor(stat, {T});
  targets_ = memory_.tensor(DType::kI32, {T});
  where_ = memory_.tensor(DType::kI32, {1});
  token_ = memory_.tensor(DType::kI32, {1});
}

// Brings all of ids into the cache; shows the states of positions from `from` on, step by step.
bool PrefixRunner::run(const std::vector<int32_t>& ids, int64_t from, Stopping stopping,
                       const Visit& visit) {
  const Config& c = decoder_.config();
  const auto n = static_cast<int64_t>(ids.size());
  HADAL_CHECK(n <= max_tokens(), "the text has ", n, " tokens; at most ", max_tokens(),
              " fit the context");
  for (int32_t id : ids)
    HADAL_CHECK(id >= 0 && id < c.vocab_size, "token ", id, " is outside the vocabulary of ",
                c.vocab_size, "; the tokenizer belongs to another model");
  const int64_t same =
      std::mismatch(ids.begin(), ids.end(), cached_.begin(), cached_.end()).first - ids.begin();
  int64_t at = std::min(same, from);
  while (at < n) {
    const int64_t count = std::min(n - at, decoder_.limits().max_step_tokens);
    const std::vector<int32_t> chunk(ids.begin() + at, ids.begin() + at + count);
    const Step step = make_step(ctx_, c, chunk, {at}, {count}, decoder_.act());
    Tensor h;
    const Block memory = ctx_.memory.take_tensor(decoder_.act(), {count, c.hidden_size}, &h);
    cached_.resize(static_cast<size_t>(at));  // what the step overwrites is gone
    decoder_.forward({.step = step, .seqs = slots_}, h);
    cached_.insert(cached_.end(), chunk.begin(), chunk.end());
    num_run_ += count;
    const int64_t skip = std::clamp<int64_t>(from - at, 0, count);
    if (skip < count && !visit(at + skip, h.rows(skip, count - skip))) return false;
    at += count;
    if (at < n && stopping == Stopping::kWhenAsked && should_stop && should_stop()) return false;
  }
  return true;
}

std::vector<double> PrefixRunner::log_probs(const std::vector<int32_t>& ids, int64_t first) {
  const auto n = static_cast<int64_t>(ids.size());
  HADAL_CHECK(first >= 1 && first <= n, "cannot score tokens ", first, " to ", n,
              ": the first one needs a token before it");
  std::vector<double> result;
  if (first == n) return result;
  const std::vector<int32_t> inputs(ids.begin(), ids.end() - 1);
  run(inputs, first - 1, Stopping::kNever, [&](int64_t position, In h) {
    const int64_t rows = h.dim(0);
    const Out logits = logits_.rows(0, rows), loss = loss_.rows(0, rows);
    const auto begin = ids.begin() + position + 1;
    upload(ctx_, std::vector<int32_t>(begin, begin + rows), targets_.rows(0, rows));
    decoder_.logits(h, logits);  // [rows, V]
    ops::cross_entropy_forward(ctx_, logits, targets_.rows(0, rows), lse_.rows(0, rows), loss);
    const HostRead host(ctx_, loss);
    for (int64_t i = 0; i < rows; ++i)
      result.push_back(loss.dtype() == DType::kF64 ? -host.tensor().data<double>()[i]
                                                   : -double{host.tensor().data<float>()[i]});
    return true;
  });
  return result;
}

std::optional<int32_t> PrefixRunner::next(const std::vector<int32_t>& ids,
                                          const ops::SampleRule& rule) {
  const auto n = static_cast<int64_t>(ids.size());
  HADAL_CHECK(n >= 1, "the prompt is empty; give at least one token");
  std::optional<int32_t> token;
  run(ids, n - 1, Stopping::kWhenAsked, [&](int64_t, In h) {
    decoder_.logits(h, logits_.rows(0, 1));  // [1, V]
    upload(ctx_, std::vector<int32_t>{static_cast<int32_t>(n)}, where_);
    ops::sample(ctx_, rule, logits_.rows(0, 1), where_, token_);  // [1]
    token = download<int32_t>(ctx_, token_)[0];
    return true;
  });
  return token;
}

}  // namespace hadal::serve
