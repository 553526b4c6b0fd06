// Absorbed attention over the paged latent cache, and the cache write.
//
//   T tokens   H heads   W = R + Dr cached width   R latent width   n positions
//
// Per (token, head): scores of positions 0 .. p, each one chain over W; softmax over all of them;
// the result as one chain over positions in order. Pages that all tokens of a block see are
// multiplied for the block at once, the rest token by token: the same chains, so the same bits
// however tokens come. A few (token, head) rows are packed once, and cached rows are multiplied as
// they lie.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "ops/attention.h"
#include "ops/cpu/latent_rows.h"
#include "ops/cpu/matmul.h"
#include "ops/cpu/rows.h"
#include "ops/cpu/softmax.h"
#include "ops/cpu/thin.h"

namespace hadal::ops::cpu {
namespace {

constexpr int64_t kRowsWanted = 96;  // (token, head) rows of a task
constexpr int64_t kFewRows = 32;     // up to that many are packed once
constexpr int64_t kGroup = 16;       // rows of a packed panel, [W][kGroup]
constexpr int64_t kAheadStride =
    32;  // of the W k of kTallRows rows: all their lines, once or twice

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

// Calls fn(position, count) for each page's part of [begin, end).
template <class Fn>
void for_each_page(int64_t begin, int64_t end, Fn fn) {
  for (int64_t p = begin; p < end;) {
    const int64_t stop = std::min(end, (p / kCachePageTokens + 1) * kCachePageTokens);
    fn(p, stop - p);
    p = stop;
  }
}

// Tokens of one task against the cache, in three steps whose pieces are independent. Rows
// (token, head) lie one after the other.
template <class T>
class Attend {
 public:
  // scores [count * H, width], sums [count * H, R] and panels [kFewRows * W] are scratch.
  Attend(const Task& task, const LatentRows& cached, const int32_t* positions, T scale,
         const Tensor& q, const Tensor& out, T* scores, int64_t width, T* sums, T* panels)
      : task_(task),
        cached_(cached),
        positions_(positions),
        scale_(scale),
        q_(q),
        out_(out),
        scores_(scores),
        width_(width),
        sums_(sums),
        panels_(panels) {
    HADAL_CHECK(task.count == 1 || q.stride(0) == H() * q.stride(1),
                "latent_attention takes a dense q");
    if constexpr (kCanBeFew)
      if (is_few())
        for (int64_t r = 0; r < num_rows(); r += kGroup)
          pack_panel(q_rows(0), r, std::min(kGroup, num_rows() - r), 0, W(), kGroup, 0,
                     panels_ + r * W());
  }

  int64_t num_rows() const { return task_.count * H(); }
  int64_t num_pages() const {
    return (visible(task_.count - 1) + kCachePageTokens - 1) / kCachePageTokens;
  }
  int64_t num_columns() const { return out_.dim(2); }

  // Scores of pages [begin, end).
  void score(int64_t begin, int64_t end) const {
    const int64_t first = begin * kCachePageTokens, last = end * kCachePageTokens;
    for_each_page(first, std::min(last, shared()),
                  [&](int64_t p, int64_t n) { score_page(0, num_rows(), p, n); });
    for (int64_t t = 0; t < task_.count; ++t)
      for_each_page(std::max(first, shared()), std::min(last, visible(t)),
                    [&](int64_t p, int64_t n) { score_page(t * H(), H(), p, n); });
  }

  // Softmax of rows [begin, end).
  void normalise(int64_t begin, int64_t end) const {
    const SoftmaxKernel<T>& kernel = softmax_kernel<T>();
    for (int64_t r = begin; r < end; ++r) {
      T* row = scores_ + r * width_;
      const int64_t n = visible(r / H());
      const T top = kernel.max(row, n) * scale_;
      const T sum = kernel.exp_sum(row, n, scale_, top);
      kernel.scale(row, n, T(1) / sum);
    }
  }

  // Columns [begin, end) of the result: one chain over positions in f32 or f64, rounded to the
  // output's type at the end.
  void mix(int64_t begin, int64_t end) const {
    const int64_t R = num_columns(), count = end - begin;
    for_each_page(0, shared(),
                  [&](int64_t p, int64_t n) { mix_page(0, num_rows(), p, n, begin, count); });
    for (int64_t t = 0; t < task_.count; ++t) {
      T* mine = sums_ + t * H() * R + begin;
      for_each_page(shared(), visible(t),
                    [&](int64_t p, int64_t n) { mix_page(t * H(), H(), p, n, begin, count); });
      for (int64_t h = 0; h < H(); ++h) {
        const int64_t index = (task_.token + t) * out_.stride(0) + h * out_.stride(1) + begin;
        write_elements(mine + h * R, address(out_, index), out_.dtype(), count);
      }
    }
  }

 private:
  static constexpr DType kT = DTypeOf<T>::value;
  static constexpr bool kCanBeFew = std::is_same_v<T, float>;

  int64_t H() const { return q_.dim(1); }
  int64_t W() const { return q_.dim(2); }
  bool is_few() const { return kCanBeFew && num_rows() <= kFewRows && num_columns() % kGroup == 0; }
  int64_t visible(int64_t t) const { return positions_[task_.token + t] + 1; }
  // Whole pages that every token of the task sees, in positions.
  int64_t shared() const { return visible(0) / kCachePageTokens * kCachePageTokens; }
  static Start start(int64_t position) { return position == 0 ? Start::kZero : Start::kOld; }
  // The row of a position that will be read soon; null past the last.
  const std::byte* ahead(int64_t position, int64_t column) const {
    return position < visible(task_.count - 1) ? cached_.ahead(position, column) : nullptr;
  }
  MatrixView q_rows(int64_t t) const {
    return {static_cast<const char*>(q_.raw()) +
                (task_.token + t) * q_.stride(0) * static_cast<int64_t>(dtype_size(q_.dtype())),
            q_.dtype(), q_.stride(1), 1};
  }

  // Scores of n positions from p on, of one page, for some rows.
  void score_page(int64_t row, int64_t rows, int64_t p, int64_t n) const {
    const MatrixView keys = cached_.keys(p, n, 0, W());
    if constexpr (kCanBeFew)
      if (is_few()) return score_few(row, rows, p, keys, n);
    matmul<T>(rows, n, W(), q_rows(0).block(row, 0), keys, {scores_ + row * width_ + p, kT, width_},
              Start::kZero);
  }
  void score_few(int64_t row, int64_t rows, int64_t p, const MatrixView& keys, int64_t n) const {
    float wide[kTallRows * kTallDepth], tile[kTallRows * kGroup], turned[kGroup * kTallRows];
    const auto element_bytes = static_cast<int64_t>(dtype_size(keys.dtype));
    const auto* from = static_cast<const std::byte*>(keys.data);
    for (int64_t i = 0; i < n; i += kTallRows) {
      const int64_t count = std::min(kTallRows, n - i);
      const std::byte* next = ahead(p + i + kTallRows, 0);
      for (int64_t g = row / kGroup * kGroup; g < row + rows; g += kGroup) {
        for (int64_t k = 0; k < W(); k += kTallDepth) {
          const int64_t depth = std::min(kTallDepth, W() - k);
          for (int64_t j = 0; j < count; ++j)
            read_elements(from + ((i + j) * keys.row_stride + k) * element_bytes, keys.dtype,
                          wide + j * kTallDepth, depth);
          thin_kernels().tall_rows(
              {.M = count,
               .N = kGroup,
               .K = depth,
               .a = wide,
               .dtype = DType::kF32,
               .data = reinterpret_cast<const std::byte*>(panels_ + g * W() + k * kGroup),
               .stride_bytes = kGroup * static_cast<int64_t>(sizeof(float)),
               .c = tile,
               .ldc = kGroup,
               .start = k == 0 ? Start::kZero : Start::kOld,
               .ahead = next == nullptr ? nullptr : next + k * kAheadStride,
               .ahead_stride = kAheadStride});
        }
        pack_panel({tile, DType::kF32, kGroup, 1}, 0, count, 0, kGroup, kTallRows, 0, turned);
        for (int64_t r = std::max(row, g); r < std::min(row + rows, g + kGroup); ++r)
          std::copy_n(turned + (r - g) * kTallRows, count, scores_ + r * width_ + p + i);
      }
    }
  }
  // Adds n positions from p on, of one page, to some rows of the result, columns
  // [begin, begin + count).
  void mix_page(int64_t row, int64_t rows, int64_t p, int64_t n, int64_t begin,
                int64_t count) const {
    const MatrixView values = cached_.values(p, n, begin, count);
    const MatrixView scores{scores_ + row * width_ + p, kT, width_, 1};
    T* to = sums_ + row * num_columns() + begin;
    if constexpr (kCanBeFew)
      if (is_few() && count % kGroup == 0) {
        const int64_t stride = values.k_stride * static_cast<int64_t>(dtype_size(values.dtype));
        float panel[kCachePageTokens * kTallRows];
        for (int64_t r = 0; r < rows; r += kTallRows) {
          const int64_t some = std::min(kTallRows, rows - r);
          pack_panel(scores, r, some, 0, n, kTallRows, 0, panel);
          thin_kernels().tall_panel({.M = some,
                                     .N = count,
                                     .K = n,
                                     .a = panel,
                                     .dtype = values.dtype,
                                     .data = static_cast<const std::byte*>(values.data),
                                     .stride_bytes = stride,
                                     .c = to + r * num_columns(),
                                     .ldc = num_columns(),
                                     .start = start(p),
                                     .ahead = ahead(p + kCachePageTokens, begin),
                                     .ahead_stride = stride});
        }
        return;
      }
    matmul<T>(rows, count, n, scores, values, {to, kT, num_columns()}, start(p));
  }

  Task task_;
  LatentRows cached_;
  const int32_t* positions_;
  T scale_;
  const Tensor &q_, &out_;
  T* scores_;
  int64_t width_;
  T *sums_, *panels_;
};

// Calls fn(begin, end) for pieces of [0, n), on all threads.
template <class Fn>
void in_pieces(Context& ctx, int64_t n, int64_t step, const Fn& fn) {
  ctx.threads.parallel_for((n + step - 1) / step,
                           [&](int64_t i, int) { fn(i * step, std::min(n, (i + 1) * step)); });
}

template <class T>
void attend_all(Context& ctx, const Packed& seq, double scale, const Tensor& q,
                const LatentPages& cache, const Tensor& out) {
  const int64_t H = q.dim(1), R = out.dim(2);
  const std::vector<Task> tasks = tasks_of(seq, H);
  const auto* positions = seq.positions.data<int32_t>();
  int64_t longest = 0, rows = 0;
  for (int64_t t = 0; t < seq.num_tokens; ++t)
    longest = std::max<int64_t>(longest, positions[t] + 1);
  for (const Task& task : tasks) rows = std::max(rows, task.count * H);
  const int threads = ctx.threads.num_threads();
  Tensor scores, sums, panels;
  const Block scores_memory =
      ctx.memory.take_tensor(DTypeOf<T>::value, {threads, rows * longest}, &scores);
  const Block sums_memory = ctx.memory.take_tensor(DTypeOf<T>::value, {threads, rows * R}, &sums);
  const Block panels_memory =
      ctx.memory.take_tensor(DTypeOf<T>::value, {threads, kFewRows * q.dim(2)}, &panels);
  const auto make = [&](const Task& task, int thread) {
    return Attend<T>(task, LatentRows(cache, task.seq), positions, static_cast<T>(scale), q, out,
                     scores.data<T>() + thread * rows * longest, longest,
                     sums.data<T>() + thread * rows * R,
                     panels.data<T>() + thread * kFewRows * q.dim(2));
  };
  // Few tasks are cut into pieces for the threads; else a task is one thread's. Each piece of
  // columns reads all scores, so there is one for each thread, of whole register blocks.
  constexpr int64_t kPagePiece = 4, kColumnStep = 64;
  const int64_t columns = (R + threads * kColumnStep - 1) / (threads * kColumnStep) * kColumnStep;
  if (static_cast<int64_t>(tasks.size()) < threads) {
    for (const Task& task : tasks) {
      const Attend<T> attend = make(task, 0);
      in_pieces(ctx, attend.num_pages(), kPagePiece,
                [&](int64_t begin, int64_t end) { attend.score(begin, end); });
      in_pieces(ctx, attend.num_rows(), std::max<int64_t>(1, attend.num_rows() / threads),
                [&](int64_t begin, int64_t end) { attend.normalise(begin, end); });
      in_pieces(ctx, attend.num_columns(), columns,
                [&](int64_t begin, int64_t end) { attend.mix(begin, end); });
    }
    return;
  }
  ctx.threads.parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t i, int thread) {
    const Attend<T> attend = make(tasks[static_cast<size_t>(i)], thread);
    attend.score(0, attend.num_pages());
    attend.normalise(0, attend.num_rows());
    attend.mix(0, attend.num_columns());
  });
}

}  // namespace

void latent_cache_write(Context&, const Packed& seq, In latent, const LatentPages& cache) {
  const auto* offsets = seq.offsets.data<int32_t>();
  const auto* positions = seq.positions.data<int32_t>();
  const auto element = static_cast<int64_t>(dtype_size(latent.dtype()));
  for (int64_t s = 0; s < seq.num_seqs; ++s) {
    const LatentRows rows(cache, s);
    for (int64_t t = offsets[s]; t < offsets[s + 1]; ++t)
      rows.store(positions[t],
                 static_cast<const char*>(latent.raw()) + t * latent.stride(0) * element,
                 latent.dtype());
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
