// Latent attention by Hopper's kernel: which calls it takes, and the call.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/attention.h"

namespace hadal::ops::cuda::sm90 {

// False, having done nothing, unless types and sizes are the kernel's own (ops/cuda/mla_decode).
bool latent_attention(Context& ctx, const Packed& seq, double scale, const Tensor& q,
                      const LatentPages& cache, const Tensor& out);

}  // namespace hadal::ops::cuda::sm90
