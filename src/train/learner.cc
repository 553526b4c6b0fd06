// Learner: the training step.
// SPDX-License-Identifier: Apache-2.0
#include "train/learner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/env.h"
#include "core/transfer.h"
#include "ops/copy.h"
#include "ops/optim.h"
#include "ops/routing.h"

namespace hadal::train {
namespace {

std::vector<std::vector<int64_t>> read_counts(Context& ctx, const Tensor& counts) {
  const std::vector<int64_t> flat = download<int64_t>(ctx, counts);
  std::vector<std::vector<int64_t>> all;
  for (int64_t m = 0; m < counts.dim(0); ++m) {
    const auto row = flat.begin() + m * counts.dim(1);
    all.emplace_back(row, row + counts.dim(1));
  }
  return all;
}

// Targets and sequences of a whole step, by depth: index 0 is the main model.
struct Totals {
  std::vector<int64_t> targets, sequences;
};

Totals count_totals(const std::vector<std::vector<Sequence>>& micro_batches, int64_t num_mtp) {
  Totals totals;
  for (int64_t k = 0; k <= num_mtp; ++k) {
    int64_t targets = 0, sequences = 0;
    for (const auto& batch : micro_batches)
      for (const Sequence& s : batch) {
        int64_t positions = 0;
        for (int64_t d = 0; d < s.num_documents(); ++d) {
          const int64_t first = s.begin_of(d) + k, last = s.end_of(d);
          if (last <= first) continue;
          positions += last - first;
          targets +=
              last - first - std::count(s.targets.begin() + first, s.targets.begin() + last, -1);
        }
        if (positions > 0) ++sequences;
      }
    totals.targets.push_back(targets);
    totals.sequences.push_back(sequences);
  }
  return totals;
}

double share(double weight, int64_t count) {
  return count > 0 ? weight / static_cast<double>(count) : 0.0;
}

// The planted fault "counts": what bf16 counters would hold.
void round_counts_to_bf16(Context& ctx, const Tensor& counts) {
  std::vector<int64_t> values = download<int64_t>(ctx, counts);
  for (int64_t& v : values) v = static_cast<int64_t>(to_f32(to_bf16(static_cast<float>(v))));
  upload(ctx, values, counts);
}

}  // namespace

double StepResult::max_violation() const {
  double sum = 0.0;
  for (const auto& layer : counts) {
    int64_t total = 0, largest = 0;
    for (int64_t count : layer) {
      total += count;
      largest = std::max(largest, count);
    }
    if (total > 0)
      sum += static_cast<double>(largest) * static_cast<double>(layer.size()) /
                 static_cast<double>(total) -
             1.0;
  }
  return counts.empty() ? 0.0 : sum / static_cast<double>(counts.size());
}

Learner::Learner(Context& ctx, const Config& config, DType compute, int64_t max_tokens,
                 const LearnerOptions& options)
    : ctx_(ctx),
      config_(split_config(config, options.team != nullptr ? options.team->mesh().tp : 1)),
      compute_(compute),
      ema_decay_(options.ema_decay),
      alone_(options.team != nullptr ? nullptr
                                     : std::make_unique<Team>(ParallelConfig{}, config, nullptr)),
      team_(options.team != nullptr ? options.team : alone_.get()),
      masters_(ctx, config_, stat_dtype(compute), ParamStore::Extent::kAll, team_->share()),
      grads_(ctx, config_, stat_dtype(compute), ParamStore::Extent::kTrained, team_->share()),
      m_(ctx, config_, options.moments.value_or(stat_dtype(compute)), ParamStore::Extent::kShare,
         team_->share()),
      v_(ctx, config_, options.moments.value_or(stat_dtype(compute)), ParamStore::Extent::kShare,
         team_->share()),
      copies_(compute == DType::kBF16
                  ? std::make_unique<ParamStore>(ctx, config_, compute,
                                                 ParamStore::Extent::kMatrices, team_->share())
                  : nullptr),
      fp8_(config.precision.fp8 ? std::make_unique<Fp8Weights>(ctx, config_, masters_.tree)
                                : nullptr),
      average_(options.ema_decay > 0.0
                   ? std::make_unique<ParamStore>(ctx, config_, stat_dtype(compute),
                                                  ParamStore::Extent::kAll, team_->share())
                   : nullptr),
      weights_(fp8_ ? fp8_->weights_of(masters_.tree, copies_ ? &copies_->tree : nullptr)
                    : weights_of(config_, masters_.tree, copies_ ? &copies_->tree : nullptr)),
      module_grads_(grads_.tree),
      rows_(ctx, config_, compute,
            row_pool_pages(team_->parallel(), config_, team_->at().pp, max_tokens,
                           options.max_micro_batches),
            limits_rows(team_->parallel()) ? RowPool::TooFew::kCounted : RowPool::TooFew::kError),
      sums_(ctx, config_, *team_, grads_),
      gather_(ctx, config_, *team_,
              {.masters = masters_, .copies = copies_.get(), .fp8 = fp8_.get()}) {
  HADAL_CHECK(compute == DType::kF64 || compute == DType::kF32 || compute == DType::kBF16,
              "training computes in f64, f32 or bf16, not ", dtype_name(compute));
  HADAL_CHECK(!config.precision.fp8 || compute != DType::kF64,
              "FP8 products add in f32: train in bf16 or f32, not f64");
  drop_absent_experts(module_grads_);
  make_stages(max_tokens, options);
  if (device::can_record(ctx.device) && team_->recordable() != Team::Recordable::kNothing)
    recorded_ = std::make_unique<RecordedStep>(ctx, config_, compute);
}

void Learner::make_stages(int64_t max_tokens, const LearnerOptions& options) {
  const Team& team = *team_;
  if (team.mesh().ep == 1) {
    exchange_ = std::make_unique<LocalExchange>(rows_, config_.n_routed_experts);
  } else if (team.parallel().exchange == ExchangeKind::kMessages) {
    exchange_ = std::make_unique<ExpertExchange>(
        ExpertExchange::Groups{.inner = team_->in_node(),
                               .outer = team_->across_nodes(),
                               .num_experts = config_.n_routed_experts,
                               .side = team_->side()},
        rows_);
  } else {
    const WindowLayout layout(team.mesh().ep, (max_tokens + team.mesh().tp - 1) / team.mesh().tp,
                              config_.num_experts_per_tok, config_.hidden_size, compute_,
                              rows_.is_fp8());
    windows_ = team_->make_windows(static_cast<size_t>(layout.bytes));
    exchange_ = std::make_unique<WindowExchange>(
        ctx_,
        WindowExchange::Group{.view = windows_->view(),
                              .num_experts = config_.n_routed_experts,
                              .side = team_->side(),
                              .sms = team.parallel().comm_sms,
                              .stop = team_->stop_flag()},
        layout, rows_);
  }
  if (options.wrap_exchange) exchange_ = options.wrap_exchange(std::move(exchange_));
  const bool beside = team.mesh().ep > 1 && team.side() != nullptr;
  const int spare_sms = beside ? team.parallel().comm_sms : 0;
  std::vector<Pipeline::Local> stages;
  for (const LocalStage& s : team.stages())
    stages.push_back({.stage = s.stage,
                      .model = {.config = config_,
                                .w = weights_,
                                .exchange = *exchange_,
                                .first_layer = s.range.first_layer,
                                .last_layer = s.range.first_layer + s.range.num_layers,
                                .num_mtp = s.range.num_mtp,
                                .tensor = TensorGroup(team_->tensor()),
                                .spare_sms = spare_sms,
                                .layer_begins = [this](int64_t l) { gather_.await(l); }}});
  links_ = team_->make_links();
  pipeline_ = std::make_unique<Pipeline>(schedule_shape(team.parallel(), 1), team.at().pp,
                                         team_->pipeline(), std::move(stages), compute_,
                                         team.parallel().overlap, links_.get());
  meter_ = stage::make_meter(
      ctx_, stage::whole_model(config_, weights_, *exchange_, config_.num_nextn_predict_layers));
}

void Learner::masters_changed() { gather_.make_copies(); }

void Learner::start_average() {
  if (average_) ops::cast(ctx_, masters_.flat(), average_->flat());
}

StepResult Learner::compute_gradients(const std::vector<std::vector<Sequence>>& micro_batches,
                                      const Recipe& recipe) {
  const int64_t depths = config_.num_nextn_predict_layers;
  const int dp = team_->mesh().dp, count = static_cast<int>(micro_batches.size()) / dp;
  HADAL_CHECK(static_cast<int>(micro_batches.size()) == dp * count, "dp = ", dp,
              " does not divide the ", micro_batches.size(), " micro-batches of a step");
  const Totals totals = count_totals(micro_batches, depths);
  const double balance_alpha =
      recipe.balance_alpha * (env::sabotage() == "balance_by_ranks" ? dp : 1.0);
  stage::LossScale scale;
  scale.main = share(1.0, totals.targets[0]);
  scale.balance = share(balance_alpha, totals.sequences[0]);
  for (size_t k = 1; k < totals.targets.size(); ++k) {
    scale.mtp.push_back(share(recipe.mtp_weight / static_cast<double>(depths), totals.targets[k]));
    scale.mtp_balance.push_back(share(balance_alpha, totals.sequences[k]));
  }
  stage::LossScale nothing = scale;
  nothing.main = nothing.balance = 0.0;
  std::fill(nothing.mtp.begin(), nothing.mtp.end(), 0.0);
  std::fill(nothing.mtp_balance.begin(), nothing.mtp_balance.end(), 0.0);
  const bool drop_last = env::sabotage() == "microbatch";

  gather_.begin_step();
  stage::reset(ctx_, meter_);
  ops::fill(ctx_, 0.0, grads_.flat());
  if (auto* counted = dynamic_cast<CountedExchange*>(exchange_.get()))
    counted->reset_counters(ctx_);
  std::vector<RecordedStep::MicroBatch> mine;
  for (int i = 0; i < count; ++i)
    mine.push_back({.sequences = micro_batches[static_cast<size_t>(team_->data_rank() * count + i)],
                    .scale = drop_last && i + 1 == count ? nothing : scale});
  run_micro_batches(mine);
  team_->maybe_die("die_in_step");
  if (rows_were_missing()) {
    StepResult again = compute_gradients(halved(micro_batches), recipe);
    ++again.splits;
    return again;
  }
  StepResult result;
  reduce_meter(meter_);
  if (team_->mesh().ep > 1) result.exchange = reduce_counters();
  sums_.start_rest(tells_of_layers() ? GradientSums::Layers::kDone : GradientSums::Layers::kLeft);

  result.num_targets = totals.targets[0];
  result.main = share(download<double>(ctx_, meter_.main)[0], totals.targets[0]);
  const std::vector<double> mtp = download<double>(ctx_, meter_.mtp);
  for (size_t k = 0; k < mtp.size(); ++k)
    result.mtp.push_back(share(mtp[k], totals.targets[k + 1]));
  const std::vector<double> balance = download<double>(ctx_, meter_.balance);
  const int64_t num_moe = meter_.balance.num_elements(), main_moe = num_moe - depths;
  for (int64_t m = 0; m < num_moe; ++m)
    result.balance +=
        share(balance[static_cast<size_t>(m)],
              totals.sequences[static_cast<size_t>(std::max<int64_t>(0, m - main_moe + 1))]);
  result.counts = read_counts(ctx_, meter_.counts);
  result.grad_norm = gradient_norm();
  return result;
}

bool Learner::records_one_by_one() const {
  return recorded_ && team_->recordable() == Team::Recordable::kMicroBatch;
}

bool Learner::tells_of_layers() const { return sums_.starts_layers() && !records_one_by_one(); }

// One after the other or in the pipeline's order; on a GPU recorded, unless steps are timed.
void Learner::run_micro_batches(std::span<const RecordedStep::MicroBatch> micro_batches) {
  std::function<void(int64_t)> layer_done;
  if (tells_of_layers()) layer_done = [this](int64_t layer) { sums_.start(layer); };
  const auto run = [&](std::span<const RecordedStep::MicroBatch> some,
                       const std::function<Batch(int)>& batch) {
    pipeline_->run(ctx_, {.num_microbatches = static_cast<int>(some.size()),
                          .batch = batch,
                          .scale = [&](int i) -> const stage::LossScale& {
                            return some[static_cast<size_t>(i)].scale;
                          },
                          .meter = meter_,
                          .grads = module_grads_,
                          .clock = clock_,
                          .layer_done = layer_done,
                          .layer_done_sms = sums_.num_sms(),
                          .first_sms = gather_.goes_by_layers() ? sums_.num_sms() : 0});
    if (layer_done) sums_.finish_layers();
  };
  const int64_t depths = config_.num_nextn_predict_layers;
  if (!recorded_ || clock_ != nullptr) {
    std::optional<GraphMemory::Scope> scope;
    if (recorded_) scope.emplace(recorded_->temporaries());
    return run(micro_batches, [&](int i) {
      return make_batch(ctx_, config_, micro_batches[static_cast<size_t>(i)].sequences, depths,
                        compute_);
    });
  }
  const size_t at_once = records_one_by_one() ? 1 : micro_batches.size();
  for (size_t i = 0; i < micro_batches.size(); i += at_once) {
    const auto some = micro_batches.subspan(i, at_once);
    recorded_->run(some, depths, [&](std::span<const Batch> batches) {
      run(some, [&](int k) { return batches[static_cast<size_t>(k)].views(); });
    });
  }
}

// On any rank, since it was last asked.
bool Learner::rows_were_missing() {
  const Tensor missing = rows_.missing();
  if (missing.empty()) return false;
  team_->world().all_reduce(ctx_, Acc(Tensor(missing)));
  const bool any = download<int64_t>(ctx_, missing)[0] > 0;
  if (any) ops::fill(ctx_, 0.0, Out(Tensor(missing)));
  return any;
}

std::vector<std::vector<Sequence>> Learner::halved(
    const std::vector<std::vector<Sequence>>& micro_batches) const {
  std::vector<std::vector<Sequence>> halves;
  for (const std::vector<Sequence>& all : micro_batches) {
    const auto middle = all.begin() + static_cast<std::ptrdiff_t>((all.size() + 1) / 2);
    halves.emplace_back(all.begin(), middle);
    if (middle != all.end()) halves.emplace_back(middle, all.end());
  }
  HADAL_CHECK(halves.size() > micro_batches.size(), "parallel.row_capacity is ",
              team_->parallel().row_capacity,
              ", and a rank's experts need more rows than that for one sequence of each rank; "
              "raise it, or use 0");
  return halves;
}

// What every rank measured, on every rank. Each stage and micro-batch is on one rank alone.
void Learner::reduce_meter(stage::Meter& meter) {
  team_->world().all_reduce(ctx_, meter.sums);
  if (env::sabotage() != "local_counts") team_->world().all_reduce(ctx_, meter.counts);
}

ExchangeCounters Learner::reduce_counters() {
  const ExchangeCounters mine = dynamic_cast<CountedExchange&>(*exchange_).counters(ctx_);
  const int num_ranks = team_->mesh().num_ranks();
  Tensor sums, most;
  const Block sums_memory = ctx_.memory.take_tensor(DType::kI64, {5}, &sums);
  const Block most_memory = ctx_.memory.take_tensor(DType::kI64, {num_ranks}, &most);
  upload(ctx_,
         std::vector<int64_t>{mine.tokens, mine.rank_visits, mine.node_visits, mine.node_bytes,
                              mine.link_bytes},
         sums);
  Tensor own = most.rows(team_->rank(), 1);
  upload(ctx_, std::vector<int64_t>{mine.most_nodes}, own);
  team_->world().all_reduce(ctx_, sums);
  team_->world().all_gather(ctx_, own, most);
  const std::vector<int64_t> all = download<int64_t>(ctx_, sums);
  const std::vector<int64_t> nodes = download<int64_t>(ctx_, most);
  return {.tokens = all[0],
          .rank_visits = all[1],
          .node_visits = all[2],
          .most_nodes = *std::max_element(nodes.begin(), nodes.end()),
          .node_bytes = all[3],
          .link_bytes = all[4]};
}

// Over all ranks, every element once. What no other rank has part in, as experts often, comes first
// and need not await the sums.
double Learner::gradient_norm() {
  Tensor norm;
  const Block memory = ctx_.memory.take_tensor(DType::kF64, {1}, &norm);
  ops::fill(ctx_, 0.0, norm);
  const FlatRange copy = team_->embed_is_copy() ? grads_.range_of("embed") : FlatRange{};
  for (const ParamStore::Region region : ParamStore::kRegions) {
    if (region != ParamStore::Region::kExperts || team_->summing(region).size() > 1) sums_.finish();
    const FlatRange mine = grads_.share(region), out = intersect(mine, copy);
    const FlatRange parts[] = {
        {.begin = mine.begin, .count = out.count > 0 ? out.begin - mine.begin : mine.count},
        {.begin = out.end(), .count = out.count > 0 ? mine.end() - out.end() : 0}};
    for (const FlatRange& part : parts)
      if (part.count > 0) ops::sum_squares_acc(ctx_, grads_.slice(part), norm);
  }
  team_->world().all_reduce(ctx_, norm);
  return std::sqrt(download<double>(ctx_, norm)[0]);
}

// AdamW on this rank's shares. Experts come last: their update is most of the work, and beside it
// the masters of the others travel.
void Learner::apply(const ops::AdamW& rule) {
  const FlatRange decayed = masters_.decayed_range();
  ops::AdamW undecayed = rule;
  undecayed.weight_decay = 0.0;
  using Region = ParamStore::Region;
  for (const Region region : {Region::kDense, Region::kSplit, Region::kExperts}) {
    const FlatRange mine = masters_.share(region), with = intersect(mine, decayed);
    const FlatRange without{.begin = with.count > 0 ? with.end() : mine.begin,
                            .count = mine.count - with.count};
    const auto update_range = [&](const ops::AdamW& r, const FlatRange& range) {
      if (range.count > 0)
        ops::adamw(ctx_, r, grads_.slice(range), masters_.slice(range), m_.slice(range),
                   v_.slice(range));
    };
    update_range(rule, with);
    update_range(undecayed, without);
    gather_.updated(region);
  }
}

void Learner::update(const Recipe& recipe, int64_t step, const StepResult& measured) {
  HADAL_CHECK(std::isfinite(measured.grad_norm), "step ", step, ": the gradient norm is ",
              measured.grad_norm, "; lower the learning rate or go on from an earlier checkpoint");
  ops::AdamW rule{.lr = recipe.lr,
                  .beta1 = recipe.beta1,
                  .beta2 = recipe.beta2,
                  .eps = recipe.eps,
                  .weight_decay = recipe.weight_decay,
                  .step = step,
                  .grad_scale = 1.0};
  if (recipe.clip_norm > 0.0)
    rule.grad_scale = std::min(1.0, recipe.clip_norm / (measured.grad_norm + 1e-6));
  gather_.finish();
  apply(rule);
  gather_.start();
  if (recipe.bias_gamma > 0.0) move_biases(recipe.bias_gamma);
  if (!average_) return;
  gather_.finish();
  const auto trained = masters_.trained().num_elements(), all = masters_.flat().num_elements();
  ops::ema_update(ctx_, ema_decay_, masters_.trained(), average_->trained());
  ops::cast(ctx_, masters_.flat().rows(trained, all - trained),
            average_->flat().rows(trained, all - trained));
}

void Learner::move_biases(double gamma) {
  if (env::sabotage() == "counts") round_counts_to_bf16(ctx_, meter_.counts);
  int64_t moe_idx = 0;
  const auto move_bias = [&](block::Params<Tensor>& b) {
    const Tensor counts = meter_.counts.row(moe_idx++);
    if (!b.moe.gate.bias.empty()) ops::bias_update(ctx_, counts, gamma, b.moe.gate.bias);
  };
  for (int64_t l = 0; l < config_.num_hidden_layers; ++l)
    if (config_.is_moe_layer(l)) move_bias(masters_.tree.layers[static_cast<size_t>(l)]);
  for (auto& module : masters_.tree.mtp) move_bias(module.block);
}

StepResult Learner::step(const std::vector<std::vector<Sequence>>& micro_batches,
                         const Recipe& recipe, int64_t step) {
  StepResult result = compute_gradients(micro_batches, recipe);
  update(recipe, step, result);
  return result;
}

Learner::Evaluation Learner::evaluate(const std::vector<std::vector<Sequence>>& micro_batches) {
  gather_.finish();
  stage::Meter meter = stage::make_meter(
      ctx_, stage::whole_model(config_, weights_, *exchange_, config_.num_nextn_predict_layers));
  const int64_t depths = config_.num_nextn_predict_layers;
  const auto dp = static_cast<size_t>(team_->mesh().dp);
  const auto me = static_cast<size_t>(team_->data_rank());
  const size_t rounds = micro_batches.size() / dp, left = micro_batches.size() % dp;
  const auto batch = [&](size_t at) {
    return make_batch(ctx_, config_, micro_batches[at], depths, compute_);
  };
  std::optional<GraphMemory::Scope> scope;
  if (recorded_) scope.emplace(recorded_->temporaries());
  pipeline_->measure(
      ctx_, static_cast<int>(rounds),
      [&](int i) { return batch(static_cast<size_t>(i) * dp + me); }, meter);
  if (left > 0) {
    // The last ones; a rank without one of its own keeps the others company and counts nothing.
    stage::Meter unused = stage::make_meter(
        ctx_, stage::whole_model(config_, weights_, *exchange_, config_.num_nextn_predict_layers));
    pipeline_->measure(
        ctx_, 1, [&](int) { return batch(me < left ? rounds * dp + me : 0); },
        me < left ? meter : unused);
  }
  scope.reset();
  if (rows_were_missing()) return evaluate(halved(micro_batches));
  reduce_meter(meter);
  const Totals totals = count_totals(micro_batches, depths);
  Evaluation e;
  e.num_targets = totals.targets[0];
  e.mtp_targets.assign(totals.targets.begin() + 1, totals.targets.end());
  e.main_sum = download<double>(ctx_, meter.main)[0];
  e.mtp_sum = download<double>(ctx_, meter.mtp);
  e.counts = read_counts(ctx_, meter.counts);
  return e;
}

}  // namespace hadal::train
