// Engine: many requests at once through one model; plans, runs and delivers step by step.
//
//   T tokens of a step   R rows that logits are needed of   D model width   V vocabulary
//
// A request's tokens are those that Generator gives for it alone: positions, seed and the tokens
// before decide, never what else runs, how the prompt was cut, what the prefix cache held, whether
// it was preempted or drafts were verified.
//
// submit(), cancel() and stats() may be called from any thread; step() and run() from one alone,
// which is the only one that uses the context.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "core/pinned_buffer.h"
#include "io/tokenizer.h"
#include "model/decoder.h"
#include "ops/sample.h"
#include "serve/request.h"
#include "serve/scheduler.h"
#include "serve/stats.h"
#include "serve/step_runner.h"

namespace hadal::serve {

class Engine {
 public:
  struct Options {
    int64_t max_queue = 64;      // sequences that may wait, beyond those that can run
    int64_t speculate = 0;       // drafts of a round by MTP; text stays the same
    int64_t speculate_seqs = 4;  // none are drafted while more sequences run
    double aging_seconds = 10.0;
    bool prefix_cache = true;
    // Plan a step while the one before runs, and let the device record steps if it can. Steps with
    // a request that the host takes part in (drafts, penalties, a form, log probabilities) wait.
    bool overlap = false;
  };
  // Gets what each step brought, on the thread of step().
  using Deliver = std::function<void(std::vector<Output>&&)>;

  // Takes all of the decoder's cache, of every home. Without a tokenizer outputs have no text.
  Engine(Context& ctx, Decoder& decoder, std::optional<io::Tokenizer> tokenizer,
         const Options& options, Deliver deliver);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  enum class Answer : uint8_t { kAccepted, kBusy, kClosed };
  // All of them or none. An Error says what is wrong with a request.
  Answer submit(std::vector<Request> requests);
  // It ends as kCancelled before the next step, unless it has ended.
  void cancel(uint64_t id);
  // Nothing is accepted any more; what was accepted goes on.
  void close();

  // One step at time `now`; false when there was nothing to do. Of several ranks a step that failed
  // ends all requests with an error, and is thrown: the others are not where this one is.
  bool step(double now);
  // Steps until stop(), and waits while there is nothing to do. Throws what step() throws.
  void run();
  void stop();
  // The next step fails so, from any thread: a rank that the engine does not wait for is gone.
  void abort(std::exception_ptr why);

  EngineStats stats() const;
  // Sequences that were accepted and have not ended.
  int64_t num_open() const { return num_open_.load(); }
  // Seconds since the loop last made progress, 0 while it waits for work.
  double stalled_seconds() const;
  int64_t max_tokens() const { return scheduler_.limits().max_tokens; }

 private:
  struct Live;
  struct Forward;
  struct Draw;
  // A step under way: which of its draws is whose; row -1: none.
  struct Flight {
    struct Item {
      uint64_t id;
      int64_t row;
    };
    std::vector<Item> items;
  };
  struct Rows {
    Block memory;  // empty where the rows are a view
    Tensor tensor;
  };
  void take_inbox(double now);
  void check(const Request& request) const;
  void limit_speculation();
  bool can_overlap() const;
  void launch_step(const StepPlan& plan, const std::vector<PageCopy>& copies, double now);
  void collect(double now);
  void take_drawn(Live& live, int32_t token, double now);
  void note_failure();
  void break_down(double now);
  void fail(const std::vector<uint64_t>& ids, const std::string& error, double now);
  void run_step(const StepPlan& plan, const std::vector<PageCopy>& copies, double now);
  void copy_pages(const std::vector<PageCopy>& copies);
  // All but its ids.
  void add_sequence(PagedTokens& tokens, const Sequence& s, int64_t start, int64_t count) const;
  Rows take_rows(const Tensor& h, const std::vector<int32_t>& rows);
  // A token from each row of logits [n, V], by its rule.
  std::vector<int32_t> sample(const std::vector<ops::SampleRule>& rules, const Tensor& logits,
                              const std::vector<int32_t>& positions);
  void draw(const StepPlan& plan, const Forward& f);
  void draw_plain(const Forward& f, std::vector<Draw>& draws);
  void draw_changed(const Forward& f, const std::vector<Draw*>& draws);
  void score(const Forward& f, const std::vector<Draw*>& draws);
  bool accept(Draw& draw);
  void add_token(Live& live, int32_t token);
  void deliver_token(Live& live, int32_t token);
  void deliver_step(Live& live);
  void count_token_time(Live& live, double now);
  int64_t score_prompt(Live& live, const StepPlan::Run& run, const Forward& f, int64_t row);
  void draft(const StepPlan& plan, Forward& f);
  void finish(Live& live, double now);
  void end_step(const StepPlan& plan, double now);
  void publish_stats();

  Context& ctx_;
  Decoder& decoder_;
  std::optional<io::Tokenizer> tokenizer_;
  Options options_;
  Deliver deliver_;
  Scheduler scheduler_;
  std::map<uint64_t, std::unique_ptr<Live>> live_;
  std::unique_ptr<StepRunner> runner_;  // where steps overlap
  std::optional<Flight> flight_;
  std::vector<Output> outputs_;               // of this step
  PinnedBuffer changed_logits_{ctx_.device};  // of draw_changed()
  EngineStats counters_;
  std::exception_ptr broken_;  // what ends the engine

  mutable std::mutex mutex_;  // of what follows
  std::condition_variable wake_;
  std::vector<Request> inbox_;
  std::vector<uint64_t> cancelled_;
  EngineStats published_;
  int64_t num_submitted_ = 0, num_rejected_ = 0;
  bool closed_ = false, stop_ = false;
  std::exception_ptr aborted_;
  std::atomic<int64_t> num_open_{0};
  std::atomic<double> busy_since_{-1.0};  // negative: waits for work
};

}  // namespace hadal::serve
