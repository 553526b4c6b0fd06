// Matrices as the kernels for a few tokens take them.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/gemv/moe.h"
#include "ops/cuda/operands.h"

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

}  // namespace hadal::ops::cuda
