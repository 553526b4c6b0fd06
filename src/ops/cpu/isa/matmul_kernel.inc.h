// The register kernel of matmul, compiled once per instruction set.
//
// The including file sets HADAL_VECTOR_BYTES, HADAL_ROWS (mr), HADAL_WIDTH (of f32 panels of a),
// HADAL_TABLE (the table's name) and defines fma(a, b, c) for its vectors before including this.
// SPDX-License-Identifier: Apache-2.0

namespace hadal::ops::cpu {
namespace {

constexpr int kVectors = 2;  // vectors of a row of the register block

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(HADAL_VECTOR_BYTES)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = HADAL_VECTOR_BYTES / static_cast<int>(sizeof(T));
template <class T>
constexpr int64_t kWidth = sizeof(T) == 4 ? HADAL_WIDTH : HADAL_ROWS;

// k of both panels to ask for before they are read: a panel of b comes from the second level.
constexpr int64_t kAhead = 12;

template <class T>
Vector<T> load(const T* p) {
  Vector<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
template <class T>
void store(T* p, Vector<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// M rows: all sums stay in registers, in the order of k.
template <class T, int M>
void block(int64_t K, const T* a, const T* b, T* c, int64_t ldc, Start start, const T* next_c,
           const Ahead& ahead) {
  constexpr int64_t kNr = kVectors * kLanes<T>;
  Vector<T> sum[M][kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      sum[m][v] = start == Start::kOld ? load(c + m * ldc + v * kLanes<T>) : Vector<T>{};
  // Not into the first level: rows a power of two apart would push each other out.
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < kVectors; ++v) __builtin_prefetch(next_c + m * ldc + v * kLanes<T>, 1, 2);
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    __builtin_prefetch(a + (k + kAhead) * kWidth<T>, 0, 3);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      __builtin_prefetch(b + (k + kAhead) * kNr + v * kLanes<T>, 0, 3);
    Vector<T> column[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) column[v] = load(b + k * kNr + v * kLanes<T>);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Vector<T> row = a[k * kWidth<T> + m] - Vector<T>{};
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[m][v] = multiply_add(row, column[v], sum[m][v]);
    }
  };
  const int64_t asked = ahead.count < K ? ahead.count : K;
  const std::byte* line = ahead.data;
  int64_t k = 0;
  for (; k < asked; ++k, line += ahead.stride) {
    __builtin_prefetch(line, 0, 2);
    step(k);
  }
  for (; k < K; ++k) step(k);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store(c + m * ldc + v * kLanes<T>, sum[m][v]);
}

template <class T, int M>
void compute_rows(int64_t K, const T* a, const T* b, T* c, int64_t ldc, int64_t m, Start start,
                  const T* next_c, const Ahead& ahead) {
  if (m == M) return block<T, M>(K, a, b, c, ldc, start, next_c, ahead);
  if constexpr (M > 1) compute_rows<T, M - 1>(K, a, b, c, ldc, m, start, next_c, ahead);
}

template <class T>
void compute(int64_t K, const T* a, const T* b, T* c, int64_t ldc, int64_t m, Start start,
             const T* next_c, const Ahead& ahead) {
  compute_rows<T, HADAL_ROWS>(K, a, b, c, ldc, m, start, next_c, ahead);
}

// Squares of kSide x kSide are transposed in registers by the compiler's shuffles.
template <class T>
void transpose(int64_t rows, int64_t K, const T* src, int64_t stride, int64_t width, T* panel) {
  constexpr int64_t kSide = 4;
  typedef T Square __attribute__((vector_size(kSide * sizeof(T))));
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index;
  typedef Index Mask __attribute__((vector_size(kSide * sizeof(T))));
  constexpr Mask kLow = {0, 4, 1, 5}, kHigh = {2, 6, 3, 7}, kFirst = {0, 1, 4, 5},
                 kSecond = {2, 3, 6, 7};
  const int64_t full_rows = rows / kSide * kSide, full_k = K / kSide * kSide;
  for (int64_t k = 0; k < full_k; k += kSide) {
    for (int64_t r = 0; r < full_rows; r += kSide) {
      Square in[kSide];
      for (int64_t i = 0; i < kSide; ++i)
        __builtin_memcpy(&in[i], src + (r + i) * stride + k, sizeof(Square));
      const Square t0 = __builtin_shuffle(in[0], in[1], kLow),
                   t1 = __builtin_shuffle(in[0], in[1], kHigh);
      const Square t2 = __builtin_shuffle(in[2], in[3], kLow),
                   t3 = __builtin_shuffle(in[2], in[3], kHigh);
      const Square out[kSide] = {
          __builtin_shuffle(t0, t2, kFirst), __builtin_shuffle(t0, t2, kSecond),
          __builtin_shuffle(t1, t3, kFirst), __builtin_shuffle(t1, t3, kSecond)};
      for (int64_t i = 0; i < kSide; ++i)
        __builtin_memcpy(panel + (k + i) * width + r, &out[i], sizeof(Square));
    }
  }
  for (int64_t k = 0; k < K; ++k) {
    const int64_t first = k < full_k ? full_rows : 0;
    for (int64_t r = first; r < rows; ++r) panel[k * width + r] = src[r * stride + k];
    for (int64_t r = rows; r < width; ++r) panel[k * width + r] = T(0);
  }
}

// The width is a constant, so that a row is a few vector moves instead of a call.
template <class T, int64_t kRows, int64_t kStride>
void copy_rows(int64_t K, const T* src, int64_t stride, T* panel) {
  for (int64_t k = 0; k < K; ++k)
    __builtin_memcpy(panel + k * kStride, src + k * stride, kRows * sizeof(T));
}

template <class T>
void copy(int64_t rows, int64_t K, const T* src, int64_t stride, int64_t width, T* panel) {
  constexpr int64_t kNr = kVectors * kLanes<T>;
  if (rows == width && width == kNr) return copy_rows<T, kNr, kNr>(K, src, stride, panel);
  if (rows == HADAL_ROWS && width == kWidth<T>)
    return copy_rows<T, HADAL_ROWS, kWidth<T>>(K, src, stride, panel);
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t r = 0; r < rows; ++r) panel[k * width + r] = src[k * stride + r];
    for (int64_t r = rows; r < width; ++r) panel[k * width + r] = T(0);
  }
}

}  // namespace

extern const MatmulKernels HADAL_TABLE;
const MatmulKernels HADAL_TABLE = {.f32 = {HADAL_ROWS, kVectors* kLanes<float>, kWidth<float>,
                                           compute<float>, transpose<float>, copy<float>},
                                   .f64 = {HADAL_ROWS, kVectors* kLanes<double>, kWidth<double>,
                                           compute<double>, transpose<double>, copy<double>}};

}  // namespace hadal::ops::cpu
