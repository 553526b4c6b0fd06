// The engine's step: plan, forward, draw, draft, deliver.
//
//   T tokens of a step   R rows that logits are needed of   D model width   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "serve/engine.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "core/transfer.h"
#include "model/bytes.h"
#include "ops/copy.h"
#include "ops/sample.h"
#include "serve/forward.h"
#include "serve/live.h"

namespace hadal::serve {
namespace {

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Rows that fill up a recorded step write to a page of their own.
int64_t num_scratch_pages(const Context& ctx, const Engine::Options& options) {
  return options.overlap && device::can_record(ctx.device) ? 1 : 0;
}

}  // namespace

// What a step computed.
Engine::Engine(Context& ctx, Decoder& decoder, std::optional<io::Tokenizer> tokenizer,
               const Options& options, Deliver deliver)
    : ctx_(ctx),
      decoder_(decoder),
      tokenizer_(std::move(tokenizer)),
      options_(options),
      deliver_(std::move(deliver)),
      scheduler_({.max_seqs = decoder.limits().max_seqs,
                  .max_step_tokens = decoder.limits().max_step_tokens,
                  .max_tokens = decoder.limits().max_tokens,
                  .num_pages = decoder.cache().num_free_pages() - num_scratch_pages(ctx, options),
                  .page_tokens = ops::kCachePageTokens,
                  .aging_seconds = options.aging_seconds,
                  .prefix_cache = options.prefix_cache,
                  .lookahead = options.speculate > 0 ? 1 : 0,
                  .num_homes = decoder.num_homes()}) {
  const Decoder::Limits& limits = decoder.limits();
  HADAL_CHECK(options.speculate == 0 || limits.num_mtp > 0,
              "speculation needs a model with an MTP module; use --speculate 0");
  HADAL_CHECK(
      limits.max_seqs + options.speculate * std::min(options.speculate_seqs, limits.max_seqs) <=
          limits.max_step_tokens,
      "a step of ", limits.max_step_tokens, " tokens cannot hold ", limits.max_seqs,
      " sequences and their drafts; raise --chunk");
  HADAL_CHECK(options.aging_seconds > 0, "aging takes ", options.aging_seconds,
              " seconds; give a positive number");
  decoder_.cache().lend_pages();
  for (int64_t s = 0; s < limits.max_seqs; ++s) decoder_.cache().open();
  if (options.overlap) runner_ = std::make_unique<StepRunner>(ctx, decoder);
  if (num_scratch_pages(ctx, options) > 0) {
    runner_->run_largest();
    runner_->record_steps(scheduler_.limits().num_pages);
  }
  publish_stats();
}

Engine::~Engine() {
  for (int64_t s = 0; s < decoder_.limits().max_seqs; ++s) decoder_.cache().close(s);
}

void Engine::check(const Request& r) const {
  const int64_t V = decoder_.config().vocab_size;
  const auto n = static_cast<int64_t>(r.prompt.size());
  HADAL_CHECK(n >= 1, "the prompt is empty; give at least one token");
  HADAL_CHECK(n < max_tokens(), "the prompt has ", n, " tokens; at most ", max_tokens() - 1,
              " fit the context of ", max_tokens());
  const auto check_id = [&](int32_t id, const char* what) {
    HADAL_CHECK(id >= 0 && id < V, what, " ", id, " is outside the vocabulary of ", V);
  };
  for (int32_t id : r.prompt) check_id(id, "token");
  for (int32_t id : r.params.stop_ids) check_id(id, "stop token");
  for (const auto& [id, bias] : r.params.logit_bias) check_id(id, "logit_bias: token");
  for (const std::vector<int32_t>& word : r.params.bad_words) {
    HADAL_CHECK(!word.empty(), "a bad word is empty; leave it out");
    for (int32_t id : word) check_id(id, "bad_words: token");
  }
  if (r.params.grammar) GrammarState(*r.params.grammar, r.params.stop_ids);
  HADAL_CHECK(r.params.max_tokens >= 1, "max_tokens is ", r.params.max_tokens, "; give 1 or more");
  HADAL_CHECK(r.params.stop.empty() || tokenizer_, "stop strings need a tokenizer");
}

Engine::Answer Engine::submit(std::vector<Request> requests) {
  for (const Request& request : requests) check(request);
  const auto count = static_cast<int64_t>(requests.size());
  {
    const std::lock_guard lock(mutex_);
    if (closed_ || stop_) return Answer::kClosed;
    const Scheduler::Limits& limits = scheduler_.limits();
    if (num_open_ + count > limits.num_homes * limits.max_seqs + options_.max_queue) {
      num_rejected_ += count;
      return Answer::kBusy;
    }
    num_submitted_ += count;
    num_open_ += count;
    for (Request& request : requests) inbox_.push_back(std::move(request));
  }
  wake_.notify_one();
  return Answer::kAccepted;
}

void Engine::cancel(uint64_t id) {
  {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
  }
  wake_.notify_one();
}

void Engine::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

void Engine::abort(std::exception_ptr why) {
  {
    const std::lock_guard lock(mutex_);
    aborted_ = std::move(why);
  }
  wake_.notify_one();
}

void Engine::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats = published_;
  stats.num_waiting += static_cast<int64_t>(inbox_.size());
  stats.num_submitted = num_submitted_;
  stats.num_rejected = num_rejected_;
  return stats;
}

double Engine::stalled_seconds() const {
  const double since = busy_since_.load();
  return since < 0 ? 0.0 : steady_seconds() - since;
}

void Engine::publish_stats() {
  EngineStats& c = counters_;
  c.num_running = scheduler_.num_running();
  c.num_waiting = scheduler_.num_waiting();
  c.num_pages = c.num_pages_in_use = c.num_pages_cached = c.num_evictions = 0;
  for (const PagePool& pool : scheduler_.pools()) {
    c.num_pages += pool.num_pages();
    c.num_pages_in_use += pool.num_in_use();
    c.num_pages_cached += pool.num_cached();
    c.num_evictions += pool.num_evicted();
  }
  c.num_preemptions = scheduler_.num_preemptions();
  if (runner_) {
    c.device_busy_seconds = runner_->busy_seconds();
    c.device_idle_seconds = runner_->idle_seconds();
  }
  const std::lock_guard lock(mutex_);
  published_ = c;
}

void Engine::take_inbox(double now) {
  std::vector<Request> inbox;
  std::vector<uint64_t> cancelled;
  {
    const std::lock_guard lock(mutex_);
    inbox.swap(inbox_);
    cancelled.swap(cancelled_);
    if (aborted_ && !broken_) broken_ = aborted_;
  }
  for (Request& request : inbox) {
    auto live =
        std::make_unique<Live>(std::move(request), decoder_.config().vocab_size, tokenizer_);
    const Request& r = live->request;
    live->arrival = now;
    live->speculates = options_.speculate > 0;
    scheduler_.add({.id = r.id,
                    .priority = r.priority,
                    .arrival = now,
                    .tokens = r.prompt,
                    .num_prompt = live->out.num_prompt,
                    .num_ahead = live->speculates ? options_.speculate : 0,
                    .use_cache = r.params.num_prompt_logprobs < 0,
                    .leader = r.leader});
    live->sequence = &scheduler_.at(r.id);
    live_.emplace(r.id, std::move(live));
  }
  for (uint64_t id : cancelled) {
    const auto it = live_.find(id);
    if (it == live_.end()) continue;
    it->second->finish = Finish::kCancelled;
    finish(*it->second, now);
  }
}

// Above a number of running sequences verification costs more than it saves. A sequence whose
// drafts were skipped stays without: the states that its MTP cache lacks are gone.
void Engine::limit_speculation() {
  if (options_.speculate == 0 || scheduler_.num_running() <= options_.speculate_seqs) return;
  for (auto& [id, live] : live_) {
    if (!live->sequence->running) continue;
    live->speculates = false;
    live->sequence->num_ahead = 0;
    live->sequence->drafts.clear();
  }
}

bool Engine::step(double now) {
  const Timer timer;
  take_inbox(now);
  if (broken_) break_down(now);
  if (!live_.empty()) {
    limit_speculation();
    const bool overlaps = can_overlap();
    if (!overlaps) collect(now);
    const StepPlan plan = scheduler_.plan(now);
    const std::vector<PageCopy> copies = scheduler_.apply(plan, now);
    for (const auto& [id, match, home] : plan.admit) {
      const Sequence& s = scheduler_.at(id);
      if (s.num_preempted > 0) continue;
      counters_.prefix_queries += s.num_prompt;
      counters_.prefix_hits += s.num_found;
      counters_.queue.add(now - s.arrival);
      live_.at(id)->out.num_cached = s.num_found;
    }
    if (overlaps)
      launch_step(plan, copies, now);
    else if (!plan.runs.empty())
      run_step(plan, copies, now);
    counters_.step_seconds += timer.seconds();
  }
  publish_stats();
  const bool worked = !live_.empty() || !outputs_.empty();
  if (!outputs_.empty()) deliver_(std::exchange(outputs_, {}));
  if (broken_) break_down(now);
  return worked;
}

// In a catch block: other ranks may be anywhere in the step that failed.
void Engine::note_failure() {
  if (decoder_.leads()) broken_ = std::current_exception();
}

// Ends all requests with what went wrong, and throws it.
void Engine::break_down(double now) {
  close();
  take_inbox(now);
  std::string error = "the model cannot go on";
  try {
    std::rethrow_exception(broken_);
  } catch (const std::exception& e) {
    error = e.what();
  }
  flight_.reset();
  while (!live_.empty()) {
    Live& live = *live_.begin()->second;
    live.finish = Finish::kError;
    live.out.error = error;
    finish(live, now);
  }
  publish_stats();
  busy_since_ = -1.0;
  if (!outputs_.empty()) deliver_(std::exchange(outputs_, {}));
  std::rethrow_exception(broken_);
}

void Engine::copy_pages(const std::vector<PageCopy>& copies) {
  for (const auto& [from, to, num_rows, home] : copies)
    decoder_.copy_rows(from, to, num_rows, home);
}

void Engine::add_sequence(PagedTokens& tokens, const Sequence& s, int64_t start,
                          int64_t count) const {
  tokens.starts.push_back(start);
  tokens.counts.push_back(count);
  tokens.pages.push_back(&s.pages);
  if (decoder_.splits_sequences()) tokens.homes.push_back(s.home);
}

void Engine::run_step(const StepPlan& plan, const std::vector<PageCopy>& copies, double now) {
  Forward f;
  f.now = now;
  try {
    copy_pages(copies);
    PagedTokens tokens;
    for (const StepPlan::Run& run : plan.runs) {
      Live& live = *live_.at(run.id);
      const Sequence& s = *live.sequence;
      f.offset.push_back(static_cast<int64_t>(tokens.ids.size()));
      add_sequence(tokens, s, run.start, run.count);
      for (int64_t p = run.start; p < run.start + run.count; ++p)
        tokens.ids.push_back(p < s.num_tokens()
                                 ? s.tokens[static_cast<size_t>(p)]
                                 : s.drafts[static_cast<size_t>(p - s.num_tokens())]);
      live.done = std::min(run.start + run.count, s.num_tokens());
      live.ready = live.done == s.num_tokens();
      // Logits of the prompt's rows that are to be scored, then of those to draw from.
      f.first.push_back(static_cast<int64_t>(f.rows.size()));
      const bool scores = live.request.params.num_prompt_logprobs >= 0;
      for (int64_t p = run.start; p < run.start + run.count; ++p)
        if ((scores && p >= live.num_scored && p + 1 < s.num_prompt) || p + 1 >= s.num_tokens())
          f.rows.push_back(static_cast<int32_t>(f.offset.back() + p - run.start));
    }
    const int64_t T = plan.num_tokens, R = static_cast<int64_t>(f.rows.size());
    f.memory = ctx_.memory.take_tensor(decoder_.act(), {T, decoder_.config().hidden_size}, &f.h);
    paged_forward(ctx_, decoder_, tokens, f.h);  // [T, D]
    ++counters_.num_steps;
    counters_.num_step_tokens += T;
    if (R > 0) {
      f.logits_memory = ctx_.memory.take_tensor(stat_dtype(decoder_.act()),
                                                {R, decoder_.config().vocab_size}, &f.logits);
      decoder_.logits(take_rows(f.h, f.rows).tensor, f.logits);  // [R, V]
    }
    for (size_t i = 0; i < plan.runs.size(); ++i) {
      Live& live = *live_.at(plan.runs[i].id);
      if (live.request.params.num_prompt_logprobs >= 0)
        f.first[i] = score_prompt(live, plan.runs[i], f, f.first[i]);
    }
    draw(plan, f);
    if (options_.speculate > 0) draft(plan, f);
  } catch (const std::exception& e) {
    // The requests of this step fail, the engine goes on where it can.
    note_failure();
    for (const StepPlan::Run& run : plan.runs) {
      Live& live = *live_.at(run.id);
      live.finish = Finish::kError;
      live.out.error = e.what();
      live.done = live.sequence->done;
    }
  }
  end_step(plan, now + f.timer.seconds());
}

// Rows of h in one piece: h itself where it is all of them in order.
Engine::Rows Engine::take_rows(const Tensor& h, const std::vector<int32_t>& rows) {
  Rows result;
  const auto R = static_cast<int64_t>(rows.size());
  if (R > 0 && rows.back() - rows.front() + 1 == R) {
    result.tensor = h.rows(rows.front(), R);
    return result;
  }
  Tensor ids;
  const Block ids_memory = ctx_.memory.take_tensor(DType::kI32, {R}, &ids);
  upload(ctx_, rows, ids);
  result.memory = ctx_.memory.take_tensor(h.dtype(), {R, h.dim(1)}, &result.tensor);
  ops::embed_forward(ctx_, h, ids, result.tensor);  // [R, D]
  return result;
}

// A token that was drawn on the host's word: part of the sequence unless it ends it.
void Engine::add_token(Live& live, int32_t token) {
  const std::vector<int32_t>& stop_ids = live.request.params.stop_ids;
  if (std::find(stop_ids.begin(), stop_ids.end(), token) == stop_ids.end())
    live.sequence->tokens.push_back(token);
  deliver_token(live, token);
}

void Engine::deliver_token(Live& live, int32_t token) {
  const Sequence& s = *live.sequence;
  const SamplingParams& p = live.request.params;
  ++live.num_generated;
  ++counters_.generated_tokens;
  if (std::find(p.stop_ids.begin(), p.stop_ids.end(), token) != p.stop_ids.end()) {
    live.finish = Finish::kStop;
    return;
  }
  live.out.tokens.push_back(token);
  live.sampler.accept(token);
  if (live.decoder) {
    const std::string text = live.decoder->push(token);
    // Before the minimum no stop string counts, as no stop token does.
    live.out.text += live.num_generated <= p.min_tokens ? text : live.scanner.push(text);
    if (live.scanner.stopped()) live.finish = Finish::kStop;
  }
  if (!live.finish && (live.num_generated >= p.max_tokens || s.num_known() >= max_tokens()))
    live.finish = Finish::kLength;
}

// The MTP module sees what the step made final, then drafts for the sequences that draw next.
void Engine::draft(const StepPlan& plan, Forward& f) {
  struct Item {
    Live* live;
    int64_t start, count, num_drafts;
  };
  std::vector<Item> items;
  std::vector<int32_t> rows;
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    Live& live = *live_.at(plan.runs[i].id);
    if (live.finish == Finish::kError || !live.speculates) continue;
    const Sequence& s = *live.sequence;
    // One that ends drafts nothing, but others may find its rows, as far as the token after each is
    // known.
    const int64_t start = plan.runs[i].start;
    const int64_t count =
        (live.finish ? std::min(live.done, s.num_tokens() - 1) : live.done) - start;
    if (count <= 0) continue;
    const int64_t most = std::min({options_.speculate, max_tokens() - s.num_tokens(),
                                   live.request.params.max_tokens - live.num_generated - 1});
    items.push_back({&live, start, count, live.ready && !live.finish ? most : 0});
    for (int64_t r = 0; r < count; ++r) rows.push_back(static_cast<int32_t>(f.offset[i] + r));
  }
  if (items.empty()) return;
  Rows states = take_rows(f.h, rows);
  for (int64_t d = 0; !items.empty(); ++d) {
    PagedTokens tokens;
    for (const Item& item : items) {
      const Sequence& s = *item.live->sequence;
      // Position i is run with the token at i + 1; behind the last token stand the drafts.
      for (int64_t p = item.start + 1; p <= item.start + item.count; ++p)
        tokens.ids.push_back(p < s.num_tokens()
                                 ? s.tokens[static_cast<size_t>(p)]
                                 : s.drafts[static_cast<size_t>(p - s.num_tokens())]);
      add_sequence(tokens, s, item.start, item.count);
    }
    Rows out;
    out.memory = ctx_.memory.take_tensor(
        decoder_.act(), {states.tensor.dim(0), decoder_.config().hidden_size}, &out.tensor);
    paged_mtp_forward(ctx_, decoder_, 0, tokens, states.tensor, out.tensor);
    // Drafts of this depth, and the sequences that go one further on their own state.
    std::vector<Item> next;
    rows.clear();
    int64_t row = 0;
    for (const Item& item : items) {
      row += item.count;
      if (item.num_drafts <= d) continue;
      rows.push_back(static_cast<int32_t>(row - 1));
      next.push_back({item.live, item.start + item.count, 1, item.num_drafts});
    }
    if (next.empty()) return;
    Rows last = take_rows(out.tensor, rows);
    Tensor logits;
    const Block logits_memory = ctx_.memory.take_tensor(
        stat_dtype(decoder_.act()),
        {static_cast<int64_t>(next.size()), decoder_.config().vocab_size}, &logits);
    decoder_.logits(last.tensor, logits);
    std::vector<ops::SampleRule> rules;
    std::vector<int32_t> positions;
    for (const Item& item : next) {
      rules.push_back(item.live->sampler.rule());
      positions.push_back(static_cast<int32_t>(item.live->sequence->num_tokens() + d));
    }
    const std::vector<int32_t> drawn = sample(rules, logits, positions);
    for (size_t i = 0; i < next.size(); ++i) next[i].live->sequence->drafts.push_back(drawn[i]);
    std::erase_if(next, [&](const Item& item) { return item.num_drafts <= d + 1; });
    // NOTE: the states of those that go on; `last` has a row for each that drafted.
    std::vector<int32_t> going;
    int32_t index = 0;
    for (const Item& item : items) {
      if (item.num_drafts <= d) continue;
      if (item.num_drafts > d + 1) going.push_back(index);
      ++index;
    }
    items = std::move(next);
    if (items.empty()) return;
    if (going.size() == static_cast<size_t>(index)) {
      // NOTE: take_rows may have given a view of `out`, which has to live as long.
      states.tensor = last.tensor;
      if (last.memory.size() > 0)
        states.memory = std::move(last.memory);
      else
        states.memory = std::move(out.memory);
    } else {
      Rows chosen = take_rows(last.tensor, going);
      if (chosen.memory.size() == 0)
        chosen.memory = last.memory.size() > 0 ? std::move(last.memory) : std::move(out.memory);
      states = std::move(chosen);
    }
  }
}

// Puts what the step made final on the books, and ends what has ended.
void Engine::end_step(const StepPlan& plan, double now) {
  for (const StepPlan::Run& run : plan.runs) {
    Live& live = *live_.at(run.id);
    scheduler_.advance(run.id, std::min(live.done, live.sequence->num_tokens()));
    if (live.finish)
      finish(live, now);
    else
      deliver_step(live);
  }
}

// What a step brought for one request, if anything.
void Engine::deliver_step(Live& live) {
  if (live.out.tokens.empty() && live.out.prompt_logprobs.empty()) return;
  live.out.num_generated = live.num_generated;
  Output out;
  out.id = live.request.id;
  out.num_prompt = live.out.num_prompt;
  out.num_cached = live.out.num_cached;
  std::swap(out, live.out);
  outputs_.push_back(std::move(out));
}

void Engine::finish(Live& live, double now) {
  const uint64_t id = live.request.id;
  if (live.decoder && *live.finish != Finish::kError && !live.scanner.stopped())
    live.out.text += live.scanner.push(live.decoder->finish()) + live.scanner.finish();
  live.out.num_generated = live.num_generated;
  live.out.finish = live.finish;
  ++counters_.num_finished[static_cast<size_t>(*live.finish)];
  counters_.whole.add(now - live.arrival);
  if (live.first_token >= 0) counters_.decode.add(now - live.first_token);
  outputs_.push_back(std::move(live.out));
  scheduler_.remove(id);
  live_.erase(id);
  --num_open_;
}

void Engine::run() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      if (live_.empty() && inbox_.empty() && cancelled_.empty()) busy_since_ = -1.0;
      wake_.wait(lock, [&] {
        return stop_ || aborted_ || !live_.empty() || !inbox_.empty() || !cancelled_.empty();
      });
      if (stop_) break;
    }
    const double now = steady_seconds();
    busy_since_ = now;
    step(now);
  }
  const double now = steady_seconds();
  take_inbox(now);
  while (!live_.empty()) {
    Live& live = *live_.begin()->second;
    live.finish = Finish::kCancelled;
    finish(live, now);
  }
  publish_stats();
  if (!outputs_.empty()) deliver_(std::exchange(outputs_, {}));
  busy_since_ = -1.0;
}

}  // namespace hadal::serve
