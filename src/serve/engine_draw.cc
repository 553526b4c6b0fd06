// Drawing the tokens of a step that the host waits for, and their log probabilities.
//
//   R rows of logits, those to draw from among them   V vocabulary
//
// A sequence has a row for each of its drafts and one more, and draws from them in order until a
// draft is wrong. All sequences draw at once, in rounds: what the host changes in a row depends on
// the tokens before it.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <iterator>

#include "core/transfer.h"
#include "serve/forward.h"
#include "serve/live.h"
#include "serve/logprobs.h"

namespace hadal::serve {

struct Engine::Draw {
  Live* live;
  int64_t first;                    // of its rows
  int64_t num_tokens;               // of the sequence, when the step began
  std::vector<int32_t> drawn = {};  // from all its rows, where nothing changes them
  int64_t round = 0;
  int32_t token = 0;  // of the round
  std::optional<TokenLogprob> scored = std::nullopt;

  bool has_failed() const { return live->finish == Finish::kError; }
  int32_t row() const { return static_cast<int32_t>(first + round); }
  int32_t position() const { return static_cast<int32_t>(num_tokens + round); }
  void fail(const std::string& error) const {
    live->finish = Finish::kError;
    live->out.error = error;
  }
};

std::vector<int32_t> Engine::sample(const std::vector<ops::SampleRule>& rules, const Tensor& logits,
                                    const std::vector<int32_t>& positions) {
  const auto n = static_cast<int64_t>(rules.size());
  std::vector<Block> memory;
  const auto put = [&]<class T>(const std::vector<T>& values) {
    Tensor t;
    memory.push_back(ctx_.memory.take_tensor(DTypeOf<T>::value, {n}, &t));
    upload(ctx_, values, t);
    return t;
  };
  Tensor tokens;
  memory.push_back(ctx_.memory.take_tensor(DType::kI32, {n}, &tokens));
  const Tensor where = put(positions);
  const bool alike = std::all_of(rules.begin(), rules.end(), [&](const ops::SampleRule& rule) {
    return rule == rules[0] || (rule.temperature == 0.0 && rules[0].temperature == 0.0);
  });
  if (alike) {
    ops::sample(ctx_, rules[0], logits, where, tokens);  // [n]
    return download<int32_t>(ctx_, tokens);
  }
  std::vector<double> temperature, top_p;
  std::vector<int64_t> top_k, seed;
  for (const ops::SampleRule& rule : rules) {
    temperature.push_back(rule.temperature);
    top_p.push_back(rule.top_p);
    top_k.push_back(rule.top_k);
    seed.push_back(static_cast<int64_t>(rule.seed));
  }
  const ops::SampleRules each{
      .temperature = put(temperature), .top_p = put(top_p), .top_k = put(top_k), .seed = put(seed)};
  ops::sample_each(ctx_, each, logits, where, tokens);  // [n]
  return download<int32_t>(ctx_, tokens);
}

// From all rows of the sequences whose logits the host leaves alone.
void Engine::draw_plain(const Forward& f, std::vector<Draw>& draws) {
  std::vector<int32_t> rows, positions;
  std::vector<ops::SampleRule> rules;
  const auto num_rows = [](const Draw& draw) {
    return draw.live->sampler.is_plain() ? draw.live->sequence->drafts.size() + 1 : 0;
  };
  for (const Draw& draw : draws)
    for (size_t i = 0; i < num_rows(draw); ++i) {
      rows.push_back(draw.row() + static_cast<int32_t>(i));
      positions.push_back(draw.position() + static_cast<int32_t>(i));
      rules.push_back(draw.live->sampler.rule());
    }
  if (rows.empty()) return;
  const std::vector<int32_t> drawn = sample(rules, take_rows(f.logits, rows).tensor, positions);
  auto at = drawn.begin();
  for (Draw& draw : draws) {
    const auto end = at + static_cast<int64_t>(num_rows(draw));
    draw.drawn.assign(at, end);
    at = end;
  }
}

// Tokens of this round from copies of rows that the host changes. One whose row leaves no token to
// choose fails alone.
void Engine::draw_changed(const Forward& f, const std::vector<Draw*>& draws) {
  std::vector<int32_t> rows, positions;
  std::vector<ops::SampleRule> rules;
  for (const Draw* draw : draws) {
    rows.push_back(draw->row());
    positions.push_back(draw->position());
    rules.push_back(draw->live->sampler.rule());
  }
  if (rows.empty()) return;
  const Rows logits = take_rows(f.logits, rows);
  const Tensor host(changed_logits_.room(static_cast<size_t>(logits.tensor.num_bytes())),
                    f.logits.dtype(), logits.tensor.shape());
  download(ctx_, logits.tensor, host.raw());
  ctx_.threads.parallel_for(static_cast<int64_t>(draws.size()), [&](int64_t i, int) {
    const Draw& draw = *draws[static_cast<size_t>(i)];
    const Tensor row = host.row(i);  // [V]
    try {
      draw.live->sampler.process(row, draw.live->sequence->tokens);
    } catch (const std::exception& e) {
      draw.fail(e.what());
      std::memset(row.raw(), 0, static_cast<size_t>(row.num_bytes()));  // for a token nobody takes
    }
  });
  Tensor changed;
  const Block memory = ctx_.memory.take_tensor(host.dtype(), host.shape(), &changed);
  upload(ctx_, host.raw(), changed);
  const std::vector<int32_t> drawn = sample(rules, changed, positions);
  for (size_t i = 0; i < draws.size(); ++i) draws[i]->token = drawn[i];
}

// Log probabilities of this round's tokens, for those who asked: the model's own, before any
// change.
void Engine::score(const Forward& f, const std::vector<Draw*>& draws) {
  std::vector<int32_t> rows, tokens;
  std::vector<int64_t> num_top;
  std::vector<Draw*> asked;
  for (Draw* draw : draws) {
    const int64_t top = draw->live->request.params.num_logprobs;
    if (top < 0 || draw->has_failed()) continue;
    asked.push_back(draw);
    rows.push_back(draw->row());
    tokens.push_back(draw->token);
    num_top.push_back(top);
  }
  if (rows.empty()) return;
  std::vector<TokenLogprob> scored =
      logprobs_of(ctx_, take_rows(f.logits, rows).tensor, tokens, num_top);
  for (size_t i = 0; i < asked.size(); ++i) asked[i]->scored = std::move(scored[i]);
}

// Takes the round's token; whether the sequence draws another one.
bool Engine::accept(Draw& draw) {
  Live& live = *draw.live;
  Sequence& s = *live.sequence;
  if (draw.has_failed()) return false;
  const auto round = static_cast<size_t>(draw.round);
  const bool is_draft = round < s.drafts.size();
  const bool right = is_draft && s.drafts[round] == draw.token;
  if (is_draft) ++counters_.num_drafted;
  if (right) ++counters_.num_accepted;
  const size_t num_out = live.out.tokens.size();
  add_token(live, draw.token);
  const bool is_out = live.out.tokens.size() > num_out;
  if (draw.scored && is_out) live.out.logprobs.push_back(std::move(*draw.scored));
  draw.scored.reset();
  if (right && is_out) ++live.done;
  ++draw.round;
  return right && !live.finish;
}

void Engine::draw(const StepPlan& plan, const Forward& f) {
  std::vector<Draw> draws;
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    Live& live = *live_.at(plan.runs[i].id);
    if (live.ready)
      draws.push_back(
          {.live = &live, .first = f.first[i], .num_tokens = live.sequence->num_tokens()});
  }
  draw_plain(f, draws);
  std::vector<Draw*> left, changed;
  for (Draw& draw : draws) left.push_back(&draw);
  while (!left.empty()) {
    changed.clear();
    for (Draw* draw : left)
      if (draw->live->sampler.is_plain())
        draw->token = draw->drawn[static_cast<size_t>(draw->round)];
      else
        changed.push_back(draw);
    draw_changed(f, changed);
    score(f, left);
    std::erase_if(left, [&](Draw* draw) {
      if (accept(*draw)) return false;
      draw->live->sequence->drafts.clear();
      count_token_time(*draw->live, f.now + f.timer.seconds());
      return true;
    });
  }
}

void Engine::count_token_time(Live& live, double now) {
  if (live.first_token < 0) {
    live.first_token = now;
    counters_.prompt_tokens += live.out.num_prompt;
    counters_.first_token.add(now - live.arrival);
    counters_.prefill.add(now - live.sequence->admitted);
  } else {
    counters_.between_tokens.add(now - live.last_token);
  }
  live.last_token = now;
}

// Log probabilities of the prompt's tokens behind this run's rows; returns the row after them.
int64_t Engine::score_prompt(Live& live, const StepPlan::Run& run, const Forward& f, int64_t row) {
  const Sequence& s = *live.sequence;
  std::vector<int32_t> tokens;
  for (int64_t p = std::max(run.start, live.num_scored);
       p < run.start + run.count && p + 1 < s.num_prompt; ++p)
    tokens.push_back(s.tokens[static_cast<size_t>(p) + 1]);
  const auto n = static_cast<int64_t>(tokens.size());
  if (n == 0) return row;
  const std::vector<int64_t> num_top(tokens.size(), live.request.params.num_prompt_logprobs);
  std::vector<TokenLogprob> scored = logprobs_of(ctx_, f.logits.rows(row, n), tokens, num_top);
  std::move(scored.begin(), scored.end(), std::back_inserter(live.out.prompt_logprobs));
  live.num_scored += n;
  return row + n;
}

}  // namespace hadal::serve
