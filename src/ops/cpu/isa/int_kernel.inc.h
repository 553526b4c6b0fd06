// The kernels of integer products, compiled once per instruction set.
//
// The including file includes dot4.h and sets HADAL_TABLE and HADAL_INT_ROWS (rows
// of a register block).
// SPDX-License-Identifier: Apache-2.0

namespace hadal::ops::cpu {
namespace {

constexpr int kVecs = 2;  // vectors of a row of the register block

void quantise(IntBits bits, const float* x, int64_t K, int64_t rows, int64_t r, uint32_t* q,
              float* scale, int32_t* sum) {
  constexpr float kRound = 12582912.0f;  // adding it rounds to an integer in the low bits
  const int64_t per_word = bits == IntBits::k8 ? 4 : 8;
  for (int64_t g = 0, k0 = 0; k0 < K; ++g, k0 += kIntGroup) {
    const int64_t n = K - k0 < kIntGroup ? K - k0 : kIntGroup;
    // The largest magnitude, as bits: NaN is above all, and comes out as the scale.
    int32_t top = 0;
    for (int64_t i = 0; i < n; ++i) {
      int32_t magnitude;
      __builtin_memcpy(&magnitude, x + k0 + i, sizeof(magnitude));
      magnitude &= 0x7fffffff;
      top = magnitude > top ? magnitude : top;
    }
    float amax;
    __builtin_memcpy(&amax, &top, sizeof(amax));
    const float inverse = amax > 1e-30f ? 127.0f / amax : 0.0f;
    int32_t value[kIntGroup] = {};
    int32_t total = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float shifted = x[k0 + i] * inverse + kRound;
      int32_t low;
      __builtin_memcpy(&low, &shifted, sizeof(low));
      value[i] = static_cast<int8_t>(low & 0xff);
      total += value[i];
    }
    scale[g * rows + r] = amax / 127.0f;
    sum[g * rows + r] = total;
    const int64_t stored = (n + per_word - 1) / per_word;
    uint32_t* out = q + k0 / 4 * rows + r;
    const auto word = [&](int64_t first, int64_t step) {
      uint32_t w = 0;
      for (int64_t i = 0; i < 4; ++i)
        w |= (static_cast<uint32_t>(value[first + i * step]) & 0xffu) << (8 * i);
      return w;
    };
    for (int64_t i = 0; i < stored; ++i) {
      if (bits == IntBits::k8) {
        out[i * rows] = word(4 * i, 1);
      } else {
        out[2 * i * rows] = word(8 * i, 2);
        out[(2 * i + 1) * rows] = word(8 * i + 1, 2);
      }
    }
  }
}

void pack(IntBits bits, const StoredRows& from, int64_t count, uint32_t* panel,
          const std::byte* ahead) {
  for (int64_t first = 0; first < kIntPanel; first += kLanes) {
    const std::byte* row[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) {
      const int64_t i = first + r < from.rows ? first + r : from.rows - 1;
      row[r] = from.data + i * from.row_bytes;
    }
    for (int64_t k = 0; k < count; k += kLanes) {
      const int64_t n = count - k < kLanes ? count - k : kLanes;
      Words w[kLanes];
      if (n == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          __builtin_memcpy(&w[i], row[i] + k * 4, sizeof(Words));
          if (ahead != nullptr)
            __builtin_prefetch(ahead + i * static_cast<int>(sizeof(Words)), 0, 2);
        }
        if (ahead != nullptr) ahead += kLanes * sizeof(Words);
      } else {
        for (int i = 0; i < kLanes; ++i) {
          w[i] = Words{};
          __builtin_memcpy(&w[i], row[i] + k * 4, static_cast<size_t>(n) * 4);
        }
      }
      transpose(w);
      if (bits == IntBits::k8) {
        uint32_t* out = panel + k * kIntPanel + first;
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
          if (i < n) __builtin_memcpy(out + i * kIntPanel, &w[i], sizeof(Words));
      } else {
        uint32_t* out = panel + 2 * k * kIntPanel + first;
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          if (i >= n) continue;
          const Words even = w[i] & 0x0f0f0f0fu, odd = (w[i] >> 4) & 0x0f0f0f0fu;
          __builtin_memcpy(out + 2 * i * kIntPanel, &even, sizeof(Words));
          __builtin_memcpy(out + (2 * i + 1) * kIntPanel, &odd, sizeof(Words));
        }
      }
    }
  }
}

// M rows from m0 on, vectors v0 and v0 + 1 of the panel's columns.
template <int M>
void block(const IntKernels::Group& g, int64_t m0, int64_t v0, float* c, int64_t ldc) {
  Words dot[M][kVecs];
  const uint32_t offset = g.bits == IntBits::k8 ? 128 : 8;
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
    const uint32_t start = 0u - offset * static_cast<uint32_t>(g.sum[m0 + m]);
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) dot[m][v] = start + Words{};
  }
  const uint32_t* w = g.panel + v0 * kLanes;
  const uint32_t* q = g.q + m0;
  for (int64_t k = 0; k < g.count; ++k, w += kIntPanel, q += g.rows) {
    Words column[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) __builtin_memcpy(&column[v], w + v * kLanes, sizeof(Words));
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const Words a = q[m] + Words{};
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) dot[m][v] = dot4(dot[m][v], column[v], a);
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVecs; ++v) {
    Vec scale;
    __builtin_memcpy(&scale, g.w_scale + (v0 + v) * kLanes, sizeof(scale));
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      float* out = c + (m0 + m) * ldc + (v0 + v) * kLanes;
      Vec sum;
      __builtin_memcpy(&sum, out, sizeof(sum));
      const Vec real = __builtin_convertvector(reinterpret_cast<Ints>(dot[m][v]), Vec);
      sum = multiply_add(real, (g.a_scale[m0 + m] - Vec{}) * scale, sum);
      __builtin_memcpy(out, &sum, sizeof(sum));
    }
  }
}

template <int M>
void block_of(const IntKernels::Group& g, int64_t m0, int64_t rows, float* c, int64_t ldc) {
  if (rows == M) {
    for (int64_t v = 0; v < kIntPanel / kLanes; v += kVecs) block<M>(g, m0, v, c, ldc);
    return;
  }
  if constexpr (M > 1) block_of<M - 1>(g, m0, rows, c, ldc);
}

void multiply(const IntKernels::Group& g, float* c, int64_t ldc) {
  for (int64_t m = 0; m < g.rows; m += HADAL_INT_ROWS)
    block_of<HADAL_INT_ROWS>(g, m, g.rows - m < HADAL_INT_ROWS ? g.rows - m : HADAL_INT_ROWS, c,
                             ldc);
}

}  // namespace

extern const IntKernels HADAL_TABLE;
const IntKernels HADAL_TABLE = {.quantise = quantise, .pack = pack, .multiply = multiply};

}  // namespace hadal::ops::cpu
