// Absorbed attention over the paged latent cache, and the cache write.
//
//   T tokens   H heads   W = R + Dr cached width   R latent width   n positions
//
// Per (token, head): scores of positions 0 .. p, each one chain over W; softmax over all of them;
// the result as one chain over positions in order. Pages that all tokens of a block see are
// multiplied for the block at once, the rest token by token: the same chains, so the same bits
// however tokens come.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "ops/attention.h"
#include "ops/cpu/matmul.h"
#include "ops/cpu/softmax.h"

namespace hadal::ops::cpu {
namespace {

constexpr int64_t kRowsWanted = 96;  // (token, head) rows of a task

struct Task {
  int64_t seq, token, count;
};

std::vector<Task> tasks_of(const Packed& seq, int64_t H) {
  const int64_t tokens = std::max<int64_t>(1, kRowsWanted / std::max<int64_t>(1, H));
  const auto* offsets = seq.offsets.data<int32_t>();
  std::vector<Task> tasks;
  for (int64_t s = 0; s < seq.num_seqs; ++s)
    for (int64_t t = offsets[s]; t < offsets[s + 1]; t += tokens)
      tasks.push_back({s, t, std::min<int64_t>(tokens, offsets[s + 1] - t)});
  return tasks;
}

// The cached rows of a sequence, page by page.
class Cached {
 public:
  Cached(const LatentPages& cache, int64_t seq)
      : pages_(cache.pages), table_(cache.table.data<int32_t>() + seq * cache.table.stride(0)) {}
  // Rows from `position` to the end of its page.
  const char* row(int64_t position) const {
    const int64_t page = table_[position / kCachePageTokens];
    HADAL_CHECK(page >= 0 && page < pages_.dim(0), "position ", position,
                " has no page in the cache");
    const int64_t index = page * pages_.stride(0) + position % kCachePageTokens * pages_.stride(1);
    return static_cast<const char*>(pages_.raw()) +
           index * static_cast<int64_t>(dtype_size(pages_.dtype()));
  }
  MatrixView keys(int64_t position) const {
    return {row(position), pages_.dtype(), pages_.stride(1), 1};
  }
  MatrixView values(int64_t position) const {
    return {row(position), pages_.dtype(), 1, pages_.stride(1)};
  }

 private:
  const Tensor& pages_;
  const int32_t* table_;
};

// Calls fn(position, count) for each page's part of [begin, end).
template <class Fn>
void for_each_page(int64_t begin, int64_t end, Fn fn) {
  for (int64_t p = begin; p < end;) {
    const int64_t stop = std::min(end, (p / kCachePageTokens + 1) * kCachePageTokens);
    fn(p, stop - p);
    p = stop;
  }
}

template <class T>
void attend(const Task& task, const Cached& cached, const int32_t* positions, T scale,
            const Tensor& q, const Tensor& out, T* scores, int64_t width) {
  constexpr DType kT = DTypeOf<T>::value;
  const int64_t H = q.dim(1), W = q.dim(2), R = out.dim(2);
  const SoftmaxKernel<T>& kernel = softmax_kernel<T>();
  const auto q_rows = [&](int64_t t) {
    return MatrixView{
        static_cast<const char*>(q.raw()) +
            (task.token + t) * q.stride(0) * static_cast<int64_t>(dtype_size(q.dtype())),
        q.dtype(), q.stride(1), 1};
  };
  // One chain over pages in f32 or f64; rounded to the output's type at the end.
  std::vector<T> sums(static_cast<size_t>(task.count * H * R));
  // Whole pages that every token of the task sees; rows (token, head) lie one after the other.
  const int64_t shared = (positions[task.token] + 1) / kCachePageTokens * kCachePageTokens;
  HADAL_CHECK(task.count == 1 || q.stride(0) == H * q.stride(1),
              "latent_attention takes a dense q");
  for_each_page(0, shared, [&](int64_t p, int64_t n) {
    matmul<T>(task.count * H, n, W, q_rows(0), cached.keys(p), {scores + p, kT, width},
              Start::kZero);
  });
  for (int64_t t = 0; t < task.count; ++t) {
    T* rows = scores + t * H * width;
    const int64_t visible = positions[task.token + t] + 1;
    for_each_page(shared, visible, [&](int64_t p, int64_t n) {
      matmul<T>(H, n, W, q_rows(t), cached.keys(p), {rows + p, kT, width}, Start::kZero);
    });
    for (int64_t h = 0; h < H; ++h) {
      T* row = rows + h * width;
      const T top = kernel.max(row, visible) * scale;
      const T sum = kernel.exp_sum(row, visible, scale, top);
      kernel.scale(row, visible, T(1) / sum);
    }
  }
  for_each_page(0, shared, [&](int64_t p, int64_t n) {
    matmul<T>(task.count * H, R, n, {scores + p, kT, width, 1}, cached.values(p),
              {sums.data(), kT, R}, p == 0 ? Start::kZero : Start::kOld);
  });
  for (int64_t t = 0; t < task.count; ++t) {
    T* mine = sums.data() + t * H * R;
    for_each_page(shared, positions[task.token + t] + 1, [&](int64_t p, int64_t n) {
      matmul<T>(H, R, n, {scores + t * H * width + p, kT, width, 1}, cached.values(p),
                {mine, kT, R}, p == 0 ? Start::kZero : Start::kOld);
    });
    for (int64_t h = 0; h < H; ++h) {
      const int64_t index = (task.token + t) * out.stride(0) + h * out.stride(1);
      convert(mine + h * R, kT,
              static_cast<char*>(out.raw()) + index * static_cast<int64_t>(dtype_size(out.dtype())),
              out.dtype(), R);
    }
  }
}

template <class T>
void attend_all(Context& ctx, const Packed& seq, double scale, const Tensor& q,
                const LatentPages& cache, const Tensor& out) {
  const int64_t H = q.dim(1);
  const std::vector<Task> tasks = tasks_of(seq, H);
  const auto* positions = seq.positions.data<int32_t>();
  int64_t longest = 0, rows = 0;
  for (int64_t t = 0; t < seq.num_tokens; ++t)
    longest = std::max<int64_t>(longest, positions[t] + 1);
  for (const Task& task : tasks) rows = std::max(rows, task.count * H);
  Tensor scores;
  const Block memory = ctx.memory.take_tensor(DTypeOf<T>::value,
                                              {ctx.threads.num_threads(), rows * longest}, &scores);
  ctx.threads.parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t i, int thread) {
    const Task& task = tasks[static_cast<size_t>(i)];
    attend<T>(task, Cached(cache, task.seq), positions, static_cast<T>(scale), q, out,
              scores.data<T>() + thread * rows * longest, longest);
  });
}

}  // namespace

void latent_cache_write(Context&, const Packed& seq, In latent, const LatentPages& cache) {
  const auto* offsets = seq.offsets.data<int32_t>();
  const auto* positions = seq.positions.data<int32_t>();
  const auto element = static_cast<int64_t>(dtype_size(latent.dtype()));
  for (int64_t s = 0; s < seq.num_seqs; ++s) {
    const Cached cached(cache, s);
    for (int64_t t = offsets[s]; t < offsets[s + 1]; ++t)
      convert(static_cast<const char*>(latent.raw()) + t * latent.stride(0) * element,
              latent.dtype(), const_cast<char*>(cached.row(positions[t])), cache.pages.dtype(),
              latent.dim(1));
  }
}

void latent_attention(Context& ctx, const Packed& seq, double scale, In q, const LatentPages& cache,
                      Out out) {
  if (q.dtype() == DType::kF64)
    attend_all<double>(ctx, seq, scale, q, cache, out);
  else
    attend_all<float>(ctx, seq, scale, q, cache, out);
}

}  // namespace hadal::ops::cpu
