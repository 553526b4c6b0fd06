// Learner: a model with its masters, gradients and moments, and one optimizer step over
// micro-batches.
//
//   Dm MTP depths   M MoE layers (MTP blocks last)   E experts
//
// Masters, gradients and the average are f32 (f64 when computing in f64), moments that or bf16;
// bf16 compute reads a bf16 copy of matrices and embeddings made after each step, FP8 products an
// e4m3 copy (config.precision). Sums over
// micro-batches, clipping and the bias update see the whole step, so the result depends on how it
// is cut only through rounding.
//
// Where ranks have room for a stated number of their experts' rows (parallel.row_capacity), a step
// that needed more on any of them is done again on all, with micro-batches of half the sequences.
//
// In a team every rank has a learner of what it holds, and all make the same calls with the same
// arguments: each computes the micro-batches of its data-parallel rank, in the order of the
// pipeline's schedule. Gradients are summed into shares, those of a layer while the backward of
// others goes on, the moments exist as shares alone (ZeRO-1), and the masters that a rank updated
// go to the ranks that hold them too. What a step measured is the same on every rank, bit for bit.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "model/fp8_weights.h"
#include "model/param_store.h"
#include "model/stage.h"
#include "ops/optim.h"
#include "parallel/expert_exchange.h"
#include "parallel/pipeline.h"
#include "parallel/team.h"
#include "parallel/window_exchange.h"
#include "train/gradient_sums.h"
#include "train/master_gather.h"
#include "train/recorded_step.h"

namespace hadal::train {

// Everything that may change from step to step.
struct Recipe {
  double lr = 0.0;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double clip_norm = 1.0;       // 0: no clipping
  double mtp_weight = 0.3;      // lambda; divided by the number of depths (report, eq. 25)
  double balance_alpha = 1e-4;  // sequence-wise balance loss
  double bias_gamma = 1e-3;     // auxiliary-loss-free bias update speed
};

// What a step measured. Losses are means over the targets of the step.
struct StepResult {
  double main = 0.0;
  std::vector<double> mtp;                   // [Dm]
  double balance = 0.0;                      // sum over MoE layers of the mean over sequences
  double grad_norm = 0.0;                    // before clipping
  std::vector<std::vector<int64_t>> counts;  // [M][E]
  int64_t num_targets = 0;
  int splits = 0;                // how often micro-batches were halved for want of rows
  ExchangeCounters exchange;     // of all ranks; zeros without expert parallelism
  double max_violation() const;  // mean over layers of max(count) / mean(count) - 1
};

// What a learner may hold otherwise or besides.
struct LearnerOptions {
  std::optional<DType> moments = {};  // stored type of AdamW's moments; none: the masters'
  double ema_decay = 0.0;             // of a moving average of the weights; 0: none
  Team* team = nullptr;               // this rank among others; none: alone. Outlives the learner
  int64_t max_micro_batches = 1;      // most of a step on one data-parallel rank
  // What experts' tokens go through, made of what they would go through: for benches. What it does
  // in streams is recorded with a micro-batch, so it is not called for those that are launched.
  std::function<std::unique_ptr<Exchange>(std::unique_ptr<Exchange>)> wrap_exchange = {};
};

class Learner {
 public:
  // compute: f64, f32 or bf16. max_tokens: most tokens of a micro-batch.
  // REQUIRES: the pipeline's schedule fits every number of micro-batches up to max_micro_batches
  // that a step has.
  Learner(Context& ctx, const Config& config, DType compute, int64_t max_tokens,
          const LearnerOptions& options = {});

  Context& context() const { return ctx_; }
  const Config& config() const { return config_; }  // with this rank's heads and dense widths
  DType master_dtype() const { return masters_.flat().dtype(); }
  // NOTE: everything that reads the masters gets them here, or awaits its layer (MasterGather).
  ParamStore& masters() {
    gather_.finish();
    return masters_;
  }
  ParamStore& grads() { return grads_; }
  ParamStore& first_moment() { return m_; }
  ParamStore& second_moment() { return v_; }
  // The moving average of the masters, router biases as they are; null if there is none.
  ParamStore* average() { return average_.get(); }
  const Weights& weights() {  // as modules read them
    gather_.finish();
    return weights_;
  }
  Team& team() { return *team_; }
  // Times the steps of the pipeline's program from now on, call by call; null: no more. A rank that
  // is alone in its pipeline has none worth timing.
  void time_steps(StepClock* clock) { clock_ = clock; }

  // After the masters were changed from outside (loaded, initialised): refreshes the bf16 copy.
  void masters_changed();
  // The average begins at the masters.
  void start_average();

  // One step: gradients of all micro-batches, then the update. step is 1 for the first. In a team:
  // of all data-parallel ranks, rank by rank, as many for each.
  StepResult step(const std::vector<std::vector<Sequence>>& micro_batches, const Recipe& recipe,
                  int64_t step);
  // The first half alone: gradients of the objective into grads(), losses and counts measured. In a
  // team, of grads() this rank's shares are whole.
  StepResult compute_gradients(const std::vector<std::vector<Sequence>>& micro_batches,
                               const Recipe& recipe);
  // The second half alone; an Error if the gradient norm is not finite (nothing is changed then).
  void update(const Recipe& recipe, int64_t step, const StepResult& measured);

  // Losses without gradients: sums over targets of the main model and of each depth. In a team
  // micro-batches go to the data-parallel ranks in turns.
  struct Evaluation {
    double main_sum = 0.0;
    int64_t num_targets = 0;
    std::vector<double> mtp_sum;
    std::vector<int64_t> mtp_targets;
    std::vector<std::vector<int64_t>> counts;  // [M][E]
  };
  Evaluation evaluate(const std::vector<std::vector<Sequence>>& micro_batches);
  // Micro-batches, or steps of a pipeline, that were recorded before (on a GPU).
  int64_t num_recorded_launches() const { return recorded_ ? recorded_->num_launched() : 0; }

 private:
  void make_stages(int64_t max_tokens, const LearnerOptions& options);
  // Whether a micro-batch is recorded by itself, and whether all of them together tell of layers
  // whose gradients are whole.
  bool records_one_by_one() const;
  bool tells_of_layers() const;
  void run_micro_batches(std::span<const RecordedStep::MicroBatch> micro_batches);
  bool rows_were_missing();
  std::vector<std::vector<Sequence>> halved(
      const std::vector<std::vector<Sequence>>& micro_batches) const;
  void reduce_meter(stage::Meter& meter);
  ExchangeCounters reduce_counters();
  double gradient_norm();
  void apply(const ops::AdamW& rule);
  void move_biases(double gamma);

  Context& ctx_;
  Config config_;
  DType compute_;
  double ema_decay_;
  std::unique_ptr<Team> alone_;  // where no team was given
  Team* team_;
  ParamStore masters_, grads_, m_, v_;
  std::unique_ptr<ParamStore> copies_;   // bf16 compute only
  std::unique_ptr<Fp8Weights> fp8_;      // with precision.fp8
  std::unique_ptr<ParamStore> average_;  // with ema_decay
  Weights weights_;                      // as modules read them
  Grads module_grads_;                   // as modules add to them
  RowPool rows_;
  std::unique_ptr<PeerWindows> windows_;  // where experts' tokens travel through them
  std::unique_ptr<Exchange> exchange_;
  std::unique_ptr<PipelineLinks> links_;  // where messages travel beside the work
  std::unique_ptr<Pipeline> pipeline_;
  GradientSums sums_;
  MasterGather gather_;
  StepClock* clock_ = nullptr;
  stage::Meter meter_;                      // of the whole model
  std::unique_ptr<RecordedStep> recorded_;  // on a GPU, where no host has part in a micro-batch
};

}  // namespace hadal::train
