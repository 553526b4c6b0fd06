// Pipeline: the program of a rank, step by step.
//
//   T tokens of a micro-batch on this rank   D model width
// SPDX-License-Identifier: Apache-2.0
#include "parallel/pipeline.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace hadal {

Pipeline::Pipeline(const ScheduleShape& shape, int rank, Comm& comm, std::vector<Local> stages,
                   DType act, bool overlap, PipelineLinks* links)
    : shape_(shape),
      rank_(rank),
      comm_(comm),
      stages_(std::move(stages)),
      act_(act),
      overlap_(overlap),
      links_(links) {
  schedule_.num_microbatches = 0;
}

const stage::Stage& Pipeline::model_of(int stage) const {
  for (const Local& local : stages_)
    if (local.stage == stage) return local.model;
  HADAL_UNREACHABLE(concat("rank ", rank_, " of the pipeline does not hold stage ", stage));
}

// For a chunk whose weight half comes now: the last one of its stage tells of the layers.
stage::Stage Pipeline::model_with_weights(const Job& job, const Chunk& c) {
  stage::Stage model = model_of(c.stage);
  if (--weights_left_.at(c.stage) == 0) model.layer_done = job.layer_done;
  return model;
}

Context Pipeline::context_of(const Context& ctx, const Job& job, const stage::Stage& model) {
  Context work = ctx;
  if (model.layer_done) work.spare_sms += job.layer_done_sms;
  return work;
}

int Pipeline::index_of(const Chunk& chunk) const {
  return chunk.microbatch + chunk.direction * (schedule_.num_microbatches / 2);
}

const Batch& Pipeline::batch_of(const Job& job, const Chunk& chunk) {
  const int index = index_of(chunk);
  auto found = batches_.find(index);
  if (found == batches_.end()) {
    int users = 0;
    for (const Local& local : stages_)
      if (is_here(chunk.direction, local.stage)) ++users;
    found = batches_.emplace(index, Shared{.batch = job.batch(index), .users = users}).first;
  }
  return found->second.batch;
}

void Pipeline::release_batch(const Chunk& chunk) {
  const auto found = batches_.find(index_of(chunk));
  if (--found->second.users == 0) batches_.erase(found);
}

Tensor Pipeline::state(Context& ctx, const Batch& batch, Block* memory) const {
  const stage::Stage& model = stages_.front().model;
  Tensor t;
  *memory = ctx.memory.take_tensor(
      act_, {model.tensor.num_tokens(batch.seq.num_tokens), model.config.hidden_size}, &t);
  return t;
}

namespace {

bool is_gradient(const Transfer& t) { return t.what == Transfer::What::kGradient; }

}  // namespace

Tensor Pipeline::outgoing(const Transfer& t) {
  const Chunk& c = t.chunk;
  if (is_gradient(t)) return input_grads_.at({c.direction, c.stage + 1, c.microbatch}).dx;
  return live_.at({c.direction, c.stage - 1, c.microbatch}).saved.x.back();
}

Tensor Pipeline::room_for(Context& ctx, const Job& job, const Transfer& t) {
  const Chunk& c = t.chunk;
  const Batch& batch = batch_of(job, c);
  Live& live = live_[{c.direction, c.stage, c.microbatch}];
  if (is_gradient(t)) return live.dy = state(ctx, batch, &live.dy_memory);
  return live.in = state(ctx, batch, &live.in_memory);
}

void Pipeline::transfer(Context& ctx, const Job& job, const std::vector<Transfer>& transfers) {
  if (transfers.empty()) return;
  std::vector<Message> messages;
  for (const Transfer& t : transfers)
    messages.push_back(
        {.send = t.send, .peer = t.peer, .data = t.send ? outgoing(t) : room_for(ctx, job, t)});
  comm_.transfer(ctx, messages);
  for (const Transfer& t : transfers)
    if (t.send && is_gradient(t))
      input_grads_.erase({t.chunk.direction, t.chunk.stage + 1, t.chunk.microbatch});
}

// NOTE: the wait for an earlier gradient is none. Those that were sent and have not arrived belong
// to chunks whose activations the receiver still holds, and the schedule says how many these are at
// most.
void Pipeline::post_sends(Context& ctx, const std::vector<Transfer>& transfers) {
  for (const Transfer& t : transfers) {
    if (!t.send) continue;
    const Chunk& c = t.chunk;
    const Link link = link_of(schedule_, rank_, t);
    const Event goes = links_->send(ctx, link, outgoing(t));
    if (!is_gradient(t)) {
      live_.at({c.direction, c.stage - 1, c.microbatch}).goes = goes;
      continue;
    }
    const auto sent = input_grads_.find({c.direction, c.stage + 1, c.microbatch});
    std::deque<InputGrad>& all = under_way_[link];
    all.push_back(std::move(sent->second));
    all.back().goes = goes;
    input_grads_.erase(sent);
    if (static_cast<int>(all.size()) <= most_live_[static_cast<size_t>(t.peer)]) continue;
    links_->await(ctx, all.front().goes);
    all.pop_front();
  }
}

void Pipeline::post_receives(Context& ctx, const Job& job, const std::vector<Transfer>& transfers) {
  for (const Transfer& t : transfers) {
    if (t.send) continue;
    const Tensor room = room_for(ctx, job, t);
    Live& live = live_.at({t.chunk.direction, t.chunk.stage, t.chunk.microbatch});
    (is_gradient(t) ? live.dy_comes : live.in_comes) =
        links_->receive(ctx, link_of(schedule_, rank_, t), Out(Tensor(room)));
  }
}

// What the step reads. Its backward gives back what the stage after has got: its gradient is made
// of that.
void Pipeline::await_inputs(Context& ctx, const ScheduleStep& step) {
  const auto live_of = [&](const Chunk& c) -> Live& {
    return live_[{c.direction, c.stage, c.microbatch}];
  };
  if (step.has_forward()) links_->await(ctx, live_of(step.forward).in_comes);
  if (!step.has_backward_input()) return;
  Live& live = live_of(step.backward);
  links_->await(ctx, live.dy_comes);
  links_->await(ctx, live.goes);
}

void Pipeline::await_outgoing(Context& ctx) {
  for (auto& [link, all] : under_way_)
    for (InputGrad& grad : all) links_->await(ctx, grad.goes);
  under_way_.clear();
}

Tensor Pipeline::input_of(const Chunk& c) {
  if (c.stage > 0 && is_here(c.direction, c.stage - 1))
    return live_.at({c.direction, c.stage - 1, c.microbatch}).saved.x.back();
  return live_[{c.direction, c.stage, c.microbatch}].in;
}

void Pipeline::forward(Context& ctx, const Job& job, const Chunk& c) {
  const stage::Stage& model = model_of(c.stage);
  const Batch& batch = batch_of(job, c);
  Live& live = live_[{c.direction, c.stage, c.microbatch}];
  stage::Meter meter = stage::part_of(job.meter, model);
  Context work = ctx;
  if (c.microbatch == 0) work.spare_sms += job.first_sms;
  live.saved = stage::forward(work, model, batch, input_of(c), meter);
  live.in_memory = Block();
}

template <class Run>
void Pipeline::backward(Context& ctx, const Job& job, const Chunk& c, Run&& run) {
  const stage::Stage& model = model_of(c.stage);
  const Batch& batch = batch_of(job, c);
  const Key key{c.direction, c.stage, c.microbatch}, after{c.direction, c.stage + 1, c.microbatch};
  Live& live = live_.at(key);
  Tensor dy = live.dy;
  const bool from_here = !model.is_last() && is_here(c.direction, c.stage + 1);
  if (from_here) dy = input_grads_.at(after).dx;
  InputGrad grad;
  if (!model.is_first()) grad.dx = state(ctx, batch, &grad.memory);
  run(model, live,
      stage::BackwardArgs{
          .batch = batch, .scale = job.scale(index_of(c)), .dy_in = dy, .dx_out = grad.dx});
  if (from_here) input_grads_.erase(after);
  live.dy_memory = Block();
  if (!model.is_first()) input_grads_[key] = std::move(grad);
}

void Pipeline::backward_input(Context& ctx, const Job& job, const Chunk& c) {
  backward(ctx, job, c,
           [&](const stage::Stage& model, Live& live, const stage::BackwardArgs& args) {
             live.deferred = stage::backward_input(ctx, model, std::move(live.saved), args);
           });
}

void Pipeline::backward_whole(Context& ctx, const Job& job, const Chunk& c) {
  const stage::Stage model = model_with_weights(job, c);
  Context work = context_of(ctx, job, model);
  backward(work, job, c, [&](const stage::Stage&, Live& live, const stage::BackwardArgs& args) {
    stage::backward(work, model, std::move(live.saved), args, job.grads);
  });
  finish(c);
}

void Pipeline::overlap(Context& ctx, const Job& job, const Chunk& ahead, const Chunk& behind) {
  const stage::Stage& model = model_of(ahead.stage);
  const Batch& batch = batch_of(job, ahead);
  stage::Meter meter = stage::part_of(job.meter, model);
  Live& live = live_[{ahead.direction, ahead.stage, ahead.microbatch}];
  const stage::ForwardArgs forward{
      .stage = model, .batch = batch, .x_in = input_of(ahead), .meter = meter};
  const stage::Stage stage = model_with_weights(job, behind);
  Context work = context_of(ctx, job, stage);
  backward(
      work, job, behind, [&](const stage::Stage&, Live& back, const stage::BackwardArgs& args) {
        live.saved = stage::overlap(work, forward, stage, std::move(back.saved), args, job.grads);
      });
  live.in_memory = Block();
  finish(behind);
}

// Nothing of the chunk is needed any more.
void Pipeline::finish(const Chunk& c) {
  live_.erase({c.direction, c.stage, c.microbatch});
  release_batch(c);
}

void Pipeline::backward_weight(Context& ctx, const Job& job, const Chunk& c) {
  Live& live = live_.at({c.direction, c.stage, c.microbatch});
  const stage::Stage model = model_with_weights(job, c);
  Context work = context_of(ctx, job, model);
  stage::backward_weight(work, model, batch_of(job, c), std::move(live.deferred), job.grads);
  finish(c);
}

void Pipeline::work(Context& ctx, const Job& job, const ScheduleStep& step) {
  if (step.work == Work::kOverlap && overlap_)
    return overlap(ctx, job, step.forward, step.backward);
  if (step.has_forward()) forward(ctx, job, step.forward);
  if (step.has_backward()) backward_whole(ctx, job, step.backward);
  if (step.work == Work::kBackwardInput) backward_input(ctx, job, step.backward);
  if (step.work == Work::kBackwardWeight) backward_weight(ctx, job, step.backward);
}

void Pipeline::timed_work(Context& ctx, const Job& job, const ScheduleStep& step) {
  if (job.clock != nullptr) job.clock->begin(ctx);
  work(ctx, job, step);
  if (job.clock != nullptr) job.clock->end(ctx);
}

void Pipeline::run_in_stream(Context& ctx, const Job& job) {
  const auto rank = static_cast<size_t>(rank_);
  for (const ScheduleStep& step : schedule_.steps[rank]) {
    transfer(ctx, job, step.transfers);
    timed_work(ctx, job, step);
  }
  transfer(ctx, job, schedule_.last_transfers[rank]);
}

void Pipeline::run_beside(Context& ctx, const Job& job) {
  const auto rank = static_cast<size_t>(rank_);
  Context main = ctx;
  main.spare_sms += links_->num_sms();
  const std::vector<ScheduleStep>& steps = schedule_.steps[rank];
  if (!steps.empty()) post_receives(main, job, steps.front().transfers);
  for (size_t i = 0; i < steps.size(); ++i) {
    post_sends(main, steps[i].transfers);
    if (i + 1 < steps.size()) post_receives(main, job, steps[i + 1].transfers);
    await_inputs(main, steps[i]);
    timed_work(main, job, steps[i]);
  }
  post_sends(main, schedule_.last_transfers[rank]);
  await_outgoing(main);
}

void Pipeline::set_schedule(int num_microbatches) {
  if (schedule_.num_microbatches == num_microbatches) return;
  shape_.num_microbatches = num_microbatches;
  schedule_ = make_schedule(shape_);
  ran_ = false;
  most_live_.clear();
  for (int rank = 0; rank < schedule_.num_ranks; ++rank)
    most_live_.push_back(live_chunks(schedule_, rank).activations);
}

// NOTE: the first time without links. A GPU loads a kernel when it is first launched, and may wait
// for all streams then: for a message too that another rank sends only after what is launched here.
void Pipeline::run(Context& ctx, const Job& job) {
  set_schedule(job.num_microbatches);
  for (const Local& local : stages_)
    weights_left_[local.stage] = schedule_.num_microbatches / schedule_.num_directions();
  if (links_ != nullptr && ran_)
    run_beside(ctx, job);
  else
    run_in_stream(ctx, job);
  ran_ = true;
  HADAL_CHECK(live_.empty() && input_grads_.empty() && batches_.empty(),
              "internal error: a schedule left work undone");
}

void Pipeline::measure(Context& ctx, int num_microbatches, const std::function<Batch(int)>& batch,
                       const stage::Meter& meter) {
  Schedule owners;
  owners.kind = shape_.kind;
  owners.num_ranks = shape_.num_ranks;
  owners.num_stages = shape_.kind == ScheduleKind::kDualPipe
                          ? shape_.num_ranks
                          : shape_.num_ranks * stages_per_rank(shape_);
  for (int i = 0; i < num_microbatches; ++i) {
    const Batch b = batch(i);
    Tensor x;  // [T, D]   what the stage before left
    Block memory;
    stage::Saved saved;
    for (int s = 0; s < owners.num_stages; ++s) {
      if (owners.rank_of(0, s) != rank_) continue;
      const stage::Stage& model = model_of(s);
      if (s > 0 && owners.rank_of(0, s - 1) != rank_) {
        x = state(ctx, b, &memory);
        comm_.recv(ctx, x, owners.rank_of(0, s - 1));
      }
      stage::Meter part = stage::part_of(meter, model);
      saved = stage::forward(ctx, model, b, x, part);
      x = saved.x.back();
      if (!model.is_last() && owners.rank_of(0, s + 1) != rank_)
        comm_.send(ctx, x, owners.rank_of(0, s + 1));
    }
  }
}

}  // namespace hadal
