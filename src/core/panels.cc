// Weights from rows into panels.
//
//   N rows   K columns   G groups   W words of a row
// SPDX-License-Identifier: Apache-2.0
#include "core/panels.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <vector>

namespace hadal {
namespace {

int64_t whole_panels(int64_t N) { return (N + kPanelRows - 1) / kPanelRows * kPanelRows; }

// Eight halves of bytes in order -> the first four in the lower halves, the others in the upper.
uint32_t split_halves(uint32_t word) {
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    out |= (word >> (4 * i) & 0xfu) << (8 * i);
    out |= (word >> (16 + 4 * i) & 0xfu) << (8 * i + 4);
  }
  return out;
}

// Whether products would have to look at each byte: at a NaN, or at a scale that times 2^120 is
// none.
bool needs_care(Context& ctx, const Operand& w) {
  for (int64_t i = 0; i < w.scale.num_elements(); ++i)
    if (!(w.scale.data<float>()[i] < 128.0f)) return true;
  const int64_t N = w.data.dim(0), K = w.data.dim(1);
  const auto* bytes = static_cast<const uint8_t*>(w.data.raw());
  std::atomic<bool> found = false;
  ctx.threads.parallel_for(N / kPanelRows, [&](int64_t panel, int) {
    uint8_t any = 0;
    for (int64_t i = panel * kPanelRows * K; i < (panel + 1) * kPanelRows * K; ++i)
      any |= static_cast<uint8_t>((bytes[i] & 0x7fu) + 1u);
    if (any >= 0x80u) found = true;
  });
  return found;
}

}  // namespace

bool fits_panels(const Operand& w) {
  const bool has_type = (w.data.dtype() == DType::kBF16 && w.scale.empty()) ||
                        (w.data.dtype() == DType::kE4M3 && !w.scale.empty());
  return has_type && w.data.rank() == 2 && w.data.is_dense() && w.row_begin == 0 &&
         w.transposed.empty() && w.data.dim(0) % kPanelRows == 0 &&
         w.data.dim(1) % kScaleBlock == 0;
}

Operand pack_panels(Context& ctx, const Operand& w, void* to) {
  HADAL_CHECK(fits_panels(w), "pack_panels: ", w.data.str(), " does not fit into panels");
  if (w.data.dtype() == DType::kE4M3 && needs_care(ctx, w)) return w;
  const int64_t N = w.data.dim(0);
  const int64_t W = w.data.dim(1) * static_cast<int64_t>(dtype_size(w.data.dtype())) / 4;
  const int64_t words = kPanelRows * W;
  const auto* from = static_cast<const std::byte*>(w.data.raw());
  ctx.threads.parallel_for(N / kPanelRows, [&](int64_t panel, int) {
    std::vector<uint32_t> rows(static_cast<size_t>(words)), out(rows.size());
    const size_t bytes = rows.size() * sizeof(uint32_t);
    std::memcpy(rows.data(), from + static_cast<size_t>(panel) * bytes, bytes);
    for (int64_t k = 0; k < W; ++k)
      for (int64_t r = 0; r < kPanelRows; ++r)
        out[static_cast<size_t>(k * kPanelRows + r)] = rows[static_cast<size_t>(r * W + k)];
    std::memcpy(static_cast<std::byte*>(to) + static_cast<size_t>(panel) * bytes, out.data(),
                bytes);
  });
  return {Tensor(to, DType::kI32, {N, W}), w.scale};
}

Shape int_words_shape(const Shape& matrix, int bits) {
  return {whole_panels(matrix[0]), int_groups(matrix[1]) * int_group_words(bits)};
}
Shape int_scales_shape(const Shape& matrix) {
  return {whole_panels(matrix[0]), int_groups(matrix[1])};
}
Operand int_operand(const Shape& matrix, const Tensor& words, const Tensor& scales) {
  return {words.rows(0, matrix[0]), scales.rows(0, matrix[0])};
}

void pack_int_panels(Context& ctx, int64_t K, In words, In scales, const Operand& to) {
  const int64_t N = words.dim(0), stored = words.dim(1), G = int_groups(K);
  const int64_t W = to.data.dim(1);
  const int bits = W == G * int_group_words(8) ? 8 : 4;
  HADAL_CHECK(words.dtype() == DType::kI32 && scales.dtype() == DType::kBF16 &&
                  stored == (K * bits + 31) / 32 && scales.shape() == Shape({N, G}) &&
                  to.data.shape() == Shape({N, G * int_group_words(bits)}) &&
                  to.scale.shape() == scales.shape(),
              "pack_int_panels: words ", words.str(), " and scales ", scales.str(), " of rows of ",
              K, " elements do not fit into ", to.data.str(), " and ", to.scale.str());
  ctx.threads.parallel_for(whole_panels(N) / kPanelRows, [&](int64_t panel, int) {
    auto* out = reinterpret_cast<uint32_t*>(to.data.data<int32_t>()) + panel * kPanelRows * W;
    bf16* out_scale = to.scale.data<bf16>() + panel * kPanelRows * G;
    std::array<const int32_t*, kPanelRows> row{};
    std::array<const bf16*, kPanelRows> row_scale{};
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const int64_t n = std::min(panel * kPanelRows + r, N - 1);
      row[static_cast<size_t>(r)] = words.data<int32_t>() + n * words.stride(0);
      row_scale[static_cast<size_t>(r)] = scales.data<bf16>() + n * scales.stride(0);
    }
    for (int64_t k = 0; k < W; ++k)
      for (size_t r = 0; r < kPanelRows; ++r) {
        const auto word = k < stored ? static_cast<uint32_t>(row[r][k]) : 0u;
        *out++ = bits == 8 ? word : split_halves(word);
      }
    for (int64_t g = 0; g < G; ++g)
      for (size_t r = 0; r < kPanelRows; ++r) *out_scale++ = row_scale[r][g];
  });
}

}  // namespace hadal
