// Training attention on CUDA: causal softmax over the keys of each sequence, forward and backward.
//
//   T tokens   S sequences   H heads   Dn, Dr, Dv  nope / rope / value width   n keys of a block of
//   queries
//
// A task is a block of query rows of one head (forward) or a whole head of one sequence (backward),
// done by one thread block with the scores of its rows in scratch memory. Keys after a row's own
// have probability zero, which adds nothing to any sum: a row's bits do not depend on its block.
// In bf16, head widths that mla_attention/ has a kernel for take it; these bodies are its
// reference.
// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"
#include "ops/cuda/detail/matmul.cuh"
#include "ops/cuda/detail/softmax.cuh"
#include "ops/cuda/mla_attention/config.h"

namespace hadal::ops::cuda {
namespace {

constexpr int64_t kQueryRows = 64;

// A tensor [T, H, D] (or [T, D], the same for all heads).
struct Heads {
  View view;
  int64_t head_stride;
  explicit Heads(const Tensor& t) : view(t), head_stride(t.rank() == 3 ? t.stride(1) : 0) {}

  __device__ int64_t offset(int64_t token, int64_t head, int64_t column) const {
    return token * view.stride0 + head * head_stride + column;
  }
  __device__ const void* at(int64_t token, int64_t head, int64_t column) const {
    return advance(view.data, view.dtype, offset(token, head, column));
  }
  // Rows of a head from a token on: element (token, column).
  __device__ Matrix rows(int64_t token, int64_t head, int64_t column) const {
    return {at(token, head, column), view.dtype, view.stride0, 1};
  }
  // The same with columns as the rows of the product.
  __device__ Matrix columns(int64_t token, int64_t head, int64_t column) const {
    return {at(token, head, column), view.dtype, 1, view.stride0};
  }
  __device__ Result result(int64_t token, int64_t head, int64_t column) const {
    return {const_cast<void*>(at(token, head, column)), view.dtype, view.stride0};
  }
};

struct Inputs {
  Heads q, kv, k_pe;
  Array<const int32_t> offsets;
  int64_t S, H, Dn, Dr, Dv, max_len;

  Inputs(const Packed& seq, const Tensor& query, const Tensor& key_value, const Tensor& key_pe,
         int64_t value_width)
      : q(query),
        kv(key_value),
        k_pe(key_pe),
        offsets(seq.offsets),
        S(seq.num_seqs),
        H(query.dim(1)),
        Dn(query.dim(2) - key_pe.dim(1)),
        Dr(key_pe.dim(1)),
        Dv(value_width),
        max_len(seq.max_len) {}
};

template <class R>
__device__ Matrix dense(const R* data, DType dtype, int64_t stride) {
  return {data, dtype, stride, 1};
}
template <class R>
__device__ Matrix transposed(const R* data, DType dtype, int64_t stride) {
  return {data, dtype, 1, stride};
}

// scores [rows, n] = q k^T of query rows [row, row + rows) and keys [0, n) of the sequence.
template <class R>
__device__ void score(const Inputs& in, int64_t begin, int64_t head, int64_t row, int64_t rows,
                      int64_t n, R* scores, DType dtype, TileMemory<R>& memory) {
  const Result out{scores, dtype, n};
  block_matmul(rows, n, in.Dn, in.q.rows(begin + row, head, 0), in.kv.rows(begin, head, 0), out,
               Start::kZero, memory);
  block_matmul(rows, n, in.Dr, in.q.rows(begin + row, head, in.Dn), in.k_pe.rows(begin, 0, 0), out,
               Start::kOld, memory);
}

template <class R>
__global__ void forward_kernel(Inputs in, R scale, DType arithmetic, Heads out, Array<R> lse,
                               R* scratch) {
  __shared__ TileMemory<R> memory;
  R* p = scratch + blockIdx.x * kQueryRows * in.max_len;
  const int64_t blocks_per_seq = (in.max_len + kQueryRows - 1) / kQueryRows;
  for (int64_t task = blockIdx.x; task < in.S * in.H * blocks_per_seq; task += gridDim.x) {
    const int64_t head = task % in.H, s = task / in.H % in.S;
    const int64_t row = task / (in.H * in.S) * kQueryRows;
    const int64_t begin = in.offsets[s], length = in.offsets[s + 1] - begin;
    if (row >= length) continue;
    const int64_t rows = length - row < kQueryRows ? length - row : kQueryRows, n = row + rows;
    score(in, begin, head, row, rows, n, p, arithmetic, memory);
    for_group_rows(rows, [&](int64_t i) {
      const int64_t visible = i < rows ? row + i + 1 : 0;
      R* mine = p + i * n;
      const R log_sum = softmax_row(mine, visible, scale);
      if (i >= rows) return;
      for (int64_t j = visible + group_lane(); j < n; j += kLanes) mine[j] = R(0);
      if (group_lane() == 0) lse.row(head)[begin + row + i] = log_sum;
    });
    __syncthreads();
    block_matmul(rows, in.Dv, n, dense(p, arithmetic, n), in.kv.columns(begin, head, in.Dn),
                 out.result(begin + row, head, 0), Start::kZero, memory);
  }
}

// Scratch of one thread block in backward.
template <class R>
struct BackwardScratch {
  R *p, *dp;   // [kQueryRows, longest]
  R *dk, *dv;  // [longest, Dn]  [longest, Dv]

  __host__ __device__ static int64_t size(int64_t longest, int64_t Dn, int64_t Dv) {
    return 2 * kQueryRows * longest + longest * (Dn + Dv);
  }
  __device__ BackwardScratch(R* memory, int64_t longest, int64_t Dn)
      : p(memory),
        dp(p + kQueryRows * longest),
        dk(dp + kQueryRows * longest),
        dv(dk + longest * Dn) {}
};

struct BackwardHeads {
  Heads out, dout, dq, dkv;
};

// P and dS of query rows [row, row + rows): P again from the saved lse, dP = dout V^T.
template <class R>
__device__ void score_gradients(const Inputs& in, const BackwardHeads& t, int64_t begin,
                                int64_t head, int64_t row, int64_t rows, R scale, DType arithmetic,
                                const R* lse, const BackwardScratch<R>& scratch,
                                TileMemory<R>& memory) {
  const int64_t n = row + rows, first = begin + row;
  score(in, begin, head, row, rows, n, scratch.p, arithmetic, memory);
  block_matmul(rows, n, in.Dv, t.dout.rows(first, head, 0), in.kv.rows(begin, head, in.Dn),
               Result{scratch.dp, arithmetic, n}, Start::kZero, memory);
  for_group_rows(rows, [&](int64_t i) {
    const bool in_use = i < rows;
    const int64_t visible = in_use ? row + i + 1 : 0, token = in_use ? first + i : first;
    const R delta = sum_row<R>(in_use ? in.Dv : 0, [&](int64_t j) {
      return t.out.view.template get<R>(t.out.offset(token, head, j)) *
             t.dout.view.template get<R>(t.dout.offset(token, head, j));
    });
    if (!in_use) return;
    R *p = scratch.p + i * n, *dp = scratch.dp + i * n;
    for (int64_t j = group_lane(); j < n; j += kLanes) {
      const R probability = j < visible ? softmax_exp(p[j] * scale - lse[row + i]) : R(0);
      p[j] = probability;
      dp[j] = j < visible ? probability * (dp[j] - delta) * scale : R(0);
    }
  });
  __syncthreads();
}

// A block for each head of each sequence; dk_pe [H, T, Dr] of each head.
template <class R>
__global__ void backward_kernel(Inputs in, BackwardHeads t, int64_t T, R scale, DType arithmetic,
                                Array<const R> lse, R* dk_pe, R* memory_of_blocks) {
  __shared__ TileMemory<R> memory;
  const int64_t block_size = BackwardScratch<R>::size(in.max_len, in.Dn, in.Dv);
  const BackwardScratch<R> scratch(memory_of_blocks + blockIdx.x * block_size, in.max_len, in.Dn);
  for (int64_t task = blockIdx.x; task < in.S * in.H; task += gridDim.x) {
    const int64_t head = task % in.H, s = task / in.H;
    const int64_t begin = in.offsets[s], length = in.offsets[s + 1] - begin;
    R* head_dk_pe = dk_pe + (head * T + begin) * in.Dr;
    for (int64_t i = threadIdx.x; i < length * in.Dn; i += blockDim.x) scratch.dk[i] = R(0);
    for (int64_t i = threadIdx.x; i < length * in.Dv; i += blockDim.x) scratch.dv[i] = R(0);
    for (int64_t i = threadIdx.x; i < length * in.Dr; i += blockDim.x) head_dk_pe[i] = R(0);
    __syncthreads();
    for (int64_t row = 0; row < length; row += kQueryRows) {
      const int64_t rows = length - row < kQueryRows ? length - row : kQueryRows, n = row + rows;
      const int64_t first = begin + row;
      score_gradients(in, t, begin, head, row, rows, scale, arithmetic, lse.row(head) + begin,
                      scratch, memory);
      // dQ = dS K; dK += dS^T Q; dV += P^T dout.
      const Matrix ds = dense(scratch.dp, arithmetic, n),
                   ds_t = transposed(scratch.dp, arithmetic, n);
      const Matrix p_t = transposed(scratch.p, arithmetic, n);
      block_matmul(rows, in.Dn, n, ds, in.kv.columns(begin, head, 0), t.dq.result(first, head, 0),
                   Start::kZero, memory);
      block_matmul(rows, in.Dr, n, ds, in.k_pe.columns(begin, 0, 0),
                   t.dq.result(first, head, in.Dn), Start::kZero, memory);
      block_matmul(n, in.Dn, rows, ds_t, in.q.columns(first, head, 0),
                   Result{scratch.dk, arithmetic, in.Dn}, Start::kOld, memory);
      block_matmul(n, in.Dr, rows, ds_t, in.q.columns(first, head, in.Dn),
                   Result{head_dk_pe, arithmetic, in.Dr}, Start::kOld, memory);
      block_matmul(n, in.Dv, rows, p_t, t.dout.columns(first, head, 0),
                   Result{scratch.dv, arithmetic, in.Dv}, Start::kOld, memory);
    }
    for (int64_t i = threadIdx.x; i < length * in.Dn; i += blockDim.x)
      t.dkv.view.put(t.dkv.offset(begin + i / in.Dn, head, i % in.Dn), scratch.dk[i]);
    for (int64_t i = threadIdx.x; i < length * in.Dv; i += blockDim.x)
      t.dkv.view.put(t.dkv.offset(begin + i / in.Dv, head, in.Dn + i % in.Dv), scratch.dv[i]);
    __syncthreads();
  }
}

// The shared key's gradient: heads in order.
template <class R>
__global__ void dk_pe_kernel(int64_t T, int64_t H, int64_t Dr, const R* dk_pe, View to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= T * Dr) return;
  R sum = 0;
  for (int64_t h = 0; h < H; ++h) sum += dk_pe[h * T * Dr + i];
  to.put(i / Dr * to.stride0 + i % Dr, sum);
}

// The Hopper kernels copy rows in pieces of 16 bytes.
hadal::cuda::MlaRows rows_of(const Tensor& t) {
  return {t.raw(), t.stride(0), t.rank() == 3 ? t.stride(1) : 0};
}
bool in_pieces(std::initializer_list<Tensor> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const Tensor& t) {
    const hadal::cuda::MlaRows rows = rows_of(t);
    return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.stride % 8 == 0 &&
           rows.head_stride % 8 == 0;
  });
}
bool takes_sm90(const Context& ctx, double scale, const Tensor& q, const Tensor& k_pe,
                const Tensor& out, std::initializer_list<Tensor> tensors) {
  const int64_t Dr = k_pe.dim(1), Dn = q.dim(2) - Dr;
  return q.dtype() == DType::kBF16 && scale > 0.0 &&
         hadal::cuda::mla_attention_sm90_has(Dn, Dr, out.dim(2)) && has_sm90(ctx) &&
         in_pieces({q, k_pe, out}) && in_pieces(tensors);
}

// Scratch that both directions need, and what describes the call.
struct Call {
  Tensor counters;
  Block memory;
  hadal::cuda::MlaAttentionCall args;

  Call(Context& ctx, const Packed& seq, double scale, const Tensor& q)
      : memory(ctx.memory.take_tensor(DType::kI32, {hadal::cuda::MlaAttentionConfig::kNumCounters},
                                      &counters)),
        args{seq.offsets.data<int32_t>(),
             seq.num_tokens,
             static_cast<int>(seq.num_seqs),
             static_cast<int>(seq.max_len),
             static_cast<int>(q.dim(1)),
             static_cast<float>(scale),
             num_sms(ctx),
             counters.data<int32_t>()} {}
};

void forward_sm90(Context& ctx, const Packed& seq, double scale, const Tensor& q, const Tensor& kv,
                  const Tensor& k_pe, const Tensor& out, const Tensor& lse) {
  const Call call(ctx, seq, scale, q);
  hadal::cuda::mla_attention_forward_sm90({call.args, rows_of(q), rows_of(kv), rows_of(k_pe),
                                           rows_of(out), lse.data<float>(), lse.stride(0)},
                                          static_cast<int>(q.dim(2) - k_pe.dim(1)), stream_of(ctx));
}

void backward_sm90(Context& ctx, const Packed& seq, double scale, const MlaAttentionSaved& saved,
                   const Tensor& dout, const MlaAttentionGrads& grads) {
  const Call call(ctx, seq, scale, saved.q);
  const int64_t T = seq.num_tokens, H = saved.q.dim(1), Dr = saved.k_pe.dim(1);
  Tensor stats, head_dk_pe;
  const Block stats_memory = ctx.memory.take_tensor(
      DType::kF32, {hadal::cuda::mla_backward_stats(T, seq.num_seqs, H)}, &stats);
  const Block dk_pe_memory = ctx.memory.take_tensor(DType::kF32, {H, T, Dr}, &head_dk_pe);
  hadal::cuda::mla_attention_backward_sm90(
      {call.args, rows_of(saved.q), rows_of(saved.kv), rows_of(saved.k_pe), rows_of(saved.out),
       rows_of(dout), saved.lse.data<float>(), saved.lse.stride(0), rows_of(grads.dq),
       rows_of(grads.dkv), rows_of(grads.dk_pe), stats.data<float>(), head_dk_pe.data<float>()},
      static_cast<int>(saved.q.dim(2) - Dr), stream_of(ctx));
}

}  // namespace

void mla_attention_forward(Context& ctx, const Packed& seq, double scale, In q, In kv, In k_pe,
                           Out out, Out lse) {
  if (seq.num_tokens == 0) return;
  if (takes_sm90(ctx, scale, q, k_pe, out, {kv})) {
    forward_sm90(ctx, seq, scale, q, kv, k_pe, out, lse);
    return check_launch(ctx, "mla_attention_forward", q);
  }
  const Inputs in(seq, q, kv, k_pe, out.dim(2));
  const int64_t tasks = in.S * in.H * ceil_div(in.max_len, kQueryRows);
  if (tasks == 0) return;
  with_arithmetic({q.dtype()}, [&]<class R>(R) {
    const BlockScratch<R> scratch(ctx, tasks, kQueryRows * in.max_len);
    forward_kernel<R><<<scratch.num_blocks(), kThreads, 0, stream_of(ctx)>>>(
        in, static_cast<R>(scale), DTypeOf<R>::value, Heads(out), Array<R>(lse), scratch.data());
  });
  check_launch(ctx, "mla_attention_forward", q);
}

void mla_attention_backward(Context& ctx, const Packed& seq, double scale,
                            const MlaAttentionSaved& saved, In dout,
                            const MlaAttentionGrads& grads) {
  if (seq.num_tokens == 0) return;
  if (takes_sm90(ctx, scale, saved.q, saved.k_pe, saved.out,
                 {saved.kv, dout, grads.dq, grads.dkv, grads.dk_pe})) {
    backward_sm90(ctx, seq, scale, saved, dout, grads);
    return check_launch(ctx, "mla_attention_backward", saved.q);
  }
  const Inputs in(seq, saved.q, saved.kv, saved.k_pe, saved.out.dim(2));
  const int64_t T = seq.num_tokens, tasks = in.S * in.H;
  if (tasks == 0) return;
  const BackwardHeads t{Heads(saved.out), Heads(dout), Heads(grads.dq), Heads(grads.dkv)};
  with_arithmetic({saved.q.dtype()}, [&]<class R>(R) {
    const BlockScratch<R> scratch(ctx, tasks, BackwardScratch<R>::size(in.max_len, in.Dn, in.Dv));
    Tensor dk_pe;
    const Block memory = ctx.memory.take_tensor(DTypeOf<R>::value, {in.H, T, in.Dr}, &dk_pe);
    backward_kernel<R><<<scratch.num_blocks(), kThreads, 0, stream_of(ctx)>>>(
        in, t, T, static_cast<R>(scale), DTypeOf<R>::value, Array<const R>(saved.lse),
        dk_pe.data<R>(), scratch.data());
    check_launch(ctx, "mla_attention_backward", saved.q);
    if (in.Dr == 0) return;
    dk_pe_kernel<R>
        <<<static_cast<unsigned>(ceil_div(T * in.Dr, kThreads)), kThreads, 0, stream_of(ctx)>>>(
            T, in.H, in.Dr, dk_pe.data<R>(), View(grads.dk_pe));
  });
  check_launch(ctx, "mla_attention_backward", saved.q);
}

}  // namespace hadal::ops::cuda
