// Steps that overlap: one is planned and put on its way while the one before still runs.
//
// The token that a step draws is pending until the next one has been launched: it has a place in
// the sequence, and the device knows it. A sequence that ends meanwhile gives its pages up at once;
// what runs still writes to them before whoever takes them next does.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>

#include "core/timer.h"
#include "serve/live.h"

namespace hadal::serve {

// The host takes no part in the tokens of any request that may run in the next step. One that only
// speculates may give it up where enough run.
bool Engine::can_overlap() const {
  if (!runner_) return false;
  const bool full = scheduler_.num_running() >= options_.speculate_seqs;
  return std::all_of(live_.begin(), live_.end(), [&](const auto& entry) {
    const Live& live = *entry.second;
    const SamplingParams& p = live.request.params;
    const bool speculates = live.speculates && (live.sequence->running || !full);
    return !speculates && live.sampler.is_plain() && p.num_logprobs < 0 &&
           p.num_prompt_logprobs < 0;
  });
}

// Puts a step on its way, then takes what the one before brought.
void Engine::launch_step(const StepPlan& plan, const std::vector<PageCopy>& copies, double now) {
  const Timer timer;
  StepRunner::Input input;
  Flight flight;
  std::map<uint64_t, int64_t> drawn_before;  // a sequence's row of the launch before
  if (flight_)
    for (const Flight::Item& item : flight_->items) drawn_before[item.id] = item.row;
  for (const StepPlan::Run& run : plan.runs) {
    Live& live = *live_.at(run.id);
    Sequence& s = *live.sequence;
    live.speculates = false;
    s.num_ahead = 0;
    for (int64_t p = run.start; p < run.start + run.count; ++p)
      input.tokens.ids.push_back(p < s.num_known()
                                     ? s.tokens[static_cast<size_t>(p)]
                                     : static_cast<int32_t>(-1 - drawn_before.at(run.id)));
    add_sequence(input.tokens, s, run.start, run.count);
    const bool draws = run.start + run.count == s.num_tokens();
    flight.items.push_back({run.id, draws ? static_cast<int64_t>(input.draws.size()) : -1});
    if (draws)
      input.draws.push_back({.row = static_cast<int64_t>(input.tokens.ids.size()) - 1,
                             .position = s.num_tokens(),
                             .rule = live.sampler.rule()});
  }
  std::string error;
  if (!plan.runs.empty()) {
    try {
      copy_pages(copies);
      runner_->launch(input);
    } catch (const std::exception& e) {
      note_failure();
      error = e.what();
    }
    ++counters_.num_steps;
    counters_.num_step_tokens += plan.num_tokens;
  }
  if (error.empty()) {
    for (size_t i = 0; i < plan.runs.size(); ++i) {
      const StepPlan::Run& run = plan.runs[i];
      Live& live = *live_.at(run.id);
      Sequence& s = *live.sequence;
      scheduler_.advance(run.id, run.start + run.count);
      if (flight.items[i].row < 0) continue;
      s.tokens.push_back(0);
      ++s.num_pending;
      s.held = live.num_generated + s.num_pending >= live.request.params.max_tokens ||
               s.num_tokens() >= max_tokens();
    }
  }
  collect(now + timer.seconds());
  if (!error.empty()) {
    std::vector<uint64_t> ids;
    for (const StepPlan::Run& run : plan.runs) ids.push_back(run.id);
    fail(ids, error, now + timer.seconds());
  } else if (!plan.runs.empty()) {
    flight_ = std::move(flight);
  }
}

// Waits for the step under way, and delivers its tokens.
void Engine::collect(double now) {
  if (!flight_) return;
  const Timer timer;
  const Flight flight = std::move(*flight_);
  flight_.reset();
  std::vector<int32_t> drawn;
  try {
    drawn = runner_->take();
  } catch (const std::exception& e) {
    note_failure();
    std::vector<uint64_t> ids;
    for (const Flight::Item& item : flight.items) ids.push_back(item.id);
    return fail(ids, e.what(), now);
  }
  now += timer.seconds();
  for (const Flight::Item& item : flight.items) {
    const auto it = live_.find(item.id);  // it may have ended meanwhile
    if (item.row >= 0 && it != live_.end())
      take_drawn(*it->second, drawn[static_cast<size_t>(item.row)], now);
  }
}

void Engine::take_drawn(Live& live, int32_t token, double now) {
  Sequence& s = *live.sequence;
  s.tokens[static_cast<size_t>(s.num_known())] = token;
  --s.num_pending;
  deliver_token(live, token);
  count_token_time(live, now);
  if (live.finish) return finish(live, now);
  scheduler_.advance(s.id, s.done);  // with one more token that is known
  deliver_step(live);
}

// Ends what a step that failed has worked on; what it wrote is not to be found by others.
void Engine::fail(const std::vector<uint64_t>& ids, const std::string& error, double now) {
  for (uint64_t id : ids) {
    const auto it = live_.find(id);
    if (it == live_.end()) continue;
    it->second->finish = Finish::kError;
    it->second->out.error = error;
    finish(*it->second, now);
  }
  scheduler_.forget();
}

}  // namespace hadal::serve
