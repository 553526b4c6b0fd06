// StepGraph: the first run does the work call by call and so finds all memory that it takes, the
// second records it.
//
//   T tokens of the step   D model width   V vocabulary
// SPDX-License-Identifier: Apache-2.0
#include "serve/step_graph.h"

#include "core/transfer.h"
#include "model/bytes.h"

namespace hadal::serve {

StepGraph::StepGraph(Context& ctx, Decoder& decoder, const ops::SampleRule& sampling, int64_t slot,
                     int64_t num_tokens)
    : ctx_(ctx), decoder_(decoder), sampling_(sampling), slots_{slot}, temporaries_(ctx.memory) {
  const int64_t T = num_tokens, D = decoder.config().hidden_size, V = decoder.config().vocab_size;
  const DType stat = stat_dtype(decoder.act());
  step_ = make_step(ctx, decoder.config(), std::vector<int32_t>(static_cast<size_t>(T), 0), {0},
                    {T}, decoder.act());
  memory_ = ctx.memory.take(ByteCount()
                                .add(decoder.act(), {T, D})
                                .add(stat, {T, V})
                                .add(DType::kI32, {T})
                                .add(DType::kI32, {T})
                                .total());
  h_ = memory_.tensor(decoder.act(), {T, D});
  logits_ = memory_.tensor(stat, {T, V});
  where_ = memory_.tensor(DType::kI32, {T});
  tokens_ = memory_.tensor(DType::kI32, {T});
}

StepGraph::~StepGraph() { device::destroy(ctx_.device, graph_); }

void StepGraph::work() {
  decoder_.run(step_, h_);                                      // [T, D]
  decoder_.head(h_, logits_);                                   // [T, V]
  ops::sample(ctx_, sampling_, logits_, where_, Out(tokens_));  // [T]
}

std::vector<int32_t> StepGraph::run(const std::vector<int32_t>& ids, int64_t start) {
  move_step(ctx_, decoder_.config(), ids, {start}, step_);
  std::vector<int32_t> where;
  for (size_t i = 0; i < ids.size(); ++i)
    where.push_back(static_cast<int32_t>(start + static_cast<int64_t>(i)) + 1);
  upload(ctx_, where, where_);
  if (num_runs_ == 0) {
    decoder_.prepare({.step = step_, .seqs = slots_});
    const GraphMemory::Scope scope(temporaries_);
    work();
  } else {
    if (num_runs_ == 1) {
      const GraphMemory::Scope scope(temporaries_);
      device::begin_recording(ctx_.device, ctx_.stream);
      work();
      graph_ = device::end_recording(ctx_.device, ctx_.stream);
    }
    device::launch(ctx_.device, ctx_.stream, graph_);
  }
  ++num_runs_;
  return download<int32_t>(ctx_, tokens_);
}

}  // namespace hadal::serve
