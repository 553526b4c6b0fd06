// Backward of MLA attention, the pass that holds queries: dQ, summed from the diagonal to key 0.
//
// dS comes out in registers as the left operand of dS K.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/mla_attention/backward.cuh"

namespace hadal::cuda {

template <class D>
__device__ void mla_queries_multiply(const MlaBackwardArgs& args, const MlaBackwardShared<D>& s,
                                     int group) {
  using C = MlaAttentionConfig;
  using S = MlaBackwardShared<D>;
  constexpr int kSteps = C::kStep / 16;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int my_row = static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane / 4;  // and + 8
  const float to_powers = args.call.scale * 1.4426950408889634f;
  const uint32_t held = smem_addr(s.held) + group * 64 * 128, step = smem_addr(s.step);
  MlaRingAt<S::kStages> at;
  const MlaTurns turns(group);  // one a step: dQ, the next scores, the next dP

  for (int number = 0;; ++number) {
    const MlaTask& task = s.tasks.wait(number);
    if (task.head < 0) return;
    MlaPart part = mla_part<false>(task, group);
    for (; part.skipped > 0; --part.skipped) {
      barrier_wait(s.full + at.stage, at.parity);  // or it could say so for two fills in one phase
      mla_release(s.empty + at.stage);
      at.next();
      turns.pass(1);
    }
    barrier_wait(s.held_full, number & 1);
    if (part.steps == 0) {
      mla_release(s.held_empty);
      s.tasks.done(number);
      continue;
    }
    const int diagonal = 2 * task.block + group;
    const float* stats = mla_stats(args, task.head, task.slot + diagonal) + my_row;
    const float lse[2] = {__ldg(stats), __ldg(stats + 8)};
    const float delta[2] = {__ldg(stats + C::kStep), __ldg(stats + C::kStep + 8)};
    float dq[D::kNope / 2], dq_pe[D::kRope / 2];
    mla_zero(dq);
    mla_zero(dq_pe);
    float score[C::kStep / 2], dp[C::kStep / 2];
    uint32_t ds[C::kStep / 4];
    bool on_diagonal = true;

    const auto issue_scores = [&] {
      barrier_wait(s.full + at.stage, at.parity);
      mma_fence();
      const uint32_t other = step + uniform(at.stage) * S::kStepBytes;
      mla_scores<D>(score, held, S::kHeldChunk, other, S::kStepChunk);
      mma_commit();
      mla_product<D::kValue>(dp, held + D::kKeyChunks * S::kHeldChunk, S::kHeldChunk,
                             other + D::kKeyChunks * S::kStepChunk, S::kStepChunk, 0);
      mma_commit();
    };
    // From scores that are there and dP that may still be running to the products of dQ, issued in
    // a turn that goes on.
    const auto do_step = [&] {
#pragma unroll
      for (int i = 0; i < C::kStep / 2; ++i)
        score[i] = exp2_fast(fmaf(score[i], to_powers, -lse[i / 2 % 2]));
      if (on_diagonal) {
#pragma unroll
        for (int i = 0; i < C::kStep / 2; ++i) {
          if (i / 4 * 8 + lane % 4 * 2 + i % 2 > my_row + i / 2 % 2 * 8) score[i] = 0.0f;
        }
        on_diagonal = false;
      }
      mma_wait<0>();
      mma_touch(dp);
#pragma unroll
      for (int i = 0; i < C::kStep / 2; ++i) dp[i] = score[i] * (dp[i] - delta[i / 2 % 2]);
      mla_pack(ds, dp);
      turns.begin();
      mma_fence();
      const uint32_t other = step + uniform(at.stage) * S::kStepBytes;
      mla_accumulate<kSteps>(dq, ds, other, S::kStepChunk);
      mla_accumulate<kSteps>(dq_pe, ds, other + D::kNopeChunks * S::kStepChunk, S::kStepChunk);
      mma_commit();
    };

    issue_scores();
    mma_wait<1>();
    mma_touch(score);
#pragma unroll 1
    for (; part.steps > 1; --part.steps) {
      do_step();
      uint64_t* const empty = s.empty + at.stage;
      at.next();
      issue_scores();
      turns.end();
      mma_wait<2>();
      mma_touch(dq);
      mma_touch(dq_pe);
      mla_release(empty);
      mma_wait<1>();
      mma_touch(score);
    }
    do_step();
    turns.end();
    mla_release(s.held_empty);
    mma_wait<0>();
    mma_touch(dq);
    mma_touch(dq_pe);
    mla_release(s.empty + at.stage);
    at.next();

#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = diagonal * C::kStep + my_row + 8 * i;
      const bool in_use = row < task.length;
      __nv_bfloat16* to = mla_row(args.dq, task.begin + row, task.head);
      mla_store_row(dq, i, args.call.scale, to, in_use, lane);
      mla_store_row(dq_pe, i, args.call.scale, to + D::kNope, in_use, lane);
    }
    s.tasks.done(number);
  }
}

}  // namespace hadal::cuda
