// The kernels of integer products, compiled once per instruction set.
//
// The including file includes dot4.h and sets HADAL_TABLE and HADAL_INT_ROWS (rows
// of a register block).
// SPDX-License-Identifier: Apache-2.0

namespace hadal::ops::cpu {
namespace {

// Vectors of a row of the register block: all of a panel's where M rows leave registers for them,
// so that a panel is read in one run.
template <int M>
constexpr int kVecsOf = M <= 2 ? static_cast<int>(kPanelRows) / kLanes : 2;
template <IntBits kBits>
constexpr uint32_t kOffset = kBits == IntBits::k8 ? 128 : 8;  // what is added to a weight
constexpr int64_t kThin = 4;           // rows that do not keep up with memory's rate by themselves
constexpr int64_t kAheadWords = 2048;  // to ask for before they are read

void quantise(const float* x, int64_t K, int64_t rows, int64_t r, uint32_t* q, float* scale,
              int32_t* sum) {
  constexpr float kRound = 12582912.0f;  // adding it rounds to an integer in the low bits
  for (int64_t g = 0, k0 = 0; k0 < K; ++g, k0 += kIntGroup) {
    const int64_t n = K - k0 < kIntGroup ? K - k0 : kIntGroup;
    float part[kIntGroup];
    const float* from = x + k0;
    if (n < kIntGroup) {
      for (int64_t i = 0; i < kIntGroup; ++i) part[i] = i < n ? from[i] : 0.0f;
      from = part;
    }
    // The largest magnitude, as bits: NaN is above all, and comes out as the scale.
    int32_t top = 0;
    for (int64_t i = 0; i < kIntGroup; ++i) {
      int32_t magnitude;
      __builtin_memcpy(&magnitude, from + i, sizeof(magnitude));
      magnitude &= 0x7fffffff;
      top = magnitude > top ? magnitude : top;
    }
    float amax;
    __builtin_memcpy(&amax, &top, sizeof(amax));
    const float inverse = amax > 1e-30f ? 127.0f / amax : 0.0f;
    int8_t value[kIntGroup];
    int32_t total = 0;
    for (int64_t i = 0; i < kIntGroup; ++i) {
      const float shifted = from[i] * inverse + kRound;
      int32_t low;
      __builtin_memcpy(&low, &shifted, sizeof(low));
      value[i] = static_cast<int8_t>(low & 0xff);
      total += value[i];
    }
    scale[g * rows + r] = amax / 127.0f;
    sum[g * rows + r] = total;
    uint32_t* out = q + g * kIntWords * rows + r;
    for (int64_t i = 0; i < kIntWords; ++i)
      __builtin_memcpy(out + i * rows, value + 4 * i, sizeof(uint32_t));
  }
}

inline Words load_words(const uint32_t* from) {
  Words w;
  __builtin_memcpy(&w, from, sizeof(w));
  return w;
}

// Rows of activations that lie in one block, and their results.
struct Rows {
  int64_t count;
  const uint32_t* q;     // [G * 32][count]
  const float* a_scale;  // [G][count]
  const int32_t* sum;    // [G][count]
  float* c;
};

// What the sums of M rows of a group begin with: w is kept as w + kOffset.
template <int M, int kVecs>
[[gnu::always_inline]] inline void begin(const Rows& rows, int64_t g, int64_t m0, uint32_t offset,
                                         Words (*dot)[kVecs]) {
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v)
      dot[m][v] = 0u - offset * static_cast<uint32_t>(rows.sum[g * rows.count + m0 + m]) + Words{};
}

// c = fma(dot, scale of the activations * scale of the weight, c), columns of vectors from v0 on.
template <int M, int kVecs>
[[gnu::always_inline]] inline void finish(const IntKernels::Panel& p, const Rows& rows, int64_t g,
                                          int64_t m0, int64_t v0, const Words (*dot)[kVecs],
                                          int64_t ldc) {
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    const bf16* scales = p.scale + g * kPanelRows + (v0 + v) * kLanes;
    const Vec scale = reinterpret_cast<Vec>(load_halves(scales) << 16);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      float* out = rows.c + (m0 + m) * ldc + (v0 + v) * kLanes;
      Vec sum;
      __builtin_memcpy(&sum, out, sizeof(sum));
      const Vec real = __builtin_convertvector(reinterpret_cast<Ints>(dot[m][v]), Vec);
      sum = multiply_add(real, (rows.a_scale[g * rows.count + m0 + m] - Vec{}) * scale, sum);
      __builtin_memcpy(out, &sum, sizeof(sum));
    }
  }
}

// M rows from m0 on of one group, kVecsOf<M> vectors from v0 on of the panel's columns.
template <IntBits kBits, int M>
[[gnu::always_inline]] inline void block(const IntKernels::Panel& p, const Rows& rows, int64_t g,
                                         int64_t m0, int64_t v0, int64_t ldc) {
  constexpr int kVecs = kVecsOf<M>;
  // Few sums are two each, of every other word, since one is done before the next can begin.
  constexpr int kSums = M * kVecs <= 4 ? 2 : 1;
  constexpr int64_t kCount = group_words(kBits);
  constexpr uint32_t kHalf = 0x0f0f0f0fu;
  Words dot[kSums][M][kVecs];
  begin<M, kVecs>(rows, g, m0, kOffset<kBits>, dot[0]);
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs && kSums == 2; ++v) dot[kSums - 1][m][v] = Words{};
  const uint32_t* w = p.words + (g * kCount * kPanelRows + v0 * kLanes);
  const uint32_t* q = rows.q + g * kIntWords * rows.count + m0;
  const auto add = [&](int sum, const Words* column) __attribute__((always_inline)) {
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const Words a = q[m] + Words{};
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) dot[sum][m][v] = dot4(dot[sum][m][v], column[v], a);
    }
    q += rows.count;
  };
  constexpr bool kByPairs = kBits == IntBits::k4 && kPairs > 0;
  if constexpr (kByPairs) {
    // A vector of columns at a time: its nibbles and sums are what the registers hold.
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      const uint32_t *from = w + v * kLanes, *a = q;
#pragma GCC unroll 1
      for (int64_t k = 0; k < kCount; k += kPairs / 2, a += kPairs * rows.count) {
        Words nibbles[kPairs];
#pragma GCC unroll 8
        for (int i = 0; i < kPairs; i += 2, from += kPanelRows) {
          const Words both = load_words(from);
          nibbles[i] = both & kHalf;
          nibbles[i + 1] = (both >> 4) & kHalf;
          if (M <= kThin) __builtin_prefetch(from + kAheadWords, 0, 3);
        }
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m)
          dot[0][m][v] = dot_of_nibbles(dot[0][m][v], nibbles, a + m, rows.count);
      }
    }
  }
#pragma GCC unroll 2
  for (int64_t k = 0; !kByPairs && k < kCount; ++k, w += kPanelRows) {
    Words column[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      column[v] = load_words(w + v * kLanes);
      if (M <= kThin) __builtin_prefetch(w + v * kLanes + kAheadWords, 0, 3);
    }
    if constexpr (kBits == IntBits::k8) {
      add(static_cast<int>(k % kSums), column);
    } else {
      Words half[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) half[v] = column[v] & kHalf;
      add(0, half);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) half[v] = (column[v] >> 4) & kHalf;
      add(kSums - 1, half);
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs && kSums == 2; ++v) dot[0][m][v] += dot[kSums - 1][m][v];
  finish<M, kVecs>(p, rows, g, m0, v0, dot[0], ldc);
}

template <IntBits kBits, int M>
void block_of(const IntKernels::Panel& p, const Rows& rows, int64_t m0, int64_t count, int64_t g,
              int64_t end, int64_t ldc) {
  if (count == M) {
    for (; g < end; ++g)
      for (int64_t v = 0; v < kPanelRows / kLanes; v += kVecsOf<M>)
        block<kBits, M>(p, rows, g, m0, v, ldc);
    return;
  }
  if constexpr (M > 1) block_of<kBits, M - 1>(p, rows, m0, count, g, end, ldc);
}

// Groups [g, end) of a block of rows.
void few(const IntKernels::Panel& p, const Rows& rows, int64_t g, int64_t end, int64_t ldc) {
  for (int64_t m = 0; m < rows.count; m += HADAL_INT_ROWS) {
    const int64_t count = rows.count - m < HADAL_INT_ROWS ? rows.count - m : HADAL_INT_ROWS;
    if (p.bits == IntBits::k8)
      block_of<IntBits::k8, HADAL_INT_ROWS>(p, rows, m, count, g, end, ldc);
    else
      block_of<IntBits::k4, HADAL_INT_ROWS>(p, rows, m, count, g, end, ldc);
  }
}

#if defined(HADAL_INT_WIDE_ROWS)
#include "ops/cpu/isa/int_wide.inc.h"
#endif

void multiply(const IntKernels::Panel& p, float* c, int64_t ldc) {
  const auto each_block = [&](const auto& fn) {
    for (int64_t m = 0; m < p.rows; m += kIntRows)
      fn(Rows{p.rows - m < kIntRows ? p.rows - m : kIntRows, p.q + m * p.groups * kIntWords,
              p.a_scale + m * p.groups, p.sum + m * p.groups, c + m * ldc});
  };
#if defined(HADAL_INT_WIDE_ROWS)
  if (p.rows >= kWideRows) {
    Wide wide;
    for (int64_t g = 0; g < p.groups; ++g) {
      unpack_weights(p, g, wide);
      each_block([&](const Rows& rows) { wide_rows(p, rows, g, ldc, wide); });
    }
    return;
  }
#endif
  // A few rows go through a panel at once; of more, each group stays in L1 for all of them.
  const int64_t step = p.rows <= HADAL_INT_ROWS ? p.groups : 1;
  for (int64_t g = 0; g < p.groups; g += step)
    each_block([&](const Rows& rows) { few(p, rows, g, g + step, ldc); });
}

}  // namespace

extern const IntKernels HADAL_TABLE;
const IntKernels HADAL_TABLE = {.quantise = quantise, .multiply = multiply};

}  // namespace hadal::ops::cpu
