// cuBLASLt as a peer: y = x w^T in BF16, or in e4m3 with scales.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cublasLt.h>

#include "bench/cuda/harness.cuh"

namespace hadal::bench {

inline void check_cublas(cublasStatus_t status, const char* call) {
  HADAL_CHECK(status == CUBLAS_STATUS_SUCCESS, call, " failed with status ",
              static_cast<int>(status));
}
#define CHECK_CUBLAS(call) check_cublas((call), #call)

// cuBLASLt with 1 x 128 scales of x and 128 x 128 scales of w (block) or one scale each (tensor).
class Peer {
 public:
  enum class Mode { kBlock, kTensor, kBf16, kTensorFast };  // fast: sums stay in the unit
  Peer(Mode mode, int m, int n, int k, cudaDataType_t out)
      : m_(m), n_(n), k_(k), space_(64 << 20), one_(1, {1.0f}) {
    CHECK_CUBLAS(cublasLtCreate(&handle_));
    CHECK_CUBLAS(cublasLtMatmulDescCreate(&op_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t t = CUBLAS_OP_T;
    set(CUBLASLT_MATMUL_DESC_TRANSA, t);
    if (mode == Mode::kBlock) {
      set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
    }
    if (mode == Mode::kTensorFast) set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{1});
    const cudaDataType_t in = mode == Mode::kBf16 ? CUDA_R_16BF : CUDA_R_8F_E4M3;
    if (mode != Mode::kBf16) {
      const void* some = one_.get();
      set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, some);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, some);
    }
    CHECK_CUBLAS(
        cublasLtMatrixLayoutCreate(&w_, in, static_cast<uint64_t>(k), static_cast<uint64_t>(n), k));
    CHECK_CUBLAS(
        cublasLtMatrixLayoutCreate(&x_, in, static_cast<uint64_t>(k), static_cast<uint64_t>(m), k));
    CHECK_CUBLAS(cublasLtMatrixLayoutCreate(&y_, out, static_cast<uint64_t>(n),
                                            static_cast<uint64_t>(m), n));
    cublasLtMatmulPreference_t preference;
    CHECK_CUBLAS(cublasLtMatmulPreferenceCreate(&preference));
    const size_t bytes = static_cast<size_t>(space_.count());
    CHECK_CUBLAS(cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
    CHECK_CUBLAS(cublasLtMatmulAlgoGetHeuristic(handle_, op_, w_, x_, y_, y_, preference, 8, found_,
                                                &num_found_));
    cublasLtMatmulPreferenceDestroy(preference);
  }
  int algorithms() const { return num_found_; }
  void run(int algorithm, const void* x, const float* scale_x, const void* w, const float* scale_w,
           void* y, cudaStream_t stream) {
    const float alpha = 1.0f, beta = 0.0f;
    if (scale_x != nullptr) set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scale_x);
    if (scale_w != nullptr) set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scale_w);
    CHECK_CUBLAS(cublasLtMatmul(handle_, op_, &alpha, w, w_, x, x_, &beta, y, y_, y, y_,
                                &found_[algorithm].algo, space_.get(),
                                static_cast<size_t>(space_.count()), stream));
  }

 private:
  template <class T>
  void set(cublasLtMatmulDescAttributes_t name, const T& value) {
    CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(op_, name, &value, sizeof value));
  }
  int m_, n_, k_, num_found_ = 0;
  Buffer<uint8_t> space_;
  Buffer<float> one_;
  cublasLtHandle_t handle_;
  cublasLtMatmulDesc_t op_;
  cublasLtMatrixLayout_t w_, x_, y_;
  cublasLtMatmulHeuristicResult_t found_[8];
};

}  // namespace hadal::bench
