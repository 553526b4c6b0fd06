// Trainer: the loop of a run.
// SPDX-License-Identifier: Apache-2.0
#include "train/trainer.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <numbers>
#include <optional>
#include <utility>

#include "core/env.h"
#include "core/timer.h"
#include "core/transfer.h"
#include "io/atomic.h"
#include "io/hf.h"
#include "train/checkpoint.h"
#include "train/checkpoint_writer.h"
#include "train/feed.h"
#include "train/guard.h"
#include "train/metrics.h"
#include "train/micro_batches.h"
#include "train/report.h"
#include "train/split_weights.h"

namespace hadal::train {
namespace {

namespace fs = std::filesystem;

double mean(double sum, int64_t count) {
  return count > 0 ? sum / static_cast<double>(count) : 0.0;
}

int64_t count_tokens(const std::vector<Sequence>& sequences) {
  int64_t tokens = 0;
  for (const Sequence& s : sequences) tokens += static_cast<int64_t>(s.ids.size());
  return tokens;
}

// A model's config but for positions, which a run that extends the context may turn otherwise.
io::Json without_positions(const Config& config) {
  Config same = config;
  same.rope = {};
  same.max_position_embeddings = 1;
  return io::hf_config_to_json(same, DType::kF32, {});
}

// The planted fault "spike": what some sequences of the data would do.
constexpr int64_t kBadBegin = 64, kBadEnd = 76;
void plant_spike(std::vector<Sequence>& sequences, int64_t position) {
  for (Sequence& s : sequences) {
    if (position >= kBadBegin && position < kBadEnd)
      for (size_t i = 0; i < s.targets.size(); ++i)
        s.targets[i] = static_cast<int32_t>((static_cast<size_t>(position) * 31 + i * 17) % 7);
    ++position;
  }
}

// One run in progress.
class Run {
 public:
  Run(Context& ctx, const RunConfig& run, const TrainOptions& options)
      : ctx_(ctx),
        run_(run),
        options_(options),
        feed_(run),
        learner_(ctx, trained_model(run), run.train.dtype,
                 run.train.micro_batch_sequences * run.train.sequence_length,
                 {.moments = run.train.moments,
                  .ema_decay = run.train.ema_decay,
                  .team = options.team,
                  .max_micro_batches = most_micro_batches(run)}),
        team_(learner_.team()),
        guard_(run.train.guard),
        writer_(run, learner_) {}

  TrainReport go();

 private:
  void start();
  void init_weights();
  void resume(const std::string& checkpoint);
  Verdict one_step();
  void roll_back();
  void evaluate(bool all);
  void checkpoint();
  Moment now() const { return {.steps = state_.step, .tokens = state_.tokens}; }
  // After a step: whether any rank was asked to stop; checkpoints go on.
  bool ranks_agree_to_stop();
  bool due(int64_t every) const { return every > 0 && state_.step % every == 0; }

  Context& ctx_;
  const RunConfig& run_;
  const TrainOptions& options_;
  Feed feed_;
  Learner learner_;
  Team& team_;
  Guard guard_;
  CheckpointWriter writer_;
  TrainerState state_;
  std::unique_ptr<Metrics> metrics_;  // of the first rank
  TrainReport report_;
  double checkpoint_seconds_ = 0.0;  // that steps waited for the last one; until it is reported
};

bool Run::ranks_agree_to_stop() {
  const bool stop = options_.should_stop && options_.should_stop();
  Tensor sums;
  const Block memory = ctx_.memory.take_tensor(DType::kI64, {2}, &sums);
  upload(ctx_, std::vector<int64_t>{stop ? 1 : 0, writer_.is_writing() ? 1 : 0}, sums);
  team_.world().all_reduce(ctx_, sums);
  const std::vector<int64_t> all = download<int64_t>(ctx_, sums);
  if (all[1] == 0) writer_.parts_are_written();
  return all[0] > 0;
}

// Random, or those of another checkpoint.
void Run::init_weights() {
  const TrainConfig& t = run_.train;
  if (t.init_from.empty()) {
    init_params(ctx_, run_.model, t.seed, learner_.masters().tree, team_.share().tensor);
  } else {
    const io::HfCheckpoint checkpoint = io::open_checkpoint(t.init_from);
    HADAL_CHECK(
        without_positions(checkpoint.config) == without_positions(run_.model),
        "train.init_from: ", t.init_from,
        " has another model config than this run; copy its config.json into \"model\" (only "
        "rope and max_position_embeddings may differ)");
    read_weights(ctx_, checkpoint, team_, learner_.masters().tree);
  }
  learner_.masters_changed();
  learner_.start_average();
}

void Run::resume(const std::string& checkpoint) {
  state_ = load_run_checkpoint(ctx_, checkpoint, run_, learner_);
  feed_.restore(io::JsonObject::parse(state_.feed, checkpoint + "/trainer.json: feed"));
  guard_.restore(io::JsonObject::parse(state_.guard, checkpoint + "/trainer.json: guard"));
  if (team_.is_first()) fmt::print("resuming from {}\n", checkpoint);
  // Planted faults, to show that scripts/resume_check.sh notices them.
  if (env::sabotage() == "rng") feed_.sabotage_seed();
  if (env::sabotage() == "position") feed_.sabotage_position();
}

// Weights and state: from the newest checkpoint, another checkpoint, or random.
void Run::start() {
  const TrainConfig& t = run_.train;
  const std::optional<std::string> newest = latest_checkpoint(t.output);
  HADAL_CHECK(options_.resume || !newest, t.output, " already holds a run (", newest.value_or(""),
              "); add --resume to go on with it, or choose another train.output");
  HADAL_CHECK(newest || !options_.resume, t.output,
              " has no checkpoint to resume from; start the run without --resume");
  if (team_.is_first())
    for (const std::string& line : feed_.describe()) fmt::print("{}\n", line);
  if (newest)
    resume(*newest);
  else
    init_weights();
  if (!team_.is_first()) return;
  // Only now, so that a start that is refused changes nothing.
  std::error_code error;
  fs::create_directories(t.output, error);
  HADAL_CHECK(!error, "cannot make ", t.output, ": ", error.message());
  io::write_json(t.output + "/run.json", to_json(run_));
  metrics_ = std::make_unique<Metrics>(t.output, state_.step);
}

Verdict Run::one_step() {
  const TrainConfig& t = run_.train;
  const int dp = team_.mesh().dp;
  const int64_t count = t.batch_of(now(), dp);
  HADAL_CHECK(count % dp == 0, "parallel.dp = ", dp, " does not divide the ", count,
              " sequences of step ", state_.step + 1);
  team_.at_step(state_.step + 1);
  std::vector<Sequence> sequences = feed_.next(count);
  if (env::sabotage() == "spike") plant_spike(sequences, state_.position);
  const int64_t tokens = count_tokens(sequences);
  const Moment after{.steps = state_.step + 1, .tokens = state_.tokens + tokens};
  const Recipe recipe = recipe_of(t, now(), after);
  const StepResult result =
      learner_.compute_gradients(cut(std::move(sequences), t.micro_batch_sequences, dp), recipe);
  const Verdict verdict =
      t.guard.enabled ? guard_.judge(after.steps, result.main, result.grad_norm) : Verdict::kGood;
  if (verdict == Verdict::kGood) {
    checkpoint_seconds_ += writer_.release_state();
    learner_.update(recipe, ++state_.updates, result);
  }
  state_.step = after.steps;
  state_.tokens = after.tokens;
  state_.position += count;
  const double progress = t.tokens > 0
                              ? static_cast<double>(after.tokens) / static_cast<double>(t.tokens)
                              : static_cast<double>(after.steps) / static_cast<double>(t.steps);
  if (metrics_)
    metrics_->step({.done = after,
                    .progress = std::min(1.0, progress),
                    .tokens = tokens,
                    .sequences = count,
                    .bytes_per_target = feed_.bytes_per_target(),
                    .skipped = verdict != Verdict::kGood,
                    .checkpoint_seconds = std::exchange(checkpoint_seconds_, 0.0)},
                   result, recipe);
  return verdict;
}

// Back to the weights before the streak of bad steps, on with the data after it.
void Run::roll_back() {
  const std::string& output = run_.train.output;
  writer_.finish();
  const auto target = checkpoint_up_to(output, guard_.last_good_step());
  HADAL_CHECK(target.has_value(), "the loss spiked at step ", guard_.last_good_step() + 1, " and ",
              output,
              " keeps no checkpoint from before it to go back to; raise train.keep_checkpoints");
  const int64_t from = state_.step, rollbacks = guard_.num_rollbacks();
  const int64_t position = state_.position;
  state_ = load_run_checkpoint(ctx_, *target, run_, learner_);
  state_.position = position;
  guard_.restore(io::JsonObject::parse(state_.guard, *target + "/trainer.json: guard"));
  guard_.rolled_back(rollbacks);
  team_.world().barrier();  // all have read it
  if (!metrics_) return;
  go_back_to(output, state_.step);
  metrics_->rolled_back(from, state_.step);
}

void Run::checkpoint() {
  state_.feed = feed_.state().dump();
  state_.guard = guard_.state().dump();
  const Timer timer;
  writer_.save(state_);
  checkpoint_seconds_ = timer.seconds();
}

// Held-out text in sequences of the training length. On the way only part of it, at the end all.
void Run::evaluate(bool all) {
  const TrainConfig& t = run_.train;
  // At the end windows overlap by half, so that every token but the first sees half a window or
  // more.
  const int64_t stride = all ? std::max<int64_t>(1, t.sequence_length / 2) : t.sequence_length;
  std::vector<Sequence> windows = feed_.held_out(stride);
  if (windows.empty()) return;
  if (!all && t.eval_tokens > 0)
    windows.resize(std::min(windows.size(), static_cast<size_t>(std::max<int64_t>(
                                                1, t.eval_tokens / t.sequence_length))));
  const Learner::Evaluation e = learner_.evaluate(cut(std::move(windows), t.micro_batch_sequences));
  const double loss = mean(e.main_sum, e.num_targets);
  std::vector<double> mtp;
  for (size_t k = 0; k < e.mtp_sum.size(); ++k) mtp.push_back(mean(e.mtp_sum[k], e.mtp_targets[k]));
  StepResult load;
  load.counts = e.counts;
  report_.held_out_loss = loss;
  report_.held_out_bits_per_byte = loss / std::numbers::ln2 / feed_.held_out_bytes_per_target();
  report_.max_violation = load.max_violation();
  if (metrics_)
    metrics_->evaluation(state_.step, loss, report_.held_out_bits_per_byte, mtp,
                         report_.max_violation);
}

TrainReport Run::go() {
  const TrainConfig& t = run_.train;
  start();
  if (t.guard.enabled && !options_.resume) checkpoint();  // so that every step has one before it
  const Timer timer;
  bool stopped = false;
  while (!t.is_over(now()) && !stopped) {
    if (one_step() == Verdict::kRollBack) {
      roll_back();
      continue;
    }
    stopped = ranks_agree_to_stop();
    const bool last = t.is_over(now());
    if (!last && due(t.eval_every)) evaluate(false);
    if (last || stopped || due(t.checkpoint_every)) checkpoint();
    // Only the first rank writes it, and only it needs to know.
    if (options_.should_report && options_.should_report() && metrics_) write_report(t.output);
  }
  writer_.finish();
  report_.steps = state_.step;
  report_.finished = t.is_over(now());
  if (report_.finished) evaluate(true);
  if (metrics_) {
    metrics_->end_line();
    write_report(t.output);
  }
  report_.seconds = timer.seconds();
  return report_;
}

}  // namespace

Recipe recipe_of(const TrainConfig& t, Moment before, Moment after) {
  Recipe r;
  r.lr = t.lr.at(before, after);
  r.beta1 = t.beta1;
  r.beta2 = t.beta2;
  r.eps = t.eps;
  r.weight_decay = t.weight_decay;
  r.clip_norm = t.clip_norm;
  r.mtp_weight = t.mtp_weight.at(before, after);
  r.balance_alpha = t.balance_alpha.at(before, after);
  r.bias_gamma = t.bias_gamma.at(before, after);
  return r;
}

TrainReport run_training(Context& ctx, const RunConfig& run, const TrainOptions& options) {
  return Run(ctx, run, options).go();
}

}  // namespace hadal::train
