// StepGraph: a step of one sequence with a fixed number of tokens, recorded once and then launched.
//
//   T tokens of the step   D model width   V vocabulary
//
// A decode step is a thousand kernels of a few microseconds; a recorded one costs one launch. The
// cache has to have room for all positions before the first run, and nothing else may use another
// page table in between (Decoder::prepare).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "model/decoder.h"
#include "ops/sample.h"

namespace hadal::serve {

class StepGraph {
 public:
  // REQUIRES: device::can_record(ctx.device); the decoder is alone; ctx and decoder outlive it.
  // Runs nothing yet.
  StepGraph(Context& ctx, Decoder& decoder, const ops::SampleRule& sampling, int64_t slot,
            int64_t num_tokens);
  ~StepGraph();
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;

  // Runs ids [T] at positions start, start+1, ...: returns the token drawn after each of them.
  std::vector<int32_t> run(const std::vector<int32_t>& ids, int64_t start);
  const Tensor& states() const { return h_; }  // [T, D] of the last run

 private:
  void work();

  Context& ctx_;
  Decoder& decoder_;
  ops::SampleRule sampling_;
  std::vector<int64_t> slots_;
  Step step_;
  GraphMemory temporaries_;
  Block memory_;
  Tensor h_, logits_;      // [T, D]  [T, V]
  Tensor where_, tokens_;  // [T] i32  positions drawn for, and what was drawn
  Graph graph_;
  int64_t num_runs_ = 0;
};

}  // namespace hadal::serve
