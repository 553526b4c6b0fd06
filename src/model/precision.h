// Precision: the formats that training uses beside its compute type (report, 3.3), and that of the
// latent cache in generation.
//
// The default is the compute type for everything. docs/numerics.md lists every tensor.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace hadal {

// Tiles of dy in dx = dy w. kSquare, 128 x 128, exists to show that it is worse (report, B.2).
enum class GradientTiles : uint8_t { kRow, kSquare };

struct Precision {
  // Products of attention's projections, MLPs and experts, forward and backward, and the rows that
  // dispatch sends forward and back. Embedding, head, gate, norms, attention itself and the
  // projection of MTP modules stay as they are.
  bool fp8 = false;
  GradientTiles gradient_tiles = GradientTiles::kRow;
  bool e4m3_swiglu = false;     // kept inputs of SwiGLU
  bool e5m6_attention = false;  // kept output of attention
};

// The report's recipe, whole.
inline constexpr Precision kFp8Recipe{.fp8 = true, .e4m3_swiglu = true, .e5m6_attention = true};

// Rows of the latent cache: of the compute type, or e4m3 with scales (ops/latent_row.h).
enum class CacheFormat : uint8_t { kCompute, kFp8 };

}  // namespace hadal
