// Blocked matrix products: packs panels in the arithmetic type and runs the register kernel on
// them.
//
//   M, N rows and columns of the result   K inner width   mr, nr size of the register block
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/matmul.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "ops/cpu/int_product.h"
#include "ops/cpu/isa.h"
#include "ops/cpu/pack.h"
#include "ops/cpu/thin.h"

namespace hadal::ops::cpu {

// The tables of this processor: FAMILY_portable, FAMILY_avx2, FAMILY_avx512.
#if defined(__x86_64__)
#define HADAL_TABLE_OF(family)                    \
  (active_isa() == Isa::kAvx512 ? family##_avx512 \
   : active_isa() == Isa::kAvx2 ? family##_avx2   \
                                : family##_portable)
#else
#define HADAL_TABLE_OF(family) family##_portable
#endif

const MatmulKernels& matmul_kernels() {
  static const MatmulKernels& kernels = HADAL_TABLE_OF(matmul);
  return kernels;
}
const PackKernels& pack_kernels() {
  static const PackKernels& kernels = HADAL_TABLE_OF(pack);
  return kernels;
}
const ThinKernels& thin_kernels() {
  static const ThinKernels& kernels = HADAL_TABLE_OF(thin);
  return kernels;
}
const IntKernels& int_kernels() {
#if defined(__x86_64__)
  static const bool has_vnni = active_isa() == Isa::kAvx512 && __builtin_cpu_supports("avx512vnni");
  if (has_vnni) return int_vnni;
#endif
  static const IntKernels& kernels = HADAL_TABLE_OF(int);
  return kernels;
}

namespace {

constexpr int64_t kBlockK = 256;  // k of a packed block: a panel of a stays in L1
constexpr int64_t kBlockN = 512;  // columns of a packed block of b: it stays in L2
constexpr size_t kAlign = 64;

// One growing buffer per thread and use.
template <class T>
class Scratch {
 public:
  T* get(int64_t count) {
    if (count > capacity_) {
      memory_ = std::make_unique<std::byte[]>(static_cast<size_t>(count) * sizeof(T) + kAlign);
      capacity_ = count;
    }
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<T*>((address + kAlign - 1) / kAlign * kAlign);
  }

 private:
  std::unique_ptr<std::byte[]> memory_;
  int64_t capacity_ = 0;
};

template <class T>
struct ThreadScratch {
  Scratch<T> a, b, converted, result, tile;
};
template <class T>
ThreadScratch<T>& thread_scratch() {
  thread_local ThreadScratch<T> scratch;
  return scratch;
}

template <class T>
const MatmulKernel<T>& kernel() {
  const MatmulKernels& kernels = matmul_kernels();
  if constexpr (std::is_same_v<T, float>)
    return kernels.f32;
  else
    return kernels.f64;
}

const std::array<float, 256>& e4m3_values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> table{};
    for (size_t i = 0; i < 256; ++i) table[i] = to_f32(e4m3{static_cast<uint8_t>(i)});
    return table;
  }();
  return values;
}

// n elements that lie one after the other, as T. (r, k) is the first, `along_k` the direction.
template <class T>
void convert_run(const MatrixView& v, int64_t r, int64_t k, bool along_k, int64_t n, T* out) {
  const int64_t at = r * v.row_stride + k * v.k_stride;
  switch (v.dtype) {
    case DType::kF64: {
      const double* p = static_cast<const double*>(v.data) + at;
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(p[i]);
      return;
    }
    case DType::kF32: {
      const float* p = static_cast<const float*>(v.data) + at;
      for (int64_t i = 0; i < n; ++i) out[i] = p[i];
      return;
    }
    case DType::kBF16: {
      const bf16* p = static_cast<const bf16*>(v.data) + at;
      for (int64_t i = 0; i < n; ++i) out[i] = to_f32(p[i]);
      return;
    }
    case DType::kF16: {
      const f16* p = static_cast<const f16*>(v.data) + at;
      for (int64_t i = 0; i < n; ++i) out[i] = to_f32(p[i]);
      return;
    }
    case DType::kE4M3: {
      const uint8_t* p = static_cast<const uint8_t*>(v.data) + at;
      const auto& table = e4m3_values();
      if (v.scale == nullptr) {
        for (int64_t i = 0; i < n; ++i) out[i] = table[p[i]];
        return;
      }
      // The run lies in one stored row: its scales change every kScaleBlock columns.
      const bool along_columns = along_k == v.rows_are_stored_rows;
      HADAL_CHECK(along_columns, "internal error: FP8 rows are read across their storage");
      const int64_t row = v.stored_row + (v.rows_are_stored_rows ? r : k);
      const int64_t col = v.stored_col + (v.rows_are_stored_rows ? k : r);
      const float* scales = v.scale + row / kScaleBlock * v.scale_stride;
      for (int64_t i = 0; i < n;) {
        const int64_t end = std::min(n, ((col + i) / kScaleBlock + 1) * kScaleBlock - col);
        const float s = scales[(col + i) / kScaleBlock];
        if constexpr (std::is_same_v<T, float>) {
          pack_kernels().e4m3_row(p + i, s, end - i, out + i);
          i = end;
        }
        for (; i < end; ++i) out[i] = table[p[i]] * s;
      }
      return;
    }
    case DType::kI32:
    case DType::kI64:
      break;
  }
  HADAL_FAIL("matrix products take float operands, got ", dtype_name(v.dtype));
}

// Whether the packing kernels read the rows of this view as they lie.
bool is_packable(const MatrixView& v, int64_t r, int64_t rows) {
  if (v.dtype == DType::kF32 || v.dtype == DType::kBF16) return true;
  if (v.dtype != DType::kE4M3 || v.scale == nullptr || !v.rows_are_stored_rows) return false;
  const int64_t first = v.stored_row + r;
  return first / kScaleBlock == (first + rows - 1) / kScaleBlock;  // one row of blocks
}

// Panel of `width` rows from row r: panel[k * width + i], i past `rows` anything.
template <class T>
void pack_panel(const MatrixView& v, int64_t r, int64_t rows, int64_t k, int64_t K, int64_t width,
                int64_t ahead, Scratch<T>& scratch, T* panel) {
  const bool native = v.dtype == DTypeOf<T>::value;
  if constexpr (std::is_same_v<T, float>) {
    const PackKernels& kernels = pack_kernels();
    if (v.k_stride == 1 && is_packable(v, r, rows)) {
      const MatrixView at = v.block(r, k);
      const auto row_bytes = v.row_stride * static_cast<int64_t>(dtype_size(v.dtype));
      const int64_t block_row = at.stored_row / kScaleBlock, block = at.stored_col / kScaleBlock;
      const float* scale =
          v.scale == nullptr ? nullptr : v.scale + block_row * v.scale_stride + block;
      const auto* data = static_cast<const std::byte*>(at.data);
      return kernels.rows(v.dtype,
                          {data, row_bytes, rows, ahead == 0 ? nullptr : data + ahead * row_bytes},
                          K, scale, at.stored_col % kScaleBlock, width, panel);
    }
    if (v.k_stride != 1 && v.dtype == DType::kBF16)
      return kernels.bf16_columns(rows, K, static_cast<const bf16*>(v.block(r, k).data), v.k_stride,
                                  width, panel);
  }
  if (v.k_stride == 1) {
    const T* src = static_cast<const T*>(v.data) + r * v.row_stride + k;
    int64_t stride = v.row_stride;
    if (!native) {
      T* rows_out = scratch.get(rows * K);
      for (int64_t i = 0; i < rows; ++i) convert_run(v, r + i, k, true, K, rows_out + i * K);
      src = rows_out;
      stride = K;
    }
    kernel<T>().transpose(rows, K, src, stride, width, panel);
    return;
  }
  if (native) {
    const T* src = static_cast<const T*>(v.data) + r + k * v.k_stride;
    kernel<T>().copy(rows, K, src, v.k_stride, width, panel);
    return;
  }
  for (int64_t i = 0; i < K; ++i) {
    T* out = panel + i * width;
    convert_run(v, r, k + i, false, rows, out);
    for (int64_t j = rows; j < width; ++j) out[j] = T(0);
  }
}

template <class T>
void run_tile(const MatmulKernel<T>& kern, int64_t K, const T* a, const T* b, T* c, int64_t ldc,
              int64_t m, int64_t n, Start start, T* tile) {
  if (n == kern.nr) {
    kern.compute(K, a, b, c, ldc, m, start, c + n, {});
    return;
  }
  if (start == Start::kOld)
    for (int64_t i = 0; i < m; ++i) {
      std::memcpy(tile + i * kern.nr, c + i * ldc, static_cast<size_t>(n) * sizeof(T));
      std::fill(tile + i * kern.nr + n, tile + (i + 1) * kern.nr, T(0));
    }
  kern.compute(K, a, b, tile, kern.nr, m, start, tile, {});
  for (int64_t i = 0; i < m; ++i)
    std::memcpy(c + i * ldc, tile + i * kern.nr, static_cast<size_t>(n) * sizeof(T));
}

// A panel of a stays in the first-level cache for all panels of b, which stay in the second.
template <class T>
void multiply(int64_t M, int64_t N, int64_t K, const MatrixView& a, const MatrixView& b, T* c,
              int64_t ldc, Start start) {
  const MatmulKernel<T>& kern = kernel<T>();
  ThreadScratch<T>& scratch = thread_scratch<T>();
  const auto round_up = [](int64_t n, int64_t to) { return (n + to - 1) / to * to; };
  const int64_t block_n = round_up(std::min(N, kBlockN), kern.nr);
  const int64_t block_k = std::min(K, kBlockK);
  T* packed_a = scratch.a.get(kern.width * block_k);
  T* packed_b = scratch.b.get(block_n * block_k);
  T* tile = scratch.tile.get(kern.mr * kern.nr);
  for (int64_t n0 = 0; n0 < N; n0 += block_n) {
    const int64_t n1 = std::min(N, n0 + block_n);
    for (int64_t k0 = 0; k0 < K; k0 += block_k) {
      const int64_t depth = std::min(block_k, K - k0);
      const Start from = k0 > 0 ? Start::kOld : start;
      for (int64_t n = n0; n < n1; n += kern.nr)
        pack_panel(b, n, std::min(kern.nr, n1 - n), k0, depth, kern.nr, kern.nr, scratch.converted,
                   packed_b + (n - n0) * depth);
      for (int64_t m = 0; m < M; m += kern.mr) {
        const int64_t rows = std::min(kern.mr, M - m);
        pack_panel(a, m, rows, k0, depth, kern.width, kern.mr, scratch.converted, packed_a);
        for (int64_t n = n0; n < n1; n += kern.nr)
          run_tile(kern, depth, packed_a, packed_b + (n - n0) * depth, c + m * ldc + n, ldc, rows,
                   std::min(kern.nr, n1 - n), from, tile);
      }
    }
  }
}

}  // namespace

void pack_panel(const MatrixView& v, int64_t r, int64_t rows, int64_t k, int64_t K, int64_t width,
                int64_t ahead, float* panel) {
  pack_panel(v, r, rows, k, K, width, ahead, thread_scratch<float>().converted, panel);
}

MatrixView MatrixView::block(int64_t r, int64_t k) const {
  MatrixView v = *this;
  v.data = static_cast<const char*>(data) +
           (r * row_stride + k * k_stride) * static_cast<int64_t>(dtype_size(dtype));
  v.stored_row += rows_are_stored_rows ? r : k;
  v.stored_col += rows_are_stored_rows ? k : r;
  return v;
}

template <class T>
void matmul(int64_t M, int64_t N, int64_t K, const MatrixView& a, const MatrixView& b,
            const ResultView& c, Start start) {
  if (M == 0 || N == 0) return;
  const bool direct = c.dtype == DTypeOf<T>::value;
  T* out = static_cast<T*>(c.data);
  int64_t ld = c.row_stride;
  if (!direct) {
    ld = N;
    out = thread_scratch<T>().result.get(M * N);
    if (start == Start::kOld)
      for (int64_t m = 0; m < M; ++m)
        for (int64_t n = 0; n < N; ++n)
          out[m * N + n] = static_cast<T>(load_element(c.data, c.dtype, m * c.row_stride + n));
  }
  if (K == 0 && start == Start::kZero) {
    for (int64_t m = 0; m < M; ++m) std::fill(out + m * ld, out + m * ld + N, T(0));
  } else if (K > 0) {
    multiply<T>(M, N, K, a, b, out, ld, start);
  }
  if (!direct) {
    const auto element = static_cast<int64_t>(dtype_size(c.dtype));
    for (int64_t m = 0; m < M; ++m)
      convert(out + m * N, DTypeOf<T>::value,
              static_cast<char*>(c.data) + m * c.row_stride * element, c.dtype, N);
  }
}

template void matmul<float>(int64_t, int64_t, int64_t, const MatrixView&, const MatrixView&,
                            const ResultView&, Start);
template void matmul<double>(int64_t, int64_t, int64_t, const MatrixView&, const MatrixView&,
                             const ResultView&, Start);

}  // namespace hadal::ops::cpu
