// BF16 matrix products: times beside cuBLASLt in the same run; few rows against the copy rate.
//
//   bf16_gemm_bench [--quick]
//
//   E experts   T rows   N output width   K inner width
//
// Checked against a plain kernel in f32 on sampled rows; tests/ops_cuda checks more.
// SPDX-License-Identifier: Apache-2.0
#include <cublasLt.h>

#include <cstring>
#include <numeric>

#include "bench/cuda/harness.cuh"
#include "ops/cuda/bf16_gemm/config.h"
#include "ops/cuda/gemv/config.h"

namespace {

using namespace hadal::bench;
using hadal::cuda::Bf16GemmArgs;
using hadal::cuda::Bf16Layout;
using hadal::cuda::Bf16Work;
using hadal::cuda::GemvArgs;
using hadal::cuda::GemvWeight;
using bf16 = __nv_bfloat16;

void check_cublas(cublasStatus_t status, const char* call) {
  HADAL_CHECK(status == CUBLAS_STATUS_SUCCESS, call, " failed with ", static_cast<int>(status));
}
#define CHECK_CUBLAS(call) check_cublas((call), #call)

// Row-major c [m,n] = op(a) op(b)^T with the library: column-major c^T [n,m] = op(b) op(a)^T.
class Library {
 public:
  Library(Bf16Layout layout, int m, int n, int k, bool f32_accumulate)
      : workspace_(64 << 20), beta_(f32_accumulate ? 1.0f : 0.0f) {
    CHECK_CUBLAS(cublasLtCreate(&handle_));
    CHECK_CUBLAS(cublasLtMatmulDescCreate(&op_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t ta = layout == Bf16Layout::kNt ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t tb = layout == Bf16Layout::kTn ? CUBLAS_OP_T : CUBLAS_OP_N;
    set(CUBLASLT_MATMUL_DESC_TRANSA, ta);
    set(CUBLASLT_MATMUL_DESC_TRANSB, tb);
    const auto layout_of = [](cublasLtMatrixLayout_t* to, cudaDataType type, int rows, int cols) {
      CHECK_CUBLAS(cublasLtMatrixLayoutCreate(to, type, static_cast<uint64_t>(rows),
                                              static_cast<uint64_t>(cols), rows));
    };
    // b: [n,k] rows of k, or [k,n]; a: [m,k], or [k,m].
    if (layout == Bf16Layout::kNt)
      layout_of(&b_, CUDA_R_16BF, k, n);
    else
      layout_of(&b_, CUDA_R_16BF, n, k);
    if (layout == Bf16Layout::kTn)
      layout_of(&a_, CUDA_R_16BF, m, k);
    else
      layout_of(&a_, CUDA_R_16BF, k, m);
    layout_of(&c_, f32_accumulate ? CUDA_R_32F : CUDA_R_16BF, n, m);
    cublasLtMatmulPreference_t preference;
    CHECK_CUBLAS(cublasLtMatmulPreferenceCreate(&preference));
    const size_t bytes = static_cast<size_t>(workspace_.count());
    CHECK_CUBLAS(cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
    CHECK_CUBLAS(cublasLtMatmulAlgoGetHeuristic(handle_, op_, b_, a_, c_, c_, preference, 3, found_,
                                                &count_));
    cublasLtMatmulPreferenceDestroy(preference);
  }
  int count() const { return count_; }
  void run(int which, const void* a, const void* b, void* c, cudaStream_t stream) {
    const float alpha = 1.0f;
    CHECK_CUBLAS(cublasLtMatmul(handle_, op_, &alpha, b, b_, a, a_, &beta_, c, c_, c, c_,
                                &found_[which].algo, workspace_.get(),
                                static_cast<size_t>(workspace_.count()), stream));
  }

 private:
  template <class T>
  void set(cublasLtMatmulDescAttributes_t name, const T& value) {
    CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(op_, name, &value, sizeof value));
  }
  Buffer<uint8_t> workspace_;
  float beta_;
  cublasLtHandle_t handle_;
  cublasLtMatmulDesc_t op_;
  cublasLtMatrixLayout_t a_, b_, c_;
  cublasLtMatmulHeuristicResult_t found_[3];
  int count_ = 0;
};

const char* name_of(Bf16Layout layout) {
  return layout == Bf16Layout::kNt ? "nt" : layout == Bf16Layout::kNn ? "nn" : "tn";
}

struct Shape {
  int experts, rows, n, k;
};

// A product over one expert (dense) or several of equal rows, beside the library's call an expert.
void bench(Bf16Layout layout, const Shape& s, int replays) {
  const bool tn = layout == Bf16Layout::kTn;
  const int pages = (s.rows + 127) / 128 * s.experts;
  const int64_t a_size = static_cast<int64_t>(s.experts) * s.rows * (tn ? s.n : s.k);
  const int64_t b_size = tn ? static_cast<int64_t>(s.experts) * s.rows * s.k
                            : static_cast<int64_t>(s.experts) * s.n * s.k;
  const int64_t c_size = tn ? static_cast<int64_t>(s.experts) * s.n * s.k
                            : static_cast<int64_t>(s.experts) * s.rows * s.n;
  const int sets =
      static_cast<int>(std::max<int64_t>(1, (int64_t{160} << 20) / ((a_size + b_size) * 2)));
  Buffer<bf16> a(a_size * sets), b(b_size * sets);
  Buffer<float> c(c_size);
  fill_gaussian(a, 0.0f, 1.0f, 1);
  fill_gaussian(b, 0.0f, 1.0f, 2);
  c.fill_bytes(0);
  std::vector<int> counts(static_cast<size_t>(s.experts), s.rows), begin(1, 0);
  for (int e = 0; e < s.experts; ++e) begin.push_back(begin.back() + (s.rows + 127) / 128);
  const Buffer<int> d_counts(s.experts, counts), d_begin(s.experts + 1, begin);
  const bool grouped = s.experts > 1;
  const auto args_of = [&](int set) {
    Bf16GemmArgs g{};
    const int64_t rows_a = grouped ? 128 : s.rows;
    g.a = {a.get() + set * a_size, rows_a,
           tn ? s.n : s.k,         tn ? s.n : s.k,
           grouped ? pages : 1,    128 * static_cast<int64_t>(tn ? s.n : s.k)};
    if (tn)
      g.b = {b.get() + set * b_size,         rows_a, s.k, s.k, grouped ? pages : 1,
             128 * static_cast<int64_t>(s.k)};
    else if (layout == Bf16Layout::kNt)
      g.b = {b.get() + set * b_size, s.n, s.k, s.k, s.experts, static_cast<int64_t>(s.n) * s.k};
    else
      g.b = {b.get() + set * b_size, s.k, s.n, s.n, s.experts, static_cast<int64_t>(s.n) * s.k};
    g.c = c.get();
    g.m = tn ? s.n : s.rows;
    g.n = tn ? s.k : s.n;
    g.k = tn ? s.rows : s.k;
    g.c_row_stride = g.n;
    g.c_batch_stride = tn ? static_cast<int64_t>(s.n) * s.k : 128 * static_cast<int64_t>(s.n);
    g.batches = s.experts;
    g.c_is_f32 = tn;
    g.accumulate = tn;
    g.counts = d_counts.get();
    g.page_begin = d_begin.get();
    g.places = pages;
    g.c_pages = pages;
    g.num_sms = num_sms();
    return g;
  };
  const Bf16Work work = !grouped ? Bf16Work::kBatch : tn ? Bf16Work::kExpertRows : Bf16Work::kPages;
  const double ours = time_graph(8, replays, [&](int i, cudaStream_t stream) {
    bf16_gemm_sm90(layout, work, args_of(i % sets), stream);
  });
  // One expert's product at a time.
  Library library(layout, tn ? s.n : s.rows, tn ? s.k : s.n, tn ? s.rows : s.k, tn);
  double best = INFINITY;
  for (int which = 0; which < library.count(); ++which) {
    best = std::min(best, time_graph(8, replays, [&](int i, cudaStream_t stream) {
                      const int set = i % sets;
                      for (int e = 0; e < s.experts; ++e)
                        library.run(which, a.get() + set * a_size + e * (a_size / s.experts),
                                    b.get() + set * b_size + e * (b_size / s.experts),
                                    tn ? static_cast<void*>(c.get() + e * (c_size / s.experts))
                                       : static_cast<void*>(reinterpret_cast<bf16*>(c.get()) +
                                                            e * (c_size / s.experts)),
                                    stream);
                    }));
  }
  const double flops = 2.0 * s.experts * s.rows * s.n * s.k;
  std::printf("%s %2d x %5d  N %5d  K %5d  %8.1f us  %6.1f TFLOPS  cuBLASLt %6.1f  ratio %.2f\n",
              name_of(layout), s.experts, s.rows, s.n, s.k, ours, flops / ours * 1e-6,
              flops / best * 1e-6, best / ours);
  std::fflush(stdout);
}

void bench_gemv(GemvWeight type, int m, int n, int k, double copy_rate, int replays) {
  const int bytes = type == GemvWeight::kBF16 ? 2 : 1;
  const int64_t size = static_cast<int64_t>(n) * k;
  const int sets = static_cast<int>(std::max<int64_t>(1, (int64_t{200} << 20) / (size * bytes)));
  Buffer<bf16> a(static_cast<int64_t>(m) * k), c(static_cast<int64_t>(m) * n);
  Buffer<uint8_t> w(size * bytes * sets);
  Buffer<float> scale(static_cast<int64_t>((n + 127) / 128) * ((k + 127) / 128));
  fill_gaussian(a, 0.0f, 1.0f, 1);
  fill_uniform(w, 0.0f, 60.0f, 2);
  fill_uniform(scale, 0.5f, 1.5f, 3);
  const double us = time_graph(32, replays, [&](int i, cudaStream_t stream) {
    GemvArgs g{};
    g.type = type;
    g.a = a.get();
    g.a_row_stride = k;
    g.w = w.get() + i % sets * size * bytes;
    g.w_row_stride = k;
    g.scale = scale.get();
    g.scale_row_stride = (k + 127) / 128;
    g.c = c.get();
    g.c_row_stride = n;
    g.m = m;
    g.n = n;
    g.k = k;
    g.batches = 1;
    gemv_nt(g, stream);
  });
  const double rate = static_cast<double>(size * bytes) / us * 1e-6;
  std::printf("gemv %s  M %d  N %6d  K %5d  %7.2f us  %5.2f TB/s  %3.0f%% of copy\n",
              bytes == 2 ? "bf16" : "e4m3", m, n, k, us, rate, 100.0 * rate / copy_rate);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
  const int replays = quick ? 5 : 20;
  print_device();
  const double copy_rate = copy_ceiling();
  std::printf("copy %.2f TB/s\n", copy_rate);
  for (const Shape& s : std::initializer_list<Shape>{{1, 8192, 8192, 8192},
                                                     {1, 4096, 2112, 7168},
                                                     {1, 4096, 7168, 16384},
                                                     {1, 4096, 4096, 7168},
                                                     {1, 4096, 7168, 2048},
                                                     {1, 16384, 2048, 1024},
                                                     {1, 16384, 512, 1024},
                                                     {8, 4096, 4096, 7168},
                                                     {32, 1024, 7168, 2048},
                                                     {64, 1536, 512, 1024}})
    for (Bf16Layout layout : {Bf16Layout::kNt, Bf16Layout::kNn, Bf16Layout::kTn})
      bench(layout, s, replays);
  for (GemvWeight type : {GemvWeight::kBF16, GemvWeight::kE4M3})
    for (int m : {1, 4})
      for (const auto& [n, k] : std::initializer_list<std::pair<int, int>>{{2048, 2048},
                                                                           {3072, 2048},
                                                                           {576, 2048},
                                                                           {10944, 2048},
                                                                           {8448, 2048},
                                                                           {102400, 2048}})
        bench_gemv(type, m, n, k, copy_rate, replays);
  return 0;
}
