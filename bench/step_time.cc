// step_time PLAN.json [STEPS]: trains the model of a plan (recipe f32, one rank) on random tokens
// and prints the median CPU seconds of a step, one thread, and the most bytes that its pool held.
//
// The measured side of `hadal plan train PLAN.json`: same model, batch and micro-batches.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>

#include "core/rng.h"
#include "plan/train_plan.h"
#include "train/learner.h"

namespace hadal {
namespace {

double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

std::vector<std::vector<Sequence>> random_batch(const plan::TrainPlan& p, uint64_t seed) {
  const Rng rng(seed, 1);
  const auto V = static_cast<uint64_t>(p.model.vocab_size);
  std::vector<std::vector<Sequence>> batches;
  uint64_t i = 0;
  for (int b = 0; b < p.num_microbatches(); ++b) {
    batches.emplace_back();
    for (int64_t s = 0; s < p.micro_batch_sequences; ++s) {
      Sequence sequence;
      for (int64_t t = 0; t <= p.sequence_length; ++t)
        sequence.ids.push_back(static_cast<int32_t>(rng.u64(i++) % V));
      sequence.targets.assign(sequence.ids.begin() + 1, sequence.ids.end());
      sequence.ids.pop_back();
      batches.back().push_back(sequence);
    }
  }
  return batches;
}

void run(const std::string& path, int num_steps) {
  const plan::TrainPlan p = plan::read_train_plan(path, {}, plan::Rates::kWithout);
  HADAL_CHECK(p.recipe == plan::Recipe::kF32, path, ": step_time runs plans of recipe f32");
  ThreadPool threads(1);
  Pool memory;
  Context ctx{.device = {}, .stream = {}, .threads = threads, .memory = memory};
  train::Learner learner(ctx, p.model, DType::kF32, p.micro_batch_tokens());
  init_params(ctx, p.model, 1, learner.masters().tree);
  learner.masters_changed();
  std::vector<double> seconds;
  for (int step = 1; step <= num_steps; ++step) {
    const auto batch = random_batch(p, static_cast<uint64_t>(step));
    const double begin = thread_seconds();
    learner.step(batch, {.lr = 1e-3}, step);
    seconds.push_back(thread_seconds() - begin);
  }
  std::sort(seconds.begin(), seconds.end());
  fmt::print(
      "{{\"plan\": \"{}\", \"steps\": {}, \"step_seconds\": {:.6f}, \"fastest\": {:.6f}, "
      "\"slowest\": {:.6f}, \"peak_bytes\": {}}}\n",
      path, num_steps, seconds[seconds.size() / 2], seconds.front(), seconds.back(),
      memory.peak_bytes());
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3) {
    fmt::print(stderr, "usage: step_time PLAN.json [STEPS]\n");
    return 2;
  }
  try {
    hadal::run(argv[1], argc == 3 ? std::max(1, std::atoi(argv[2])) : 15);
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "step_time: {}\n", error.what());
    return 1;
  }
}
