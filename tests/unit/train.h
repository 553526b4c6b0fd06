// What the tests of src/train share: a tiny run, and learners whose every number tells a step.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/copy.h"
#include "tests/grad/harness.h"
#include "tests/unit/expect_error.h"
#include "train/learner.h"
#include "train/run_config.h"

namespace hadal::test {

inline train::RunConfig tiny_run(const std::string& output) {
  train::RunConfig run;
  run.model = tiny_config();
  run.train.output = output;
  run.train.steps = 6;
  run.train.sequence_length = 9;
  run.train.batch_sequences = train::Schedule(2);
  run.train.micro_batch_sequences = 2;
  run.train.lr = train::warmup_cosine({.peak = 1e-2, .final = 1e-3, .warmup_steps = 2}, 6);
  run.train.keep_checkpoints = 2;
  return run;
}

// Masters and moments of every parameter, with their names.
template <class Visit>
void for_each_state(train::Learner& learner, const Visit& visit) {
  for_each_param(
      learner.config(),
      [&](const ParamInfo& info, Tensor& w, Tensor& m, Tensor& v) {
        visit(info.name, w);
        if (!info.trained()) return;
        visit("m." + info.name, m);
        visit("v." + info.name, v);
      },
      learner.masters().tree, learner.first_moment().tree, learner.second_moment().tree);
}

// Element i of each tensor of a state made of `step`.
inline double state_value(int64_t step, const std::string& name, int64_t i) {
  return static_cast<double>(step * 4096 + i % 61 * 64) + static_cast<double>(stream_id(name) % 64);
}

inline void set_state(train::Learner& learner, int64_t step) {
  for_each_state(learner, [&](const std::string& name, Tensor& t) {
    for (int64_t i = 0; i < t.num_elements(); ++i)
      store_element(t.raw(), t.dtype(), i, state_value(step, name, i));
  });
  learner.masters_changed();
}

// The first tensor that is not what set_state(step) writes; "" if there is none.
inline std::string damaged_tensor(train::Learner& learner, int64_t step) {
  std::string found;
  for_each_state(learner, [&](const std::string& name, Tensor& t) {
    for (int64_t i = 0; i < t.num_elements() && found.empty(); ++i)
      if (load_element(t.raw(), t.dtype(), i) != state_value(step, name, i)) found = name;
  });
  return found;
}

// The bits of masters, moments and gradients, one after the other.
inline std::vector<std::string> bits_of(train::Learner& learner) {
  std::vector<std::string> bits;
  for (ParamStore* store :
       {&learner.masters(), &learner.first_moment(), &learner.second_moment(), &learner.grads()}) {
    const Tensor flat = store->flat();
    bits.emplace_back(static_cast<const char*>(flat.raw()), static_cast<size_t>(flat.num_bytes()));
  }
  return bits;
}

}  // namespace hadal::test
