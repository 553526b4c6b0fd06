// Training attention: causal softmax over the keys of each sequence, forward and backward.
//
//   T tokens   H heads   Dn, Dr, Dv  nope / rope / value width   n keys of a block of queries
//
// A task is a block of query rows of one head (forward) or a whole head of one sequence (backward).
// Scores come as one chain over Dn, then Dr; keys after a row's own have probability zero, which
// adds nothing to any sum. So a row's bits do not depend on the block, the batch or the thread.
// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/cpu/matmul.h"
#include "ops/cpu/softmax.h"

namespace hadal::ops::cpu {
namespace {

constexpr int64_t kQueryRows = 64;

const char* at(const Tensor& t, int64_t token, int64_t head, int64_t column) {
  const int64_t index = token * t.stride(0) + head * t.stride(1) + column;
  return static_cast<const char*>(t.raw()) + index * static_cast<int64_t>(dtype_size(t.dtype()));
}

// Rows of a head from a token on: element (token, column).
MatrixView rows_of(const Tensor& t, int64_t token, int64_t head, int64_t column) {
  return {at(t, token, head, column), t.dtype(), t.stride(0), 1};
}
// The same with columns as the rows of the product.
MatrixView columns_of(const Tensor& t, int64_t token, int64_t head, int64_t column) {
  return {at(t, token, head, column), t.dtype(), 1, t.stride(0)};
}
ResultView result_of(const Tensor& t, int64_t token, int64_t head, int64_t column) {
  return {const_cast<char*>(at(t, token, head, column)), t.dtype(), t.stride(0)};
}

// A [T, D] tensor as [T, 1, D].
Tensor as_heads(const Tensor& t) {
  return Tensor(t.raw(), t.dtype(), {t.dim(0), 1, t.dim(1)}, {t.stride(0), t.dim(1), 1, 0});
}

// One head of one sequence: the widths and where it begins.
struct Head {
  int64_t begin, head, Dn, Dr, Dv;
};

// scores [rows, n] = q k^T of query rows [row, row + rows) and keys [0, n) of the sequence.
template <class T>
void score(const Head& h, const Tensor& q, const Tensor& kv, const Tensor& k_pe, int64_t row,
           int64_t rows, int64_t n, T* scores) {
  const ResultView out{scores, DTypeOf<T>::value, n};
  matmul<T>(rows, n, h.Dn, rows_of(q, h.begin + row, h.head, 0), rows_of(kv, h.begin, h.head, 0),
            out, Start::kZero);
  matmul<T>(rows, n, h.Dr, rows_of(q, h.begin + row, h.head, h.Dn), rows_of(k_pe, h.begin, 0, 0),
            out, Start::kOld);
}

template <class T>
void forward(Context& ctx, const Packed& seq, double scale, const Tensor& q, const Tensor& kv,
             const Tensor& k_pe, const Tensor& out, const Tensor& lse) {
  const int64_t H = q.dim(1), Dr = k_pe.dim(2), Dn = q.dim(2) - Dr, Dv = out.dim(2);
  struct Task {
    int64_t begin, row, rows;
  };
  std::vector<Task> tasks;
  const auto* offsets = seq.offsets.data<int32_t>();
  int64_t longest = 0;
  for (int64_t s = 0; s < seq.num_seqs; ++s) {
    const int64_t length = offsets[s + 1] - offsets[s];
    longest = std::max(longest, length);
    for (int64_t row = 0; row < length; row += kQueryRows)
      tasks.push_back({offsets[s], row, std::min(kQueryRows, length - row)});
  }
  const int64_t scratch = kQueryRows * longest;
  Tensor scores;
  const Block memory =
      ctx.memory.take_tensor(DTypeOf<T>::value, {ctx.threads.num_threads(), scratch}, &scores);
  const SoftmaxKernel<T>& kernel = softmax_kernel<T>();
  const auto num_blocks = static_cast<int64_t>(tasks.size());
  ctx.threads.parallel_for(num_blocks * H, [&](int64_t task, int thread) {
    const Task& block = tasks[static_cast<size_t>(task / H)];
    const Head head{block.begin, task % H, Dn, Dr, Dv};
    const int64_t n = block.row + block.rows;
    T* p = scores.data<T>() + thread * scratch;
    score<T>(head, q, kv, k_pe, block.row, block.rows, n, p);
    T* row_lse = lse.data<T>() + head.head * lse.stride(0) + block.begin + block.row;
    for (int64_t i = 0; i < block.rows; ++i) {
      T* row = p + i * n;
      const int64_t visible = block.row + i + 1;
      const T top = kernel.max(row, visible) * static_cast<T>(scale);
      const T sum = kernel.exp_sum(row, visible, static_cast<T>(scale), top);
      kernel.scale(row, visible, T(1) / sum);
      std::fill(row + visible, row + n, T(0));
      row_lse[i] = top + std::log(sum);
    }
    matmul<T>(block.rows, Dv, n, {p, DTypeOf<T>::value, n, 1},
              columns_of(kv, block.begin, head.head, Dn),
              result_of(out, block.begin + block.row, head.head, 0), Start::kZero);
  });
}

// Scratch of one thread in backward.
template <class T>
struct BackwardScratch {
  T *p, *dp;      // [kQueryRows, longest]
  T *dk, *dv;     // [longest, Dn]  [longest, Dv]
  T *out, *dout;  // [Dv]
  static int64_t size(int64_t longest, int64_t Dn, int64_t Dv) {
    return 2 * kQueryRows * longest + longest * (Dn + Dv) + 2 * Dv;
  }
  BackwardScratch(T* memory, int64_t longest, int64_t Dn, int64_t Dv)
      : p(memory),
        dp(p + kQueryRows * longest),
        dk(dp + kQueryRows * longest),
        dv(dk + longest * Dn),
        out(dv + longest * Dv),
        dout(out + Dv) {}
};

// One head of one sequence of `length` tokens; dk_pe [length, Dr] of this head is overwritten.
template <class T>
void backward_head(const Head& h, int64_t length, double scale, const MlaAttentionSaved& s,
                   const Tensor& k_pe, const Tensor& dout, const MlaAttentionGrads& g, T* dk_pe,
                   const BackwardScratch<T>& scratch) {
  constexpr DType kT = DTypeOf<T>::value;
  const SoftmaxKernel<T>& kernel = softmax_kernel<T>();
  const T* lse = s.lse.data<T>() + h.head * s.lse.stride(0) + h.begin;
  for (int64_t row = 0; row < length; row += kQueryRows) {
    const int64_t rows = std::min(kQueryRows, length - row), n = row + rows, first = h.begin + row;
    // P again from the saved lse; dP = dout V^T.
    score<T>(h, s.q, s.kv, k_pe, row, rows, n, scratch.p);
    matmul<T>(rows, n, h.Dv, rows_of(dout, first, h.head, 0), rows_of(s.kv, h.begin, h.head, h.Dn),
              {scratch.dp, kT, n}, Start::kZero);
    for (int64_t i = 0; i < rows; ++i) {
      T *p = scratch.p + i * n, *dp = scratch.dp + i * n;
      const int64_t visible = row + i + 1;
      convert(at(s.out, first + i, h.head, 0), s.out.dtype(), scratch.out, kT, h.Dv);
      convert(at(dout, first + i, h.head, 0), dout.dtype(), scratch.dout, kT, h.Dv);
      const T delta = kernel.dot(scratch.out, scratch.dout, h.Dv);
      kernel.exp(p, visible, static_cast<T>(scale), lse[row + i]);
      std::fill(p + visible, p + n, T(0));
      std::fill(dp + visible, dp + n, T(0));
      kernel.softmax_backward(p, dp, visible, delta, static_cast<T>(scale));
    }
    // dQ = dS K; dK += dS^T Q; dV += P^T dout. The new keys start from zero.
    const MatrixView ds{scratch.dp, kT, n, 1}, ds_t{scratch.dp, kT, 1, n}, p_t{scratch.p, kT, 1, n};
    matmul<T>(rows, h.Dn, n, ds, columns_of(s.kv, h.begin, h.head, 0),
              result_of(g.dq, first, h.head, 0), Start::kZero);
    matmul<T>(rows, h.Dr, n, ds, columns_of(k_pe, h.begin, 0, 0),
              result_of(g.dq, first, h.head, h.Dn), Start::kZero);
    std::fill(scratch.dk + row * h.Dn, scratch.dk + n * h.Dn, T(0));
    std::fill(scratch.dv + row * h.Dv, scratch.dv + n * h.Dv, T(0));
    std::fill(dk_pe + row * h.Dr, dk_pe + n * h.Dr, T(0));
    matmul<T>(n, h.Dn, rows, ds_t, columns_of(s.q, first, h.head, 0), {scratch.dk, kT, h.Dn},
              Start::kOld);
    matmul<T>(n, h.Dr, rows, ds_t, columns_of(s.q, first, h.head, h.Dn), {dk_pe, kT, h.Dr},
              Start::kOld);
    matmul<T>(n, h.Dv, rows, p_t, columns_of(dout, first, h.head, 0), {scratch.dv, kT, h.Dv},
              Start::kOld);
  }
  for (int64_t i = 0; i < length; ++i) {
    const ResultView dk = result_of(g.dkv, h.begin + i, h.head, 0);
    const ResultView dv = result_of(g.dkv, h.begin + i, h.head, h.Dn);
    convert(scratch.dk + i * h.Dn, kT, dk.data, dk.dtype, h.Dn);
    convert(scratch.dv + i * h.Dv, kT, dv.data, dv.dtype, h.Dv);
  }
}

template <class T>
void backward(Context& ctx, const Packed& seq, double scale, const MlaAttentionSaved& s,
              const Tensor& dout, const MlaAttentionGrads& g) {
  const Tensor k_pe = as_heads(s.k_pe);
  const int64_t tokens = seq.num_tokens, H = s.q.dim(1), Dr = k_pe.dim(2), Dn = s.q.dim(2) - Dr;
  const int64_t Dv = s.out.dim(2);
  const auto* offsets = seq.offsets.data<int32_t>();
  int64_t longest = 0;
  for (int64_t i = 0; i < seq.num_seqs; ++i)
    longest = std::max<int64_t>(longest, offsets[i + 1] - offsets[i]);
  const int64_t scratch_size = BackwardScratch<T>::size(longest, Dn, Dv);
  Tensor scratch, dk_pe;
  const Block scratch_memory = ctx.memory.take_tensor(
      DTypeOf<T>::value, {ctx.threads.num_threads(), scratch_size}, &scratch);
  const Block dk_pe_memory = ctx.memory.take_tensor(DTypeOf<T>::value, {H, tokens, Dr}, &dk_pe);
  ctx.threads.parallel_for(seq.num_seqs * H, [&](int64_t task, int thread) {
    const int64_t i = task / H, h = task % H;
    const BackwardScratch<T> mine(scratch.data<T>() + thread * scratch_size, longest, Dn, Dv);
    backward_head<T>({offsets[i], h, Dn, Dr, Dv}, offsets[i + 1] - offsets[i], scale, s, k_pe, dout,
                     g, dk_pe.data<T>() + (h * tokens + offsets[i]) * Dr, mine);
  });
  // The shared key's gradient: heads in order.
  ctx.threads.parallel_for((tokens + 63) / 64, [&](int64_t task, int) {
    std::vector<T> sum(static_cast<size_t>(Dr));
    for (int64_t t = task * 64; t < std::min(tokens, task * 64 + 64); ++t) {
      std::fill(sum.begin(), sum.end(), T(0));
      for (int64_t h = 0; h < H; ++h)
        for (int64_t j = 0; j < Dr; ++j)
          sum[static_cast<size_t>(j)] += dk_pe.data<T>()[(h * tokens + t) * Dr + j];
      const ResultView to = result_of(as_heads(g.dk_pe), t, 0, 0);
      convert(sum.data(), DTypeOf<T>::value, to.data, to.dtype, Dr);
    }
  });
}

}  // namespace

void mla_attention_forward(Context& ctx, const Packed& seq, double scale, In q, In kv, In k_pe,
                           Out out, Out lse) {
  if (q.dtype() == DType::kF64)
    forward<double>(ctx, seq, scale, q, kv, as_heads(k_pe), out, lse);
  else
    forward<float>(ctx, seq, scale, q, kv, as_heads(k_pe), out, lse);
}

void mla_attention_backward(Context& ctx, const Packed& seq, double scale,
                            const MlaAttentionSaved& saved, In dout,
                            const MlaAttentionGrads& grads) {
  if (saved.q.dtype() == DType::kF64)
    backward<double>(ctx, seq, scale, saved, dout, grads);
  else
    backward<float>(ctx, seq, scale, saved, dout, grads);
}

}  // namespace hadal::ops::cpu
