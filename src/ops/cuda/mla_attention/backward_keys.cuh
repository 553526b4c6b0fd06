// Backward of MLA attention, the pass that holds keys: dK and dV, summed over queries in order.
//
// The products are transposed, keys by queries: P^T and dS^T come out in registers as the left
// operands of P^T dO and dS^T Q. The accumulators take 160 registers, which is why dP waits for P
// and P is kept in bf16 alone.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/mla_attention/backward.cuh"

namespace hadal::cuda {

template <class D>
__device__ void mla_keys_multiply(const MlaBackwardArgs& args, const MlaBackwardShared<D>& s,
                                  int group) {
  using C = MlaAttentionConfig;
  using S = MlaBackwardShared<D>;
  constexpr int kSteps = C::kStep / 16;
  const float to_powers = args.call.scale * 1.4426950408889634f;
  const uint32_t held = smem_addr(s.held) + group * 64 * 128, step = smem_addr(s.step);
  const int column = thread_again() % 4 * 2;  // of the thread's first element
  MlaRingAt<S::kStages> at;
  const MlaTurns turns(group);  // two a step: dP and dV; dK and the next scores

  for (int number = 0;; ++number) {
    const MlaTask& task = s.tasks.wait(number);
    if (task.head < 0) return;
    MlaPart part = mla_part<true>(task, group);
    for (; part.skipped > 0; --part.skipped) {
      barrier_wait(s.full + at.stage, at.parity);  // or it could say so for two fills in one phase
      mla_release(s.empty + at.stage);
      at.next();
      turns.pass(2);
    }
    barrier_wait(s.held_full, number & 1);
    if (part.steps == 0) {
      mla_release(s.held_empty);
      s.tasks.done(number);
      continue;
    }
    float dk[D::kNope / 2], dk_pe[D::kRope / 2], dv[D::kValue / 2];
    mla_zero(dk);
    mla_zero(dk_pe);
    mla_zero(dv);
    float score[C::kStep / 2];
    bool on_diagonal = true;

    const auto issue_scores = [&] {
      barrier_wait(s.full + at.stage, at.parity);
      mma_fence();
      mla_scores<D>(score, held, S::kHeldChunk, step + uniform(at.stage) * S::kStepBytes,
                    S::kStepChunk);
      mma_commit();
    };
    // From the scores of the stage that `at` tells to the products of dK, issued in a turn that
    // goes on.
    const auto do_step = [&] {
      const uint32_t other = step + uniform(at.stage) * S::kStepBytes;
      const float* stats = s.stats + at.stage * 2 * C::kStep + column;
      uint32_t prob[C::kStep / 4], ds[C::kStep / 4];
      float dp[C::kStep / 2];
#pragma unroll
      for (int i = 0; i < C::kStep / 2; i += 4) {
        const float2 lse = *reinterpret_cast<const float2*>(stats + i * 2);
        score[i] = exp2_fast(fmaf(score[i], to_powers, -lse.x));
        score[i + 1] = exp2_fast(fmaf(score[i + 1], to_powers, -lse.y));
        score[i + 2] = exp2_fast(fmaf(score[i + 2], to_powers, -lse.x));
        score[i + 3] = exp2_fast(fmaf(score[i + 3], to_powers, -lse.y));
      }
      if (on_diagonal) {
        const int row = thread_again() % 128 / 32 * 16 + thread_again() % 32 / 4;
#pragma unroll
        for (int i = 0; i < C::kStep / 2; ++i) {
          if (i / 4 * 8 + column + i % 2 < row + i / 2 % 2 * 8) score[i] = 0.0f;
        }
        on_diagonal = false;
      }
      mla_pack(prob, score);
      turns.begin();
      mma_fence();
      mla_product<D::kValue>(dp, held + D::kKeyChunks * S::kHeldChunk, S::kHeldChunk,
                             other + D::kKeyChunks * S::kStepChunk, S::kStepChunk, 0);
      mla_accumulate<kSteps>(dv, prob, other + D::kKeyChunks * S::kStepChunk, S::kStepChunk);
      mma_commit();
      turns.end();
      mma_wait<0>();
      mma_touch(dp);
      mma_touch(dv);
#pragma unroll
      for (int i = 0; i < C::kStep / 2; i += 2) {
        const float2 delta = *reinterpret_cast<const float2*>(stats + C::kStep + i / 4 * 8);
        ds[i / 2] = pack_bf16(__uint_as_float(prob[i / 2] << 16) * (dp[i] - delta.x),
                              __uint_as_float(prob[i / 2] & 0xFFFF0000u) * (dp[i + 1] - delta.y));
      }
      turns.begin();
      mma_fence();
      mla_accumulate<kSteps>(dk, ds, other, S::kStepChunk);
      mla_accumulate<kSteps>(dk_pe, ds, other + D::kNopeChunks * S::kStepChunk, S::kStepChunk);
      mma_commit();
    };

    issue_scores();
    mma_wait<0>();
    mma_touch(score);
#pragma unroll 1
    for (; part.steps > 1; --part.steps) {
      do_step();
      uint64_t* const empty = s.empty + at.stage;
      at.next();
      issue_scores();
      turns.end();
      mma_wait<1>();
      mma_touch(dk);
      mma_touch(dk_pe);
      mma_touch(dv);
      mla_release(empty);
      mma_wait<0>();
      mma_touch(score);
    }
    do_step();
    turns.end();
    mla_release(s.held_empty);
    mma_wait<0>();
    mma_touch(dk);
    mma_touch(dk_pe);
    mma_touch(dv);
    mla_release(s.empty + at.stage);
    at.next();

    const int lane = thread_again() % 32, row = thread_again() % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = (2 * task.block + group) * C::kStep + row + 8 * i;
      const bool in_use = key < task.length;
      const int64_t token = task.begin + key;
      __nv_bfloat16* to = mla_row(args.dkv, token, task.head);
      mla_store_row(dk, i, args.call.scale, to, in_use, lane);
      mla_store_row(dv, i, 1.0f, to + D::kNope, in_use, lane);
      float* rope = args.head_dk_pe + (task.head * args.call.num_tokens + token) * D::kRope;
#pragma unroll
      for (int j = 0; j < D::kRope / 8; ++j) {
        if (in_use)
          *reinterpret_cast<float2*>(rope + 8 * j + 2 * (lane % 4)) = {
              dk_pe[4 * j + 2 * i] * args.call.scale, dk_pe[4 * j + 2 * i + 1] * args.call.scale};
      }
    }
    s.tasks.done(number);
  }
}

}  // namespace hadal::cuda
