// Integer products of more than a few rows, where bytes are not multiplied and added up in one go:
// rows share operands that were unpacked once, the weights of a group for all rows, the activations
// of a block for all columns.
//
// Included by int_kernel.inc.h where HADAL_INT_WIDE_ROWS, the rows of a register block, is set.
// SPDX-License-Identifier: Apache-2.0

constexpr int64_t kWideRows = 12;           // fewer do not make up for the unpacking
constexpr int64_t kHalves = kIntGroup / 2;  // words of a group, two k each: first the even bytes

struct Wide {
  // 8 bits: halves [64][32]; 4 bits: bytes [32][32].
  alignas(64) uint32_t weights[kHalves * kPanelRows];
  alignas(64) uint32_t activations[kHalves * kIntRows];  // 8 bits: halves [64][rows]
};

void unpack_weights(const IntKernels::Panel& p, int64_t g, Wide& wide) {
  constexpr int64_t kCount = kIntWords * kPanelRows;
  constexpr uint32_t kHalf = 0x0f0f0f0fu;
  if (p.bits == IntBits::k8) {
    const uint32_t* w = p.words + g * kCount;
    for (int64_t i = 0; i < kCount; ++i) {
      wide.weights[i] = w[i] & 0x00ff00ffu;
      wide.weights[kCount + i] = (w[i] >> 8) & 0x00ff00ffu;
    }
    return;
  }
  const uint32_t* w = p.words + g * kCount / 2;
  uint32_t* out = wide.weights;
  for (int64_t i = 0; i < kIntWords / 2; ++i, w += kPanelRows, out += 2 * kPanelRows)
    for (int64_t n = 0; n < kPanelRows; ++n) {
      out[n] = w[n] & kHalf;
      out[kPanelRows + n] = (w[n] >> 4) & kHalf;
    }
}

void unpack_activations(const uint32_t* q, int64_t count, uint32_t* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const Words bytes = load_words(q + i), even = even_halves(bytes), odd = odd_halves(bytes);
    __builtin_memcpy(out + i, &even, sizeof(even));
    __builtin_memcpy(out + count + i, &odd, sizeof(odd));
  }
}

// M rows from m0 on of a block, whose activations lie in a [words][rows]. By itself: within its
// callers, the loop's sums and pointers would share what registers they leave.
template <IntBits kBits, int M>
[[gnu::noinline]] void wide_block(const IntKernels::Panel& p, const Rows& rows, int64_t g,
                                  int64_t m0, int64_t ldc, const uint32_t* weights,
                                  const uint32_t* a) {
  constexpr int kVecs = 2;
  for (int64_t v0 = 0; v0 < kPanelRows / kLanes; v0 += kVecs) {
    Words dot[M][kVecs];
    begin<M, kVecs>(rows, g, m0, kOffset<kBits>, dot);
    const uint32_t *w = weights + v0 * kLanes, *row = a + m0;
    // Adds the products of one word of each row with sums of `add`.
    const auto step = [&](Words(*sum)[kVecs], const auto& add) __attribute__((always_inline)) {
      const Words column[kVecs] = {load_words(w), load_words(w + kLanes)};
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Words one = row[m] + Words{};
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) {
          sum[m][v] = add(sum[m][v], column[v], one);
          // Each sum at once, or products that wait take the registers of other sums.
          asm volatile("" : "+x"(sum[m][v]));
        }
      }
      w += kPanelRows;
      row += rows.count;
    };
    if constexpr (kBits == IntBits::k8) {
#pragma GCC unroll 1
      for (int64_t k = 0; k < kHalves; ++k) step(dot, dot2);
    } else {
#pragma GCC unroll 1
      for (int64_t k = 0; k < kIntWords; k += kPairs) {
        Words pairs[M][kVecs] = {};
#pragma GCC unroll 1
        for (int64_t i = 0; i < kPairs; ++i) step(pairs, add_pairs);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
          for (int v = 0; v < kVecs; ++v) dot[m][v] += sum_of_pairs(pairs[m][v]);
      }
    }
    finish<M, kVecs>(p, rows, g, m0, v0, dot, ldc);
  }
}

template <IntBits kBits, int M>
void wide_of(const IntKernels::Panel& p, const Rows& rows, int64_t g, int64_t m0, int64_t ldc,
             const uint32_t* weights, const uint32_t* a) {
  if (rows.count - m0 >= M) return wide_block<kBits, M>(p, rows, g, m0, ldc, weights, a);
  if constexpr (M > 1) wide_of<kBits, M - 1>(p, rows, g, m0, ldc, weights, a);
}

// A group of a block of rows.
void wide_rows(const IntKernels::Panel& p, const Rows& rows, int64_t g, int64_t ldc, Wide& wide) {
  constexpr int M = HADAL_INT_WIDE_ROWS;
  const int64_t count = kIntWords * rows.count;
  const uint32_t* q = rows.q + g * count;
  if (p.bits == IntBits::k8) unpack_activations(q, count, wide.activations);
  for (int64_t m = 0; m < rows.count; m += M)
    if (p.bits == IntBits::k8)
      wide_of<IntBits::k8, M>(p, rows, g, m, ldc, wide.weights, wide.activations);
    else
      wide_of<IntBits::k4, M>(p, rows, g, m, ldc, wide.weights, q);
}
