// Single-threaded matrix products over blocks: what gemm and attention bodies call inside tasks.
//
//   M, N rows and columns of the result   K inner width
//
// Each element of the result is one chain of multiply-adds over k = 0, 1, ..., starting from zero
// or from the old value: the same bits however the result is cut into blocks, and at every M. AVX2
// and AVX-512 fuse each multiply-add and give the same bits; the portable kernel rounds twice.
// Scratch is thread-local and grows only.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace hadal::ops::cpu {

enum class Start : uint8_t { kZero, kOld };  // what a chain starts from

// Element (r, k) of an operand is at data + r * row_stride + k * k_stride; one of the two is 1.
struct MatrixView {
  const void* data;
  DType dtype;
  int64_t row_stride, k_stride;
  const float* scale =
      nullptr;               // block FP8: scale of element (r, k) by its place in the stored matrix
  int64_t scale_stride = 0;  // blocks of a row of the stored matrix
  int64_t stored_row = 0, stored_col = 0;  // place of (0, 0) in the stored matrix
  bool rows_are_stored_rows = true;        // else the view is transposed

  MatrixView block(int64_t r, int64_t k) const;  // the view that starts at (r, k)
};

// c[M, N] at c + m * ldc + n, in T or bf16 (T float).
struct ResultView {
  void* data;
  DType dtype;
  int64_t row_stride;
};

// c = (or +=) a b^T in arithmetic type T (float or double).  a (M, K), b (N, K)
template <class T>
void matmul(int64_t M, int64_t N, int64_t K, const MatrixView& a, const MatrixView& b,
            const ResultView& c, Start start);

// Dense operands of type T, row-major with leading strides.
template <class T>
void matmul_nt(int64_t M, int64_t N, int64_t K, const T* a, int64_t lda, const T* b, int64_t ldb,
               T* c, int64_t ldc, Start start) {  // [M,N] (+)= [M,K] [N,K]^T
  matmul<T>(M, N, K, {a, DTypeOf<T>::value, lda, 1}, {b, DTypeOf<T>::value, ldb, 1},
            {c, DTypeOf<T>::value, ldc}, start);
}
template <class T>
void matmul_nn(int64_t M, int64_t N, int64_t K, const T* a, int64_t lda, const T* b, int64_t ldb,
               T* c, int64_t ldc, Start start) {  // [M,N] (+)= [M,K] [K,N]
  matmul<T>(M, N, K, {a, DTypeOf<T>::value, lda, 1}, {b, DTypeOf<T>::value, 1, ldb},
            {c, DTypeOf<T>::value, ldc}, start);
}
template <class T>
void matmul_tn(int64_t M, int64_t N, int64_t K, const T* a, int64_t lda, const T* b, int64_t ldb,
               T* c, int64_t ldc, Start start) {  // [M,N] (+)= [K,M]^T [K,N]
  matmul<T>(M, N, K, {a, DTypeOf<T>::value, 1, lda}, {b, DTypeOf<T>::value, 1, ldb},
            {c, DTypeOf<T>::value, ldc}, start);
}

// Memory that will be read soon: lines of 64 bytes, `stride` bytes apart. A register kernel asks
// the second-level cache for one of them each k (for the first K of them), so that memory is read
// while it computes. Nothing depends on the addresses being real.
struct Ahead {
  const std::byte* data = nullptr;
  int64_t stride = 0, count = 0;
};

// The register kernel of one instruction set.
template <class T>
struct MatmulKernel {
  int64_t mr, nr;  // rows and columns that it computes at once
  int64_t width;   // of a panel of a: mr, or more to keep vectors aligned
  // c[m, nr] (ldc) from panels a [K][width] and b [K][nr]; m <= mr. next_c: the c of the next call.
  void (*compute)(int64_t K, const T* a, const T* b, T* c, int64_t ldc, int64_t m, Start start,
                  const T* next_c, const Ahead& ahead);
  // panel[k * width + r] = src[r * stride + k] for r < rows, zero for the other r < width.
  void (*transpose)(int64_t rows, int64_t K, const T* src, int64_t stride, int64_t width, T* panel);
  // The same from columns: panel[k * width + r] = src[k * stride + r].
  void (*copy)(int64_t rows, int64_t K, const T* src, int64_t stride, int64_t width, T* panel);
};
struct MatmulKernels {
  MatmulKernel<float> f32;
  MatmulKernel<double> f64;
};
extern const MatmulKernels matmul_portable, matmul_avx2, matmul_avx512;
const MatmulKernels& matmul_kernels();  // of active_isa()

// Panel of `width` rows from row r of v, k in [k, k + K): panel[i * width + j]. Rows past `rows`
// hold anything. The panel that will be packed next begins `ahead` rows further; 0: not known.
void pack_panel(const MatrixView& v, int64_t r, int64_t rows, int64_t k, int64_t K, int64_t width,
                int64_t ahead, float* panel);

}  // namespace hadal::ops::cpu
