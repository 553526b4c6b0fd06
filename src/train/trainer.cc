// Trainer: the loop of a run.
// SPDX-License-Identifier: Apache-2.0
#include "train/trainer.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numbers>
#include <optional>

#include "core/env.h"
#include "core/timer.h"
#include "io/atomic.h"
#include "io/hf.h"
#include "io/tokenizer.h"
#include "train/checkpoint.h"
#include "train/data.h"
#include "train/metrics.h"

namespace hadal::train {
namespace {

namespace fs = std::filesystem;

TextData load_data(const RunConfig& run) {
  HADAL_CHECK(!run.data.text.empty(), "data.text is empty; name a text file");
  HADAL_CHECK(!run.data.tokenizer.empty(),
              "data.tokenizer is empty; make one with: hadal tokenizer train");
  const auto tokenizer = io::Tokenizer::load(run.data.tokenizer + "/tokenizer.json");
  HADAL_CHECK(tokenizer.vocab_size() <= run.model.vocab_size, run.data.tokenizer, " has ",
              tokenizer.vocab_size(),
              " tokens, more than model.vocab_size = ", run.model.vocab_size);
  return load_text(run.data.text, tokenizer, run.data.held_out,
                   static_cast<int32_t>(run.model.bos_token_id));
}

// Cuts sequences into micro-batches of at most `size`.
std::vector<std::vector<Sequence>> cut(std::vector<Sequence> sequences, int64_t size) {
  std::vector<std::vector<Sequence>> batches;
  for (size_t i = 0; i < sequences.size(); i += static_cast<size_t>(size)) {
    const size_t end = std::min(sequences.size(), i + static_cast<size_t>(size));
    batches.emplace_back(
        std::make_move_iterator(sequences.begin() + static_cast<std::ptrdiff_t>(i)),
        std::make_move_iterator(sequences.begin() + static_cast<std::ptrdiff_t>(end)));
  }
  return batches;
}

double mean(double sum, int64_t count) {
  return count > 0 ? sum / static_cast<double>(count) : 0.0;
}

// One run in progress.
class Run {
 public:
  Run(Context& ctx, const RunConfig& run, const TrainOptions& options)
      : ctx_(ctx),
        run_(run),
        options_(options),
        data_(load_data(run)),
        learner_(ctx, run.model, run.train.dtype,
                 run.train.micro_batch_sequences * run.train.sequence_length) {}

  TrainReport go();

 private:
  void start();
  void one_step();
  void evaluate(bool all);
  void checkpoint() { save_run_checkpoint(run_, learner_, state_); }
  bool due(int64_t every) const { return every > 0 && state_.step % every == 0; }

  Context& ctx_;
  const RunConfig& run_;
  const TrainOptions& options_;
  TextData data_;
  Learner learner_;
  TrainerState state_;
  std::unique_ptr<Metrics> metrics_;
  TrainReport report_;
  uint64_t data_seed_ = 0;
};

// Weights and state: from the newest checkpoint, another checkpoint, or random.
void Run::start() {
  const TrainConfig& t = run_.train;
  data_seed_ = t.seed;
  const std::optional<std::string> newest = latest_checkpoint(t.output);
  HADAL_CHECK(options_.resume || !newest, t.output, " already holds a run (", newest.value_or(""),
              "); add --resume to go on with it, or choose another train.output");
  HADAL_CHECK(newest || !options_.resume, t.output,
              " has no checkpoint to resume from; start the run without --resume");
  if (newest) {
    state_ = load_run_checkpoint(ctx_, *newest, run_, learner_);
    fmt::print("resuming from {}\n", *newest);
    // Planted faults, to show that scripts/resume_check.sh notices them.
    if (env::sabotage() == "rng") ++data_seed_;
    if (env::sabotage() == "position") ++state_.position;
  } else if (!t.init_from.empty()) {
    const io::HfCheckpoint checkpoint = io::open_checkpoint(t.init_from);
    const io::Json theirs = io::hf_config_to_json(checkpoint.config, DType::kF32, {});
    HADAL_CHECK(theirs == io::hf_config_to_json(run_.model, DType::kF32, {}),
                "train.init_from: ", t.init_from,
                " has another model config than this run; copy its config.json into \"model\"");
    io::read_weights(ctx_, checkpoint, learner_.masters().tree);
    learner_.masters_changed();
  } else {
    init_params(ctx_, run_.model, t.seed, learner_.masters().tree);
    learner_.masters_changed();
  }
  check_long_enough(data_, t.sequence_length);
  // Only now, so that a start that is refused changes nothing.
  std::error_code error;
  fs::create_directories(t.output, error);
  HADAL_CHECK(!error, "cannot make ", t.output, ": ", error.message());
  io::write_json(t.output + "/run.json", to_json(run_));
  metrics_ = std::make_unique<Metrics>(t.output + "/metrics.jsonl", state_.step, t.steps);
}

void Run::one_step() {
  const TrainConfig& t = run_.train;
  const Recipe recipe = recipe_of(t, state_.step + 1);
  const auto batches =
      cut(training_batch(data_, data_seed_, state_.position, t.batch_sequences, t.sequence_length),
          t.micro_batch_sequences);
  const StepResult result = learner_.step(batches, recipe, state_.step + 1);
  const int64_t tokens = t.batch_sequences * t.sequence_length;
  ++state_.step;
  state_.position += t.batch_sequences;
  state_.tokens += tokens;
  const double bytes_per_token =
      static_cast<double>(data_.train_bytes) / static_cast<double>(data_.train.size());
  metrics_->step(state_.step, result, recipe, tokens, bytes_per_token);
}

// Held-out text in windows of the training length. On the way only part of it, at the end all.
void Run::evaluate(bool all) {
  const TrainConfig& t = run_.train;
  if (data_.held_out.empty()) return;
  // At the end windows overlap by half, so that every token but the first sees half a window or
  // more.
  const int64_t stride = all ? std::max<int64_t>(1, t.sequence_length / 2) : t.sequence_length;
  std::vector<Sequence> windows = held_out_windows(data_, t.sequence_length, stride);
  if (!all && t.eval_tokens > 0)
    windows.resize(std::min(windows.size(), static_cast<size_t>(std::max<int64_t>(
                                                1, t.eval_tokens / t.sequence_length))));
  const Learner::Evaluation e = learner_.evaluate(cut(std::move(windows), t.micro_batch_sequences));
  const double loss = mean(e.main_sum, e.num_targets);
  const double bytes_per_token =
      static_cast<double>(data_.held_out_bytes) / static_cast<double>(data_.held_out.size());
  std::vector<double> mtp;
  for (size_t k = 0; k < e.mtp_sum.size(); ++k) mtp.push_back(mean(e.mtp_sum[k], e.mtp_targets[k]));
  StepResult load;
  load.counts = e.counts;
  report_.held_out_loss = loss;
  report_.held_out_bits_per_byte = loss / std::numbers::ln2 / bytes_per_token;
  report_.max_violation = load.max_violation();
  metrics_->evaluation(state_.step, loss, report_.held_out_bits_per_byte, mtp,
                       report_.max_violation);
}

TrainReport Run::go() {
  const TrainConfig& t = run_.train;
  start();
  const Timer timer;
  bool stopped = false;
  while (state_.step < t.steps && !stopped) {
    one_step();
    stopped = options_.should_stop && options_.should_stop();
    const bool last = state_.step == t.steps;
    if (!last && !stopped && due(t.eval_every)) evaluate(false);
    if (last || stopped || due(t.checkpoint_every)) checkpoint();
  }
  report_.steps = state_.step;
  report_.finished = state_.step >= t.steps;
  if (report_.finished) evaluate(true);
  metrics_->end_line();
  report_.seconds = timer.seconds();
  return report_;
}

}  // namespace

Recipe recipe_of(const TrainConfig& t, int64_t step) {
  Recipe r;
  r.lr = learning_rate(t.lr, step, t.steps);
  r.beta1 = t.beta1;
  r.beta2 = t.beta2;
  r.eps = t.eps;
  r.weight_decay = t.weight_decay;
  r.clip_norm = t.clip_norm;
  r.mtp_weight = t.mtp_weight_final_step > 0 && step >= t.mtp_weight_final_step ? t.mtp_weight_final
                                                                                : t.mtp_weight;
  r.balance_alpha = t.balance_alpha;
  r.bias_gamma = t.bias_gamma_zero_step > 0 && step >= t.bias_gamma_zero_step ? 0.0 : t.bias_gamma;
  return r;
}

TrainReport run_training(Context& ctx, const RunConfig& run, const TrainOptions& options) {
  return Run(ctx, run, options).go();
}

}  // namespace hadal::train
