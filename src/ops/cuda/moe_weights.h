// Weights of experts as the kernels for a few tokens take them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/gemv/moe.h"
#include "ops/cuda/operands.h"
#include "ops/few_tokens.h"

namespace hadal::ops::cuda {

// False unless the kernels read these matrices: one type, 16-byte rows, even distances.
inline bool find_matrices(std::span<const Operand> list, DType dtype,
                          hadal::cuda::ExpertMatrices* to) {
  const Operand& first = list[0];
  const bool is_fp8 = dtype == DType::kE4M3;
  const int64_t size = element_bytes(dtype);
  if (first.data.dtype() != dtype || is_fp8 == first.scale.empty()) return false;
  const auto data = [](const Operand& o) -> const Tensor& { return o.data; };
  const auto scales = [](const Operand& o) -> const Tensor& { return o.scale; };
  *to = {.data = first.data.raw(),
         .row_stride = first.data.stride(0),
         .expert_stride = distance_between(list, data),
         .scale = is_fp8 ? first.scale.data<float>() : nullptr,
         .scale_row_stride = is_fp8 ? first.scale.stride(0) : 0,
         .scale_expert_stride = is_fp8 ? distance_between(list, scales) : 0,
         .scale_row = static_cast<int>(first.row_begin)};
  for (const Operand& o : list)
    if (o.row_begin != first.row_begin) return false;
  return is_aligned(first.data) && to->expert_stride >= 0 && to->scale_expert_stride >= 0 &&
         to->row_stride * size % 16 == 0 && to->expert_stride * size % 16 == 0 &&
         first.data.dim(0) % 16 == 0 && first.data.dim(1) % 16 == 0;
}

// The arguments that follow from the weights; false where the kernels do not take them.
inline bool find_moe(const MoeWeights& w, hadal::cuda::MoeFewArgs* args) {
  if (w.w1.empty() && w.shared_w1.empty()) return false;
  const DType dtype = w.w1.empty() ? w.shared_w1.data.dtype() : w.w1[0].data.dtype();
  if (dtype != DType::kBF16 && dtype != DType::kE4M3) return false;
  args->type =
      dtype == DType::kBF16 ? hadal::cuda::GemvWeight::kBF16 : hadal::cuda::GemvWeight::kE4M3;
  if (!w.w1.empty()) {
    if (!find_matrices(w.w1, dtype, &args->w1) || !find_matrices(w.w3, dtype, &args->w3) ||
        !find_matrices(w.w2, dtype, &args->w2))
      return false;
    args->f = static_cast<int>(w.w1[0].data.dim(0));
    args->num_experts = static_cast<int>(w.w1.size());
  }
  if (!w.shared_w1.empty()) {
    if (!find_matrices({&w.shared_w1, 1}, dtype, &args->shared_w1) ||
        !find_matrices({&w.shared_w3, 1}, dtype, &args->shared_w3) ||
        !find_matrices({&w.shared_w2, 1}, dtype, &args->shared_w2))
      return false;
    args->shared_f = static_cast<int>(w.shared_w1.data.dim(0));
  }
  return true;
}

}  // namespace hadal::ops::cuda
