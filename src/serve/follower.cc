// Follower: the leader's calls, one after the other.
//
//   T new tokens   D model width   V vocabulary   R rows that logits are wanted of
// SPDX-License-Identifier: Apache-2.0
#include "serve/follower.h"

#include <numeric>
#include <utility>

#include "core/check.h"
#include "model/bytes.h"
#include "serve/rank_calls.h"

namespace hadal::serve {
namespace {

std::vector<int64_t> first_slots(size_t count) {
  std::vector<int64_t> slots(count);
  std::iota(slots.begin(), slots.end(), 0);
  return slots;
}

}  // namespace

Follower::Follower(Context& ctx, const Config& config, const Weights& weights, DType act,
                   DecoderRanks ranks)
    : ctx_(ctx), config_(config), weights_(weights), act_(act), ranks_(std::move(ranks)) {}

void Follower::make(const DecoderLimits& limits) {
  runner_.reset();
  decoder_.reset();
  decoder_ = std::make_unique<Decoder>(ctx_, config_, weights_, act_, limits, ranks_);
  decoder_->cache().lend_pages();
  for (int64_t s = 0; s < limits.max_seqs; ++s) decoder_->cache().open();
}

Step Follower::step_of(const DecoderCall& call) {
  for (size_t s = 0; s < call.pages.size(); ++s)
    decoder_->cache().assign(static_cast<int64_t>(s), call.pages[s]);
  return make_step(ctx_, config_, call.ids, call.starts, call.lengths, act_);
}

// A step of which this rank has some sequences. The states of all tokens are the leader's.
void Follower::paged_call(const DecoderCall& call) {
  PagedTokens tokens{.ids = call.ids,
                     .starts = call.starts,
                     .counts = call.lengths,
                     .pages = {},
                     .homes = call.homes};
  for (const std::vector<int64_t>& pages : call.pages) tokens.pages.push_back(&pages);
  if (call.kind == DecoderCallKind::kForward)
    paged_forward(ctx_, *decoder_, tokens, Tensor());
  else
    paged_mtp_forward(ctx_, *decoder_, call.module, tokens, Tensor(), Tensor());
}

void Follower::call(const DecoderCall& call) {
  if (call.kind == DecoderCallKind::kMake) return make(call.limits);
  HADAL_CHECK(decoder_ != nullptr, "internal error: a call of a decoder that was not made");
  if (!call.homes.empty()) return paged_call(call);
  const auto T = static_cast<int64_t>(call.ids.size()), D = config_.hidden_size;
  const std::vector<int64_t> slots = first_slots(call.starts.size());
  Tensor h, out;
  if (call.kind == DecoderCallKind::kForward) {
    const Step step = step_of(call);
    const Block memory = ctx_.memory.take_tensor(act_, {T, D}, &h);
    decoder_->forward({.step = step, .seqs = slots}, h);  // [T, D]
  } else if (call.kind == DecoderCallKind::kMtp) {
    const Step step = step_of(call);
    const Block h_memory = ctx_.memory.take_tensor(act_, {T, D}, &h);
    const Block out_memory = ctx_.memory.take_tensor(act_, {T, D}, &out);
    broadcast(ctx_, ranks_.tensor, h);
    decoder_->mtp_forward(call.module, {.step = step, .seqs = slots}, h, out);  // [T, D]
  } else if (call.kind == DecoderCallKind::kLogits) {
    const int64_t R = call.num_rows;
    const Block h_memory = ctx_.memory.take_tensor(act_, {R, D}, &h);
    const Block out_memory =
        ctx_.memory.take_tensor(stat_dtype(act_), {R, config_.vocab_size}, &out);
    broadcast(ctx_, ranks_.tensor, h);
    decoder_->logits(h, out);  // [R, V]
  } else {
    decoder_->copy_rows(call.from, call.to, call.num_rows, call.home);
  }
}

void Follower::run(const std::function<std::vector<int32_t>()>& hear) {
  for (;;) {
    const std::vector<int32_t> words = hear();
    HADAL_CHECK(!words.empty(), "internal error: an empty announcement");
    if (words[0] < static_cast<int32_t>(DecoderCallKind::kFirstOther)) {
      call(DecoderCall::of(words));
      continue;
    }
    const auto next = static_cast<RankCall>(words[0]);
    if (next == RankCall::kEnd) return;
    HADAL_CHECK(decoder_ != nullptr && (runner_ != nullptr || next == RankCall::kStepRunner),
                "internal error: a step of a runner that was not made");
    switch (next) {
      case RankCall::kStepRunner:
        runner_ = std::make_unique<StepRunner>(ctx_, *decoder_);
        break;
      case RankCall::kRecord:
        while (runner_->num_under_way() > 0) runner_->take();
        runner_->record_steps(words.at(1));
        break;
      case RankCall::kLaunch:
        while (runner_->num_under_way() > 1) runner_->take();
        runner_->launch(OwnedInput(words).input);
        break;
      default:
        HADAL_FAIL("internal error: a rank announced ", words[0], ", which nobody knows");
    }
  }
}

}  // namespace hadal::serve
