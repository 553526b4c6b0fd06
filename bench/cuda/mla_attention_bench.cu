// MLA training attention: checks against an f64 computation, then the table of times.
//
//   mla_attention_bench [--check | --time]
//
// Checked for each case: every element written, distance to f64 of out, lse and all gradients, the
// same bits twice, and the same bits of each sequence alone as in the pack.
// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <numeric>

#include "bench/cuda/harness.cuh"
#include "ops/cuda/mla_attention/config.h"

namespace {

using namespace hadal::bench;
using namespace hadal::cuda;
using bf16 = __nv_bfloat16;

struct Sizes {
  int heads, nope, rope, value;
  int key() const { return nope + rope; }
};

// One problem with its results; outputs are poisoned before each run.
struct Problem {
  Sizes sizes;
  std::vector<int> lengths, offsets{0};
  int64_t T;
  Buffer<bf16> q, kv, k_pe, dout, out, dq, dkv, dk_pe;
  Buffer<float> lse, stats, head_dk_pe;
  Buffer<int> d_offsets, counters;
  float scale;

  Problem(Sizes s, std::vector<int> seq_lengths)
      : sizes(s),
        lengths(std::move(seq_lengths)),
        T(std::accumulate(lengths.begin(), lengths.end(), int64_t{0})),
        q(T * s.heads * s.key()),
        kv(T * s.heads * (s.nope + s.value)),
        k_pe(T * s.rope),
        dout(T * s.heads * s.value),
        out(dout.count()),
        dq(q.count()),
        dkv(kv.count()),
        dk_pe(k_pe.count()),
        lse(T * s.heads),
        stats(mla_backward_stats(T, static_cast<int64_t>(lengths.size()), s.heads)),
        head_dk_pe(T * s.heads * s.rope),
        d_offsets(static_cast<int64_t>(lengths.size()) + 1),
        counters(MlaAttentionConfig::kNumCounters),
        scale(1.0f / std::sqrt(static_cast<float>(s.key()))) {
    for (int n : lengths) offsets.push_back(offsets.back() + n);
    d_offsets.copy_from(offsets);
    fill_gaussian(q, 0.0f, 1.0f, 1);
    fill_gaussian(kv, 0.05f, 1.0f, 2);
    fill_gaussian(k_pe, 0.0f, 1.0f, 3);
    fill_gaussian(dout, 0.02f, 1.0f, 4);
    HADAL_CHECK_CUDA(cudaDeviceSynchronize());
  }
  int num_seqs() const { return static_cast<int>(lengths.size()); }

  // Of all sequences, or of one.
  MlaBackwardArgs args(int seq = -1) const {
    const int first = seq < 0 ? 0 : seq;
    const int64_t begin = seq < 0 ? 0 : offsets[static_cast<size_t>(seq)];
    const auto rows = [&](const Buffer<bf16>& b, int width, bool per_head) {
      const int64_t stride = per_head ? static_cast<int64_t>(sizes.heads) * width : width;
      return MlaRows{b.get() + (seq < 0 ? 0 : begin * stride), stride, per_head ? width : 0};
    };
    MlaBackwardArgs a{};
    a.call = {d_offsets.get() + first,
              T,
              seq < 0 ? num_seqs() : 1,
              seq < 0 ? *std::max_element(lengths.begin(), lengths.end())
                      : lengths[static_cast<size_t>(seq)],
              sizes.heads,
              scale,
              num_sms(),
              counters.get()};
    a.q = rows(q, sizes.key(), true);
    a.kv = rows(kv, sizes.nope + sizes.value, true);
    a.k_pe = rows(k_pe, sizes.rope, false);
    a.out = rows(out, sizes.value, true);
    a.dout = rows(dout, sizes.value, true);
    a.lse = lse.get() + begin;
    a.lse_stride = T;
    a.dq = rows(dq, sizes.key(), true);
    a.dkv = rows(dkv, sizes.nope + sizes.value, true);
    a.dk_pe = rows(dk_pe, sizes.rope, false);
    a.stats = stats.get();
    a.head_dk_pe = head_dk_pe.get();
    return a;
  }
  static MlaForwardArgs forward_of(const MlaBackwardArgs& a) {
    return {a.call, a.q, a.kv, a.k_pe, a.out, const_cast<float*>(a.lse), a.lse_stride};
  }
  void poison() const {
    for (const auto* b : {&out, &dq, &dkv, &dk_pe}) b->fill_bytes(0xFF);
    for (const auto* b : {&lse, &stats, &head_dk_pe}) b->fill_bytes(0xFF);
    counters.fill_bytes(0xFF);
  }
  void run(const MlaBackwardArgs& a) const {
    mla_attention_forward_sm90(forward_of(a), sizes.nope, nullptr);
    mla_attention_backward_sm90(a, sizes.nope, nullptr);
    HADAL_CHECK_CUDA(cudaGetLastError());
    HADAL_CHECK_CUDA(cudaDeviceSynchronize());
  }
};

// The same in f64 from the same bf16 inputs: one block for each (token, head).
struct Reference {
  Sizes s;
  const bf16 *q, *kv, *k_pe, *dout;
  const int* seq_begin;  // [T] first token of a token's sequence
  const int* seq_end;    // [T]
  double scale;
  double *out, *lse, *delta, *dq, *dkv, *head_dk_pe;  // lse, delta [T,H]; head_dk_pe [T,H,Dr]

  __device__ const bf16* q_row(int64_t t, int h) const {
    return q + (t * s.heads + h) * (s.nope + s.rope);
  }
  __device__ const bf16* kv_row(int64_t t, int h) const {
    return kv + (t * s.heads + h) * (s.nope + s.value);
  }
  __device__ const bf16* dout_row(int64_t t, int h) const {
    return dout + (t * s.heads + h) * s.value;
  }
  __device__ static double dot(const bf16* a, const bf16* b, int n) {
    double sum = 0.0;
    for (int i = 0; i < n; ++i)
      sum += static_cast<double>(__bfloat162float(a[i])) * __bfloat162float(b[i]);
    return sum;
  }
  __device__ double score(int64_t query, int64_t key, int h) const {
    return scale * (dot(q_row(query, h), kv_row(key, h), s.nope) +
                    dot(q_row(query, h) + s.nope, k_pe + key * s.rope, s.rope));
  }
  __device__ double dp(int64_t query, int64_t key, int h) const {
    return dot(dout_row(query, h), kv_row(key, h) + s.nope, s.value);
  }
};

// Sum or maximum over a block of 128 threads.
__device__ double block_reduce(double v, bool maximum) {
  __shared__ double parts[4];
  for (int d = 16; d > 0; d /= 2) {
    const double other = __shfl_xor_sync(0xFFFFFFFFu, v, d);
    v = maximum ? fmax(v, other) : v + other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  v = parts[0];
  for (int i = 1; i < 4; ++i) v = maximum ? fmax(v, parts[i]) : v + parts[i];
  return v;
}

__global__ void __launch_bounds__(128) reference_queries_kernel(Reference r) {
  extern __shared__ double p[];
  const int64_t t = blockIdx.x;
  const int h = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const int begin = r.seq_begin[t], n = static_cast<int>(t) - begin + 1;
  const int64_t at = t * r.s.heads + h;
  double top = -INFINITY, sum = 0.0;
  for (int j = thread; j < n; j += 128) top = fmax(top, p[j] = r.score(t, begin + j, h));
  top = block_reduce(top, true);
  for (int j = thread; j < n; j += 128) sum += p[j] = exp(p[j] - top);
  sum = block_reduce(sum, false);
  for (int j = thread; j < n; j += 128) p[j] /= sum;
  __syncthreads();
  double delta = 0.0;
  for (int d = thread; d < r.s.value; d += 128) {
    double value = 0.0;
    for (int j = 0; j < n; ++j)
      value += p[j] * __bfloat162float(r.kv_row(begin + j, h)[r.s.nope + d]);
    r.out[at * r.s.value + d] = value;
    delta += value * __bfloat162float(r.dout_row(t, h)[d]);
  }
  delta = block_reduce(delta, false);
  if (thread == 0) r.lse[at] = top + log(sum), r.delta[at] = delta;
  for (int j = thread; j < n; j += 128) p[j] *= (r.dp(t, begin + j, h) - delta) * r.scale;
  __syncthreads();
  for (int d = thread; d < r.s.nope + r.s.rope; d += 128) {
    double value = 0.0;
    for (int j = 0; j < n; ++j)
      value +=
          p[j] * __bfloat162float(d < r.s.nope ? r.kv_row(begin + j, h)[d]
                                               : r.k_pe[(begin + j) * r.s.rope + d - r.s.nope]);
    r.dq[at * (r.s.nope + r.s.rope) + d] = value;
  }
}

__global__ void __launch_bounds__(128) reference_keys_kernel(Reference r) {
  extern __shared__ double p[];
  const int64_t t = blockIdx.x;
  const int h = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const int n = r.seq_end[t] - static_cast<int>(t);
  double* ds = p + n;
  const int64_t at = t * r.s.heads + h;
  for (int i = thread; i < n; i += 128) {
    const int64_t stat = (t + i) * r.s.heads + h;
    p[i] = exp(r.score(t + i, t, h) - r.lse[stat]);
    ds[i] = p[i] * (r.dp(t + i, t, h) - r.delta[stat]) * r.scale;
  }
  __syncthreads();
  double* dkv = r.dkv + at * (r.s.nope + r.s.value);
  for (int d = thread; d < r.s.nope + r.s.rope + r.s.value; d += 128) {
    double value = 0.0;
    for (int i = 0; i < n; ++i) {
      value += d < r.s.nope + r.s.rope
                   ? ds[i] * __bfloat162float(r.q_row(t + i, h)[d])
                   : p[i] * __bfloat162float(r.dout_row(t + i, h)[d - r.s.nope - r.s.rope]);
    }
    if (d < r.s.nope) {
      dkv[d] = value;
    } else if (d < r.s.nope + r.s.rope) {
      r.head_dk_pe[at * r.s.rope + d - r.s.nope] = value;
    } else {
      dkv[d - r.s.rope] = value;
    }
  }
}

struct Results {
  std::vector<bf16> out, dq, dkv, dk_pe;
  std::vector<float> lse;
  explicit Results(const Problem& p)
      : out(p.out.to_host()),
        dq(p.dq.to_host()),
        dkv(p.dkv.to_host()),
        dk_pe(p.dk_pe.to_host()),
        lse(p.lse.to_host()) {}
};

template <class V>
bool same_bits(const V& a, const V& b, size_t first, size_t count) {
  return std::memcmp(a.data() + first, b.data() + first, count * sizeof(a[0])) == 0;
}

// Relative to the tensor, or to elements of 0.01 where it is smaller: of one token alone dq is
// zero.
double distance(const std::vector<bf16>& got, const std::vector<double>& want) {
  Distance d;
  for (size_t i = 0; i < got.size(); ++i)
    d.add(static_cast<double>(__bfloat162float(got[i])), want[i]);
  d.norm = std::max(d.norm, 1e-4 * static_cast<double>(got.size()));
  return d.relative();
}

int check(const Sizes& s, const std::vector<int>& lengths) {
  const Problem problem(s, lengths);
  const int64_t T = problem.T;
  const int H = s.heads;
  problem.poison();
  problem.run(problem.args());
  const Results first(problem);
  problem.poison();
  problem.run(problem.args());
  const Results again(problem);
  const auto equal = [&](const Results& r, int64_t begin, int64_t count) {
    const auto b = static_cast<size_t>(begin), n = static_cast<size_t>(count);
    const auto heads = static_cast<size_t>(H), key = static_cast<size_t>(s.key()),
               value = static_cast<size_t>(s.value), kv = static_cast<size_t>(s.nope + s.value),
               rope = static_cast<size_t>(s.rope);
    bool same = same_bits(r.out, first.out, b * heads * value, n * heads * value) &&
                same_bits(r.dq, first.dq, b * heads * key, n * heads * key) &&
                same_bits(r.dkv, first.dkv, b * heads * kv, n * heads * kv) &&
                same_bits(r.dk_pe, first.dk_pe, b * rope, n * rope);
    for (int h = 0; h < H; ++h)
      same = same && same_bits(r.lse, first.lse, static_cast<size_t>(h * T + begin), n);
    return same;
  };
  const bool twice = equal(again, 0, T);
  bool alone = true;
  for (int seq = 0; seq < problem.num_seqs() && problem.num_seqs() > 1; ++seq) {
    // The sequence's tokens lie at the front of a call of their own.
    const int begin = problem.offsets[static_cast<size_t>(seq)],
              count = lengths[static_cast<size_t>(seq)];
    problem.poison();
    MlaBackwardArgs a = problem.args(seq);
    const Buffer<int> offsets(2, {0, count});
    a.call.offsets = offsets.get();
    a.call.num_tokens = count;
    problem.run(a);
    alone = alone && equal(Results(problem), begin, count);
  }

  std::vector<int> seq_begin(static_cast<size_t>(T)), seq_end(static_cast<size_t>(T));
  for (size_t i = 0; i < lengths.size(); ++i)
    for (int t = problem.offsets[i]; t < problem.offsets[i + 1]; ++t)
      seq_begin[static_cast<size_t>(t)] = problem.offsets[i],
      seq_end[static_cast<size_t>(t)] = problem.offsets[i + 1];
  const Buffer<int> d_begin(T, seq_begin), d_end(T, seq_end);
  const Buffer<double> out(problem.out.count()), lse(T * H), delta(T * H), dq(problem.q.count()),
      dkv(problem.kv.count()), head_dk_pe(T * H * s.rope);
  const Reference r{s,
                    problem.q.get(),
                    problem.kv.get(),
                    problem.k_pe.get(),
                    problem.dout.get(),
                    d_begin.get(),
                    d_end.get(),
                    static_cast<double>(problem.scale),
                    out.get(),
                    lse.get(),
                    delta.get(),
                    dq.get(),
                    dkv.get(),
                    head_dk_pe.get()};
  const dim3 grid(static_cast<unsigned>(T), static_cast<unsigned>(H));
  const int longest = *std::max_element(lengths.begin(), lengths.end());
  HADAL_CHECK(longest <= 2800, "the reference keeps a row in shared memory: at most 2800 tokens");
  reference_queries_kernel<<<grid, 128, static_cast<size_t>(longest) * 8>>>(r);
  reference_keys_kernel<<<grid, 128, static_cast<size_t>(longest) * 16>>>(r);
  HADAL_CHECK_CUDA(cudaDeviceSynchronize());
  const auto parts = head_dk_pe.to_host();
  std::vector<double> dk_pe(static_cast<size_t>(T * s.rope));
  for (size_t t = 0; t < static_cast<size_t>(T); ++t)
    for (size_t i = 0; i < static_cast<size_t>(H * s.rope); ++i)
      dk_pe[t * static_cast<size_t>(s.rope) + i % static_cast<size_t>(s.rope)] +=
          parts[t * static_cast<size_t>(H * s.rope) + i];
  const auto want_lse = lse.to_host();
  double lse_error = 0.0;
  for (int64_t t = 0; t < T; ++t)
    for (int h = 0; h < H; ++h) {
      const double got = static_cast<double>(first.lse[static_cast<size_t>(h * T + t)]);
      const double error = std::abs(got - want_lse[static_cast<size_t>(t * H + h)]);
      lse_error = std::isfinite(got) ? std::max(lse_error, error) : INFINITY;
    }
  const double d[4] = {distance(first.out, out.to_host()), distance(first.dq, dq.to_host()),
                       distance(first.dkv, dkv.to_host()), distance(first.dk_pe, dk_pe)};
  // P, dS and the results are rounded to bf16, delta comes from a rounded out: 2 units of roundoff.
  bool good = twice && alone && lse_error < 1e-4;
  for (double v : d) good = good && v < 2.0 * 0x1p-8;
  std::printf(
      "check %3d + %2d / %3d heads %2d seqs %2d longest %4d: lse %.1e out %.2e dq %.2e dkv %.2e "
      "dk_pe %.2e twice %s alone %s %s\n",
      s.nope, s.rope, s.value, H, problem.num_seqs(), longest, lse_error, d[0], d[1], d[2], d[3],
      twice ? "same" : "DIFFERS", alone ? "same" : "DIFFERS", good ? "ok" : "FAILED");
  std::fflush(stdout);
  return !good;
}

struct Row {
  Sizes sizes;
  int num_seqs, length;
  double forward_peer, backward_peer;  // TFLOPS of cuDNN 9.19 on a card of this kind; 0: none
};

void time_row(const Row& row) {
  const Problem problem(row.sizes, std::vector<int>(static_cast<size_t>(row.num_seqs), row.length));
  const MlaBackwardArgs args = problem.args();
  problem.run(args);
  // Counted as is usual: half of all pairs, whatever the diagonal.
  const double pairs = 0.5 * row.num_seqs * row.sizes.heads * row.length * row.length;
  const double key = row.sizes.key(), value = row.sizes.value;
  const double flops[2] = {2.0 * pairs * (key + value), 2.0 * pairs * (3 * key + 2 * value)};
  const int calls = std::max(2, static_cast<int>(32e9 * 1300 / flops[0]));
  for (int pass = 0; pass < 2; ++pass) {
    const double us = time_graph(std::min(calls, 32), 10, [&](int, cudaStream_t stream) {
      if (pass == 0) {
        mla_attention_forward_sm90(Problem::forward_of(args), row.sizes.nope, stream);
      } else {
        mla_attention_backward_sm90(args, row.sizes.nope, stream);
      }
    });
    const double rate = flops[pass] / us * 1e-6;
    const double peer = pass == 0 ? row.forward_peer : row.backward_peer;
    std::printf("| %s | %d + %d / %d | %d | %d x %d | %.0f | %.0f | %.0f%% |",
                pass == 0 ? "forward" : "backward", row.sizes.nope, row.sizes.rope, row.sizes.value,
                row.sizes.heads, row.num_seqs, row.length, us, rate, 100.0 * rate / 989.4);
    if (peer > 0.0) {
      std::printf(" %.0f | %.2f |\n", peer, rate / peer);
    } else {
      std::printf(" - | - |\n");
    }
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const bool only_check = argc > 1 && std::strcmp(argv[1], "--check") == 0;
  const bool only_time = argc > 1 && std::strcmp(argv[1], "--time") == 0;
  print_device();
  int failures = 0;
  if (!only_time) {
    const Sizes v3{3, 128, 64, 128};
    failures += check(v3, {1});
    failures += check(v3, {64});
    failures += check(v3, {65});
    failures += check(v3, {128, 1, 127});
    failures += check(v3, {3, 129, 1, 300, 64, 191, 77});
    failures += check(v3, {2048});
    failures += check({11, 128, 64, 128}, {513, 40});
    failures += check({5, 64, 32, 64}, {100, 257, 1});
    failures += check({6, 32, 16, 32}, {256, 256, 31, 700});
    std::printf(failures ? "%d CHECKS FAILED\n" : "all checks passed\n", failures);
  }
  if (!only_check) {
    std::printf(
        "| pass | head | heads | sequences | us | TFLOPS | of 989 | cuDNN then | ours / cuDNN "
        "|\n|---|---|---|---|---|---|---|---|---|\n");
    const Row rows[] = {
        {{128, 128, 64, 128}, 1, 4096, 580, 430}, {{128, 128, 64, 128}, 1, 8192, 628, 457},
        {{16, 128, 64, 128}, 2, 4096, 491, 380},  {{128, 128, 64, 128}, 8, 512, 0, 0},
        {{16, 128, 64, 128}, 1, 4096, 0, 0},      {{6, 32, 16, 32}, 16, 256, 0, 0},
    };
    for (const Row& row : rows) time_row(row);
  }
  return failures != 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 2;
}
