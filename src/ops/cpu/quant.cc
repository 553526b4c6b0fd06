// Block FP8 on the CPU.
//
//   N rows   K columns
// SPDX-License-Identifier: Apache-2.0
#include "ops/quant.h"

#include <cmath>

#include "ops/cpu/rows.h"

namespace hadal::ops::cpu {

void quantise_blocks(Context& ctx, In w, ScaleFormat format, Out q, Out scale) {
  const int64_t N = w.dim(0), K = w.dim(1), num_block_rows = scale.dim(0),
                num_block_cols = scale.dim(1);
  ctx.threads.parallel_for(num_block_rows * num_block_cols, [&](int64_t block, int) {
    const int64_t block_row = block / num_block_cols, block_col = block % num_block_cols;
    const int64_t n0 = block_row * kScaleBlock, n1 = std::min(N, n0 + kScaleBlock);
    const int64_t k0 = block_col * kScaleBlock, count = std::min(K - k0, kScaleBlock);
    float tile[kScaleBlock];
    float amax = 0.0f;
    for (int64_t n = n0; n < n1; ++n) {
      const float* row = read_row(w, n * w.stride(0) + k0, count, tile);
      for (int64_t k = 0; k < count; ++k) {
        const float magnitude = std::fabs(row[k]);
        HADAL_CHECK(std::isfinite(magnitude), "element [", n, ", ", k0 + k, "] of w is ",
                    static_cast<double>(row[k]), "; FP8 holds finite weights only");
        amax = std::max(amax, magnitude);
      }
    }
    const float block_scale = tile_scale(amax, format);
    scale.data<float>()[block_row * scale.stride(0) + block_col] = block_scale;
    for (int64_t n = n0; n < n1; ++n) {
      const float* row = read_row(w, n * w.stride(0) + k0, count, tile);
      e4m3* to = q.data<e4m3>() + n * q.stride(0) + k0;
      for (int64_t k = 0; k < count; ++k) to[k] = to_e4m3(row[k] / block_scale);
    }
  });
}

void dequantise_blocks(Context& ctx, const Operand& w, Out y) {
  const int64_t N = y.dim(0), K = y.dim(1);
  with_arithmetic({w.data.dtype(), y.dtype()}, [&]<class R>(R) {
    for_rows(ctx, N, K, [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t k0 = 0; k0 < K; k0 += kScaleBlock) {
          const int64_t count = std::min(K - k0, kScaleBlock);
          R tile[kScaleBlock];
          read_elements(address(w.data, n * w.data.stride(0) + k0), w.data.dtype(), tile, count);
          if (!w.scale.empty()) {
            const int64_t block_row = (w.row_begin + n) / kScaleBlock;
            const R scale = static_cast<R>(
                w.scale.data<float>()[block_row * w.scale.stride(0) + k0 / kScaleBlock]);
            for (int64_t k = 0; k < count; ++k) tile[k] *= scale;
          }
          write_elements(tile, address(y, n * y.stride(0) + k0), y.dtype(), count);
        }
      }
    });
  });
}

}  // namespace hadal::ops::cpu
