// Memory-bound kernels that fuse neighbours: the gate, and quantisation into its producers.
//
//   T rows   D, F widths   E = 256 experts in 8 groups   P pages of 128 rows
//
// Quantised rows are e4m3 with one f32 scale per 128 columns, scale = max(amax, 1e-4) / 448,
// rounded up to a power of two in kPowerOfTwo; scales are stored [columns / 128, scale_stride], as
// the FP8 products read them. Each input is read once. f32 arithmetic between; deterministic; a row
// never depends on others.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace hadal::cuda {

enum class ScaleRounding : uint8_t { kNone, kPowerOfTwo };

// DeepSeek-V3's gate: sigmoid scores, choice by score + bias among the 4 best groups (sum of the
// two best of a group), 8 experts in ascending order, weights scaled to sum to `scaling`. Ties go
// to the smaller index.
struct GateArgs {
  const float* logits;  // [T, 256]
  const float* bias;    // [256]
  float* scores;        // [T, 256]
  int* topk_idx;        // [T, 8]
  float* topk_weight;   // [T, 8]
  int num_tokens;
  float scaling;
  int num_sms;
};
void gate_v3(const GateArgs& args, cudaStream_t stream);

// q, scale = quantise(gain * x * rstd); D a multiple of 128, at most 8192.
struct RmsnormQuantiseArgs {
  const void* x;     // [T, D] bf16
  const void* gain;  // [D] bf16
  void* q;           // [T, D] e4m3
  float* scale;      // [D/128, scale_stride]
  float* rstd;       // [T]
  int64_t scale_stride;
  int num_rows, width;
  float eps;
  ScaleRounding rounding;
  int num_sms;
};
void rmsnorm_quantise(const RmsnormQuantiseArgs& args, cudaStream_t stream);

// q, scale = quantise(weight * silu(gate) * up) for the rows in use; F a multiple of 128, at most
// 2048.
struct SwigluQuantiseArgs {
  const void* gate_up;      // [P*128, 2F] bf16: gate | up
  const float* row_weight;  // [P*128]
  void* q;                  // [P*128, F] e4m3
  float* scale;             // [F/128, scale_stride]
  int64_t scale_stride;
  const int* counts;      // [E], on the device
  const int* page_begin;  // [E+1], on the device
  int num_experts, max_pages, width;
  ScaleRounding rounding;
};
void swiglu_quantise(const SwigluQuantiseArgs& args, cudaStream_t stream);

}  // namespace hadal::cuda
