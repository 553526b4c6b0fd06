// Pipeline: executes a schedule over the stages of this rank: the only caller of a stage's forward,
// backward and backward_weight in training.
//
//   T tokens of a micro-batch on this rank   D model width
//
// It follows the rank's program to the letter: posts each step's transfers as one group, then runs
// the step's work. Between two stages of the same rank nothing is sent. A rank alone runs the same
// code: forward, backward, micro-batch by micro-batch.
//
// With links the same messages travel beside the work, with the same bits: those of a step that are
// sent start when the work before is done and hold nothing up, and those that are received are
// posted a step ahead; a step waits for what it reads, and for nothing else. What was sent is given
// back when the schedule says that it has arrived.
//
// An overlapped pair runs layer beside layer (stage::overlap), or one chunk after the other where
// the run's config says so.
//
// Micro-batches are numbered over both directions: direction 0 has the first half.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <deque>
#include <functional>
#include <map>
#include <vector>

#include "core/comm.h"
#include "model/stage.h"
#include "parallel/pipeline_links.h"
#include "parallel/schedule.h"
#include "parallel/step_clock.h"

namespace hadal {

class Pipeline {
 public:
  // A stage that this rank holds. Under DualPipe the rank runs one of them in each direction.
  struct Local {
    int stage = 0;
    stage::Stage model;
  };
  // links: those of the schedule; null: messages travel in the stream of the work. REQUIRES: comm
  // (the pipeline's ranks, in order), the links and what the stages refer to outlive it.
  Pipeline(const ScheduleShape& shape, int rank, Comm& comm, std::vector<Local> stages, DType act,
           bool overlap = true, PipelineLinks* links = nullptr);

  struct Job {
    int num_microbatches = 0;
    std::function<Batch(int microbatch)> batch;  // made when it is first needed here
    std::function<const stage::LossScale&(int microbatch)> scale;
    const stage::Meter& meter;   // of the whole model: += ...
    Grads& grads;                // += ...
    StepClock* clock = nullptr;  // none: steps are not timed
    // Told of each layer when all micro-batches have added to its gradients; none: nobody is. The
    // work that is still to come in its stage then leaves so many SMs of a GPU.
    std::function<void(int64_t layer)> layer_done = {};
    int layer_done_sms = 0;
    int first_sms = 0;  // that forwards of a stage's first micro-batch leave
  };
  void run(Context& ctx, const Job& job);
  // Losses and counts alone; any number of micro-batches, all in direction 0.
  void measure(Context& ctx, int num_microbatches, const std::function<Batch(int)>& batch,
               const stage::Meter& meter);

 private:
  struct Key {
    int direction = 0, stage = 0, microbatch = 0;
    auto operator<=>(const Key&) const = default;
  };
  // A chunk between its first and last work.
  struct Live {
    stage::Saved saved;
    stage::Deferred deferred;
    Block in_memory, dy_memory;
    Tensor in, dy;  // [T, D]  [T, D]   received
    // Under way by links: both of them, and the output to the stage after.
    Event in_comes, dy_comes, goes;
  };
  // The gradient of a chunk's input, until the stage before has it.
  struct InputGrad {
    Block memory;
    Tensor dx;  // [T, D]
    Event goes;
  };
  struct Shared {
    Batch batch;
    int users = 0;  // chunks of this rank that will read it
  };

  const stage::Stage& model_of(int stage) const;
  stage::Stage model_with_weights(const Job& job, const Chunk& chunk);
  static Context context_of(const Context& ctx, const Job& job, const stage::Stage& model);
  int index_of(const Chunk& chunk) const;  // over both directions
  bool is_here(int direction, int stage) const {
    return schedule_.rank_of(direction, stage) == rank_;
  }
  const Batch& batch_of(const Job& job, const Chunk& chunk);
  void release_batch(const Chunk& chunk);
  Tensor state(Context& ctx, const Batch& batch, Block* memory) const;  // [T, D]
  void set_schedule(int num_microbatches);
  Tensor outgoing(const Transfer& t);                                // [T, D]
  Tensor room_for(Context& ctx, const Job& job, const Transfer& t);  // [T, D]
  void transfer(Context& ctx, const Job& job, const std::vector<Transfer>& transfers);
  void post_sends(Context& ctx, const std::vector<Transfer>& transfers);
  void post_receives(Context& ctx, const Job& job, const std::vector<Transfer>& transfers);
  void await_inputs(Context& ctx, const ScheduleStep& step);
  void await_outgoing(Context& ctx);
  void run_in_stream(Context& ctx, const Job& job);
  void run_beside(Context& ctx, const Job& job);
  Tensor input_of(const Chunk& chunk);  // [T, D]; empty for the first stage
  void forward(Context& ctx, const Job& job, const Chunk& chunk);
  // One chunk's backward, of which `run` does what is between its gradients.
  template <class Run>
  void backward(Context& ctx, const Job& job, const Chunk& chunk, Run&& run);
  void backward_input(Context& ctx, const Job& job, const Chunk& chunk);
  void backward_whole(Context& ctx, const Job& job, const Chunk& chunk);
  void overlap(Context& ctx, const Job& job, const Chunk& ahead, const Chunk& behind);
  void work(Context& ctx, const Job& job, const ScheduleStep& step);
  void timed_work(Context& ctx, const Job& job, const ScheduleStep& step);
  void finish(const Chunk& chunk);
  void backward_weight(Context& ctx, const Job& job, const Chunk& chunk);

  ScheduleShape shape_;
  int rank_;
  Comm& comm_;
  std::vector<Local> stages_;
  DType act_;
  bool overlap_;
  PipelineLinks* links_;
  Schedule schedule_;
  bool ran_ = false;            // the schedule, once
  std::vector<int> most_live_;  // [P]   chunks whose activations a rank holds
  std::map<Key, Live> live_;
  std::map<Key, InputGrad> input_grads_;
  std::map<Link, std::deque<InputGrad>> under_way_;  // gradients, in the order of their posts
  std::map<int, Shared> batches_;
  std::map<int, int> weights_left_;  // weight halves of each stage that are still to come
};

}  // namespace hadal
