// Row kernels for one instruction set: included once by each rows_*.cc, inside its own namespace.
//
// REQUIRES: HADAL_ROWS_ISA names the namespace and HADAL_ROWS_BYTES is the width of a vector
// register. Everything here is local to the file: the linker must never merge copies built for
// different sets.
// SPDX-License-Identifier: Apache-2.0

#include <limits>

#include "ops/cpu/isa/row_kernels.h"
#include "ops/cpu/math.h"

namespace hadal::ops::cpu::HADAL_ROWS_ISA {
namespace {

constexpr int64_t kLanes = 16;  // partial sums of every reduction

template <class R>
struct Vec;
template <>
struct Vec<float> {
  typedef float type __attribute__((vector_size(HADAL_ROWS_BYTES)));
};
template <>
struct Vec<double> {
  typedef double type __attribute__((vector_size(HADAL_ROWS_BYTES)));
};

// Fixed tree over the partial sums: halves of 8, 4, 2, 1.
template <class R>
inline R tree(const R* lane) {
  R s[kLanes / 2];
  for (int i = 0; i < 8; ++i) s[i] = lane[i] + lane[i + 8];
  for (int i = 0; i < 4; ++i) s[i] = s[i] + s[i + 4];
  return (s[0] + s[2]) + (s[1] + s[3]);
}

// Sum over i of x0[i] * x1[i] * ..., multiplied from the left.
template <class R, class... P>
inline R product_sum(int64_t n, const P*... x) {
  using V = typename Vec<R>::type;
  constexpr int kParts = static_cast<int>(kLanes * sizeof(R) / sizeof(V));
  constexpr int64_t kWidth = sizeof(V) / sizeof(R);
  V acc[kParts] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC unroll 8
    for (int p = 0; p < kParts; ++p) {
      const auto load = [&](const R* from) {
        V v;
        __builtin_memcpy(&v, from + i + p * kWidth, sizeof(V));
        return v;
      };
      acc[p] += (... * load(x));
    }
  }
  R lane[kLanes];
  __builtin_memcpy(lane, acc, sizeof(lane));
  for (int64_t l = 0; i < n; ++i, ++l) lane[l] += (... * x[i]);
  return tree(lane);
}

template <class R>
R sum(const R* x, int64_t n) {
  return product_sum<R>(n, x);
}
template <class R>
R dot(const R* a, const R* b, int64_t n) {
  return product_sum<R>(n, a, b);
}
template <class R>
R dot3(const R* a, const R* b, const R* c, int64_t n) {
  return product_sum<R>(n, a, b, c);
}

constexpr int64_t kTile = 256;  // elements that a reduction over computed terms stages on the stack

// Lane sums of tiles add up as in one long reduction: kTile is a multiple of kLanes.
template <class R>
struct LaneSum {
  R lane[kLanes] = {};
  void add(const R* x, int64_t n) {
    int64_t i = 0;
    using V = typename Vec<R>::type;
    constexpr int kParts = static_cast<int>(kLanes * sizeof(R) / sizeof(V));
    V acc[kParts];
    __builtin_memcpy(acc, lane, sizeof(lane));
    for (; i + kLanes <= n; i += kLanes) {
      V v[kParts];
      __builtin_memcpy(v, x + i, sizeof(v));
#pragma GCC unroll 8
      for (int p = 0; p < kParts; ++p) acc[p] += v[p];
    }
    __builtin_memcpy(lane, acc, sizeof(lane));
    for (int64_t l = 0; i < n; ++i, ++l) lane[l] += x[i];
  }
  R total() const { return tree(lane); }
};

inline int64_t tile_size(int64_t done, int64_t n) { return n - done < kTile ? n - done : kTile; }

template <class R>
double sum_squares(const R* x, int64_t n) {
  LaneSum<double> sum;
  double tile[kTile];
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t count = tile_size(i, n);
    for (int64_t j = 0; j < count; ++j) {
      const double v = static_cast<double>(x[i + j]);
      tile[j] = v * v;
    }
    sum.add(tile, count);
  }
  return sum.total();
}

template <class R>
R max(const R* x, int64_t n) {
  R lane[kLanes];
  for (R& v : lane) v = -std::numeric_limits<R>::infinity();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
  }
  for (; i < n; ++i) lane[0] = x[i] > lane[0] ? x[i] : lane[0];
  R best = lane[0];
  for (int64_t l = 1; l < kLanes; ++l) best = lane[l] > best ? lane[l] : best;
  return best;
}

template <class R>
R exp_sum(const R* x, R shift, int64_t n) {
  LaneSum<R> sum;
  R tile[kTile];
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t count = tile_size(i, n);
    for (int64_t j = 0; j < count; ++j) tile[j] = exp_of(x[i + j] - shift);
    sum.add(tile, count);
  }
  return sum.total();
}

template <class R>
void exp_shifted(const R* x, R shift, R scale, R* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = scale * exp_of(x[i] - shift);
}

template <class R>
void sigmoid(const R* x, R* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = sigmoid_of(x[i]);
}

template <class R>
void add(const R* a, const R* b, R* c, int64_t n) {
  for (int64_t i = 0; i < n; ++i) c[i] = a[i] + b[i];
}

template <class R>
void norm(const R* x, const R* gain, R rstd, R* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = (x[i] * rstd) * gain[i];
}

template <class R>
void norm_dx(const R* x, const R* gain, const R* dy, R rstd, R c, R* dx, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dx[i] = rstd * (gain[i] * dy[i]) - c * x[i];
}

template <class R>
void norm_dgain(const R* x, const R* dy, R rstd, R* __restrict dgain, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dgain[i] += dy[i] * (x[i] * rstd);
}

template <class R>
void swiglu(const R* gate, const R* up, R weight, R* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = weight * ((gate[i] * sigmoid_of(gate[i])) * up[i]);
}

template <class R>
R swiglu_backward(const R* gate, const R* up, const R* dy, R weight, R* dgate, R* dup, R* y,
                  int64_t n) {
  LaneSum<R> sum;
  R tile[5][kTile];  // staged, so that every loop has separate inputs and outputs
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t count = tile_size(i, n);
    const R *g = gate + i, *u = up + i, *d = dy + i;
    for (int64_t j = 0; j < count; ++j) {
      const R z = sigmoid_of(g[j]);
      const R silu = g[j] * z;
      const R out = silu * u[j];
      tile[0][j] = d[j] * out;
      tile[1][j] = weight * ((d[j] * u[j]) * (z * (R(1) + g[j] * (R(1) - z))));
      tile[2][j] = weight * (d[j] * silu);
      tile[3][j] = weight * out;
    }
    sum.add(tile[0], count);
    __builtin_memcpy(dgate + i, tile[1], static_cast<size_t>(count) * sizeof(R));
    __builtin_memcpy(dup + i, tile[2], static_cast<size_t>(count) * sizeof(R));
    __builtin_memcpy(y + i, tile[3], static_cast<size_t>(count) * sizeof(R));
  }
  return sum.total();
}

template <class R>
void adamw(const AdamwFactors<R>& factors, const R* __restrict grad, R* __restrict param,
           R* __restrict m, R* __restrict v, int64_t n) {
  const AdamwFactors<R> f = factors;
  for (int64_t i = 0; i < n; ++i) {
    const R g = grad[i] * f.grad_scale;
    const R mean = f.beta1 * m[i] + f.one_minus_beta1 * g;
    const R square = f.beta2 * v[i] + f.one_minus_beta2 * (g * g);
    m[i] = mean;
    v[i] = square;
    param[i] = f.keep * param[i] - (f.step * mean) / (std::sqrt(square * f.correction2) + f.eps);
  }
}

void widen(const bf16* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    y[i] = std::bit_cast<float>(static_cast<uint32_t>(x[i].bits) << 16);
  }
}

void narrow(const float* x, bf16* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(x[i]);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t nan = (bits >> 16) | 0x40u;
    y[i].bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
  }
}

// As if normal, a magnitude is f = (1 + m/8) 2^(e-7); where e is 0 the element is 2 f - 2^-6, which
// is less than f there and not less elsewhere.
void widen_scaled(const e4m3* x, float scale, bf16* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t byte = x[i].bits, magnitude = byte & 0x7fu;
    const float f = std::bit_cast<float>((magnitude << 20) + (120u << 23));
    const float low = (f + f) - 0x1p-6f;
    const float value = (low < f ? low : f) * scale;
    const uint32_t bits = magnitude == 0x7fu ? 0x7fc0u : std::bit_cast<uint32_t>(value) >> 16;
    y[i].bits = static_cast<uint16_t>(bits | (byte & 0x80u) << 8);
  }
}

template <class R>
constexpr RowOps<R> row_ops() {
  return {add<R>,         sum<R>,
          dot<R>,         dot3<R>,
          sum_squares<R>, max<R>,
          exp_sum<R>,     exp_shifted<R>,
          sigmoid<R>,     norm<R>,
          norm_dx<R>,     norm_dgain<R>,
          swiglu<R>,      swiglu_backward<R>,
          adamw<R>};
}

}  // namespace

#define HADAL_ROWS_STRING_(x) #x
#define HADAL_ROWS_STRING(x) HADAL_ROWS_STRING_(x)
const RowKernels& table() {
  static constexpr RowKernels kTable = {HADAL_ROWS_STRING(HADAL_ROWS_ISA),
                                        row_ops<float>(),
                                        row_ops<double>(),
                                        widen,
                                        narrow,
                                        widen_scaled};
  return kTable;
}

}  // namespace hadal::ops::cpu::HADAL_ROWS_ISA
