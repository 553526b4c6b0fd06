// Products on all threads: rows packed once, then bands of columns.
//
//   M rows   N columns of the result   K inner width   mr, nr size of the register block
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/product.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "ops/cpu/int_product.h"
#include "ops/cpu/pack.h"
#include "ops/cpu/rows.h"
#include "ops/cpu/thin.h"

namespace hadal::ops::cpu {
namespace {

constexpr int64_t kBandCols = 256;  // most columns of a task
constexpr int64_t kBandRows = 512;  // most rows of a task
constexpr int64_t kTasksPerThread = 4;
// Most k of a block: with kBandCols it stays in L2, while a panel of rows stays in L1.
constexpr int64_t kDepth = 512;
constexpr int64_t kDepthStep = 64;  // packing reads that many k at once, of one scale
constexpr int64_t kPackDepth = 64;  // k of columns that are packed at once
// Columns of a task of few rows, at most and at least: where weights lie in rows or panels, and
// where they are read by columns, a part of each stored row.
constexpr int64_t kThinBand = 256, kThinLeast = kPanelRows;
constexpr int64_t kThinBandWide = 512, kThinLeastWide = 128;
constexpr int64_t kThinTasks = 2;  // of what is left, into how many a thread's share is cut
constexpr int64_t kScaleBlock = 128;
constexpr int64_t kPageBytes = 4096;
constexpr int64_t kSerialElements = 65536;  // rows to pack that are not worth waking threads for

constexpr int64_t kLineBytes = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Blocks of K of about the same depth.
int64_t depth_of(int64_t K) {
  return ceil_div(ceil_div(K, ceil_div(K, kDepth)), kDepthStep) * kDepthStep;
}

bool is_int(const Product& p) { return p.int_scale != nullptr; }
IntBits bits_of(const Product& p) {
  return p.b.row_stride == int_groups(p.K) * group_words(IntBits::k4) ? IntBits::k4 : IntBits::k8;
}

// Whether the kernels of thin products read its operands as they lie.
bool is_thin(const Product& p) {
  if (is_int(p) || p.M > thin_kernels().most_rows || p.a.k_stride != 1) return false;
  if (p.in_panels) return true;
  if (p.b.dtype == DType::kF32 || p.b.dtype == DType::kBF16) return true;
  if (p.b.dtype != DType::kE4M3 || p.b.scale == nullptr) return false;
  const bool by_rows = p.b.k_stride == 1;
  return by_rows == p.b.rows_are_stored_rows &&
         (by_rows ? p.b.stored_col % kScaleBlock == 0 && p.b.stored_row % kThinCols == 0
                  : p.b.stored_col % kThinCols == 0);
}
// Whether it has few rows: bands of its columns are read once each, at the rate of memory.
bool is_few(const Product& p) {
  return is_thin(p) || (is_int(p) && p.M <= thin_kernels().most_rows);
}

// Whether the rows of two products look the same packed: they are the same, or a few that are
// equal, as a token's are for each of its experts.
bool same_rows(const Product& p, const Product& q) {
  if (p.M != q.M || p.K != q.K || p.a.dtype != q.a.dtype || is_int(p) != is_int(q) ||
      is_thin(p) != is_thin(q) || p.a.k_stride != q.a.k_stride)
    return false;
  if (p.a.data == q.a.data && p.a.row_stride == q.a.row_stride) return true;
  if (p.M > thin_kernels().most_rows || p.a.k_stride != 1) return false;
  const auto bytes = static_cast<size_t>(p.K) * dtype_size(p.a.dtype);
  for (int64_t m = 0; m < p.M; ++m)
    if (std::memcmp(p.a.block(m, 0).data, q.a.block(m, 0).data, bytes) != 0) return false;
  return true;
}

// The rows of one product, packed: f32 panels of mr rows, or blocks of quantised rows.
struct PackedRows {
  float* f32 = nullptr;    // [panels][K][width]
  uint32_t* q = nullptr;   // blocks of at most kIntRows rows: [G * kIntWords][rows]
  float* scale = nullptr;  // [G][rows] of each block
  int32_t* sum = nullptr;
};

struct Band {
  size_t product;
  int64_t m, rows, n, cols;
};

// Where k of the panel of column n lies. REQUIRES: n is a multiple of 32, k of 4.
const std::byte* panel_at(const Product& p, int64_t n, int64_t k) {
  const auto element_bytes = static_cast<int64_t>(dtype_size(p.b.dtype));
  return static_cast<const std::byte*>(p.b.data) + (n * p.K + k * kPanelRows) * element_bytes;
}

// Lines of a weight that will be packed: `lines` a stored row, or rows of lines a panel. The tiles
// of a band ask for them.
class Lines {
 public:
  Lines() = default;
  // k of columns [n, n + cols) of a product.
  Lines(const Product& p, int64_t n, int64_t cols, int64_t k) {
    const auto element_bytes = static_cast<int64_t>(dtype_size(p.b.dtype));
    const int64_t depth = std::min(depth_of(p.K), p.K - k);
    if (p.in_panels) {
      data_ = panel_at(p, n, k);
      stride_ = kLineBytes;
      rows_ = kPanelRows * depth * element_bytes / kLineBytes;
      lines_ = ceil_div(cols, kPanelRows);
      line_stride_ = kPanelRows * p.K * element_bytes;
      return;
    }
    const MatrixView at = p.b.block(n, k);
    const bool by_rows = at.k_stride == 1;
    data_ = static_cast<const std::byte*>(at.data);
    stride_ = (by_rows ? at.row_stride : at.k_stride) * element_bytes;
    rows_ = by_rows ? cols : depth;
    lines_ = ceil_div((by_rows ? depth : cols) * element_bytes, kLineBytes);
  }
  // The next of them for a tile of K; line by line down the rows.
  Ahead next(int64_t K) {
    if (line_ == lines_) return {};
    const Ahead ahead{data_ + line_ * line_stride_ + row_ * stride_, stride_,
                      std::min(K, rows_ - row_)};
    row_ += ahead.count;
    if (row_ == rows_) {
      row_ = 0;
      ++line_;
    }
    return ahead;
  }

 private:
  const std::byte* data_ = nullptr;
  int64_t stride_ = 0, rows_ = 0, lines_ = 0, line_stride_ = kLineBytes, row_ = 0, line_ = 0;
};

// Scratch of a thread that only grows.
float* thread_floats(int which, int64_t count) {
  struct Buffer {
    std::unique_ptr<float[]> memory;
    int64_t capacity = 0;
  };
  thread_local Buffer buffers[3];
  Buffer& b = buffers[which];
  if (count > b.capacity) {
    b.memory = std::make_unique<float[]>(static_cast<size_t>(count) + 16);
    b.capacity = count;
  }
  const auto address = reinterpret_cast<uintptr_t>(b.memory.get());
  return reinterpret_cast<float*>((address + 63) / 64 * 64);
}

class Run {
 public:
  Run(Context& ctx, std::span<const Product> products, Start start)
      : ctx_(ctx), products_(products), start_(start), kernel_(matmul_kernels().f32) {}

  void operator()() {
    pack_all();
    cut();
    ctx_.threads.parallel_for(static_cast<int64_t>(bands_.size()), [&](int64_t i, int) {
      const Band& band = bands_[static_cast<size_t>(i)];
      const Product& p = products_[band.product];
      // What this thread is likely to do next.
      const auto later = static_cast<size_t>(i + ctx_.threads.num_threads());
      const Band* next = later < bands_.size() ? &bands_[later] : nullptr;
      if (is_int(p))
        int_band(p, rows_[band.product], band);
      else if (is_thin(p))
        thin_band(p, rows_[band.product], band);
      else
        float_band(p, rows_[band.product], band, next);
    });
  }

 private:
  // Rows of a block: of a panel, about the same in all.
  int64_t block_rows(const Product& p) const {
    if (is_int(p)) return kIntRows;
    return ceil_div(p.M, ceil_div(p.M, kernel_.mr));
  }

  // Blocks of rows [begin, end) of a product, k in [k, k + K).
  struct PackTask {
    size_t product;
    int64_t begin, end, k, K;
  };
  void pack(const PackTask& task) const {
    const Product& p = products_[task.product];
    const PackedRows& to = rows_[task.product];
    const int64_t step = block_rows(p), width = kernel_.width;
    for (int64_t block = task.begin; block < task.end; ++block) {
      const int64_t m = block * step, rows = std::min(step, p.M - m);
      if (is_int(p))
        pack_ints(p, to, m, rows);
      else if (is_thin(p))
        for (int64_t r = m; r < m + rows; ++r)
          read_elements(p.a.block(r, 0).data, p.a.dtype, to.f32 + r * p.K, p.K);
      else
        pack_panel(p.a, m, rows, task.k, task.K, width, step * ctx_.threads.num_threads(),
                   to.f32 + (block * p.K + task.k) * width);
    }
  }
  void pack_ints(const Product& p, const PackedRows& to, int64_t m, int64_t rows) const {
    const int64_t groups = int_groups(p.K);
    float* x = thread_floats(0, p.K);
    for (int64_t r = 0; r < rows; ++r) {
      read_elements(p.a.block(m + r, 0).data, p.a.dtype, x, p.K);
      int_kernels().quantise(x, p.K, rows, r, to.q + m * groups * kIntWords, to.scale + m * groups,
                             to.sum + m * groups);
    }
  }

  // Packs the rows of every product: a block of rows a task, or, where they are the columns of a
  // stored matrix, some of its rows a task.
  void pack_all() {
    int64_t bytes = 0, elements = 0;
    const auto aligned = [](int64_t n) { return (n + 63) / 64 * 64; };
    std::vector<int64_t> offsets;
    std::vector<size_t> packed;  // of each product: the one whose packed rows it reads
    std::vector<PackTask> tasks;
    for (size_t i = 0; i < products_.size(); ++i) {
      const Product& p = products_[i];
      offsets.push_back(bytes);
      packed.push_back(i > 0 && same_rows(products_[i - 1], p) ? packed[i - 1] : i);
      if (packed[i] != i) continue;
      const int64_t blocks = ceil_div(p.M, block_rows(p));
      if (is_int(p))
        bytes +=
            aligned(4 * p.M * int_groups(p.K) * kIntWords) + 2 * aligned(4 * p.M * int_groups(p.K));
      else
        bytes += aligned(4 * blocks * p.K * kernel_.width);
      elements += p.M * p.K;
      if (p.a.k_stride == 1)
        for (int64_t b = 0; b < blocks; ++b) tasks.push_back({i, b, b + 1, 0, p.K});
      else
        for (int64_t k = 0; k < p.K; k += kPackDepth)
          tasks.push_back({i, 0, blocks, k, std::min(kPackDepth, p.K - k)});
    }
    memory_ = ctx_.memory.take(static_cast<size_t>(bytes));
    rows_.resize(products_.size());
    for (size_t i = 0; i < products_.size(); ++i) {
      const Product& p = products_[i];
      if (packed[i] != i) {
        rows_[i] = rows_[packed[i]];
        continue;
      }
      char* at = static_cast<char*>(memory_.data()) + offsets[i];
      if (!is_int(p)) {
        rows_[i].f32 = reinterpret_cast<float*>(at);
        continue;
      }
      rows_[i].q = reinterpret_cast<uint32_t*>(at);
      at += aligned(4 * p.M * int_groups(p.K) * kIntWords);
      rows_[i].scale = reinterpret_cast<float*>(at);
      at += aligned(4 * p.M * int_groups(p.K));
      rows_[i].sum = reinterpret_cast<int32_t*>(at);
    }
    if (elements <= kSerialElements) {
      for (const PackTask& task : tasks) pack(task);
      return;
    }
    ctx_.threads.parallel_for(static_cast<int64_t>(tasks.size()),
                              [&](int64_t i, int) { pack(tasks[static_cast<size_t>(i)]); });
  }

  // Rows of a product's bands, where they are cut into about `parts` beyond kBandRows.
  int64_t band_rows(const Product& p, int64_t parts) const {
    const int64_t step = block_rows(p);
    int64_t rows = std::min(kBandRows, p.M);
    if (parts > 1) rows = std::min(rows, std::max<int64_t>(4 * step, ceil_div(p.M, parts)));
    return ceil_div(rows, step) * step;
  }

  // Bands of columns, narrower and lower where there would be too few for the threads.
  void cut() {
    const int threads = ctx_.threads.num_threads();
    const int64_t wanted = threads == 1 ? 1 : threads * kTasksPerThread;
    if (std::all_of(products_.begin(), products_.end(), is_few)) return cut_few(threads);
    const auto count = [&](int64_t cols, int64_t parts) {
      int64_t total = 0;
      for (const Product& p : products_)
        total += ceil_div(p.N, cols) * ceil_div(p.M, band_rows(p, parts));
      return total;
    };
    int64_t cols = kBandCols, parts = 1;
    if (count(cols, parts) < wanted) cols /= 2;
    if (count(cols, parts) < wanted) parts = ceil_div(wanted, count(cols, parts));
    while (count(cols, parts) < wanted && cols > kPanelRows) cols /= 2;
    for (size_t i = 0; i < products_.size(); ++i) {
      const Product& p = products_[i];
      const int64_t rows = band_rows(p, parts);
      for (int64_t m = 0; m < p.M; m += rows)
        for (int64_t n = 0; n < p.N; n += cols)
          bands_.push_back({i, m, std::min(rows, p.M - m), n, std::min(cols, p.N - n)});
    }
  }

  // Few rows: each thread's share is one run through memory, cut into wide bands and narrow ones at
  // its end, so that no thread waits long for the last. The first bands of all shares come first,
  // then the second ones: threads that take turns stay in their shares, where each band's end asks
  // for the beginning of the next.
  void cut_few(int threads) {
    int64_t total = 0;
    for (const Product& p : products_) total += p.N * column_bits(p);
    std::vector<std::vector<Band>> shares(static_cast<size_t>(threads));
    int64_t done = 0;
    size_t share = 0;
    for (size_t i = 0; i < products_.size(); ++i) {
      const Product& p = products_[i];
      const bool by_columns = !is_int(p) && !p.in_panels && p.b.k_stride != 1;
      const int64_t least = by_columns ? kThinLeastWide : kThinLeast;
      const int64_t most = by_columns ? kThinBandWide : kThinBand;
      for (int64_t n = 0; n < p.N;) {
        const int64_t bits = column_bits(p), last = static_cast<int64_t>(shares.size()) - 1;
        while (static_cast<int64_t>(share) < last &&
               done + least * bits / 2 >= total * static_cast<int64_t>(share + 1) / threads)
          ++share;
        const int64_t left = total * static_cast<int64_t>(share + 1) / threads - done;
        const int64_t wanted = threads == 1 ? most : left / bits / kThinTasks;
        const int64_t cols = std::min(std::clamp(wanted / least * least, least, most), p.N - n);
        shares[share].push_back({i, 0, p.M, n, cols});
        n += cols;
        done += cols * bits;
      }
    }
    size_t most_bands = 0;
    for (const auto& bands : shares) most_bands = std::max(most_bands, bands.size());
    for (size_t b = 0; b < most_bands; ++b)
      for (const auto& bands : shares)
        if (b < bands.size()) bands_.push_back(bands[b]);
  }
  // What a column of a product reads, but for scales.
  static int64_t column_bits(const Product& p) {
    if (is_int(p)) return p.K * (bits_of(p) == IntBits::k4 ? 4 : 8);
    return p.K * 8 * static_cast<int64_t>(dtype_size(p.b.dtype));
  }

  // A band's result in f32: in place, or in scratch of whole panels that `finish` stores.
  struct Result {
    float* data;
    int64_t ld;
    bool in_place;
  };
  Result begin(const Product& p, const Band& band) const {
    if (p.c.dtype == DType::kF32 && band.cols % kPanelRows == 0)
      return {static_cast<float*>(p.c.data) + band.m * p.c.row_stride + band.n, p.c.row_stride,
              true};
    const int64_t ld = ceil_div(band.cols, kPanelRows) * kPanelRows;
    const Result r{thread_floats(0, band.rows * ld), ld, false};
    if (start_ == Start::kOld)
      for (int64_t m = 0; m < band.rows; ++m) {
        read_elements(element(p, band.m + m, band.n), p.c.dtype, r.data + m * ld, band.cols);
        std::fill(r.data + m * ld + band.cols, r.data + (m + 1) * ld, 0.0f);
      }
    return r;
  }
  void finish(const Product& p, const Band& band, const Result& r) const {
    if (r.in_place) return;
    for (int64_t m = 0; m < band.rows; ++m)
      write_elements(r.data + m * r.ld, element(p, band.m + m, band.n), p.c.dtype, band.cols);
  }
  static void* element(const Product& p, int64_t m, int64_t n) {
    return static_cast<char*>(p.c.data) +
           (m * p.c.row_stride + n) * static_cast<int64_t>(dtype_size(p.c.dtype));
  }

  void thin_band(const Product& p, const PackedRows& a, const Band& band) const {
    const Result r = begin(p, band);
    const auto element_bytes = static_cast<int64_t>(dtype_size(p.b.dtype));
    const bool by_rows = p.b.k_stride == 1;
    const MatrixView b = p.in_panels ? p.b : p.b.block(band.n, 0);
    ThinProduct thin{.M = p.M,
                     .N = band.cols,
                     .K = p.K,
                     .a = a.f32,
                     .lda = p.K,
                     .dtype = b.dtype,
                     .data = static_cast<const std::byte*>(b.data),
                     .stride_bytes = (by_rows ? b.row_stride : b.k_stride) * element_bytes,
                     .scale = b.scale,
                     .scale_stride = b.scale_stride,
                     .first_row = b.stored_row,
                     .first_col = b.stored_col,
                     .c = r.data,
                     .ldc = r.ld,
                     .start = start_,
                     .ahead = nullptr};
    if (p.in_panels) {
      thin.data = panel_at(p, band.n, 0);
      thin.stride_bytes = kPanelRows * p.K * element_bytes;
      thin.first_row = band.n;
      thin_kernels().panels(thin);
    } else if (by_rows) {
      for (int64_t n = 0; n < band.cols; n += kThinCols) {
        thin.N = std::min(kThinCols, band.cols - n);
        thin.data = static_cast<const std::byte*>(b.data) + n * thin.stride_bytes;
        thin.c = r.data + n;
        thin.first_row = b.stored_row + n;
        // Long rows are pages of their own, which the processor reads ahead in by itself.
        const bool known = n + kThinCols >= band.cols || thin.stride_bytes >= kPageBytes;
        thin.ahead = known ? nullptr : thin.data + kThinCols * thin.stride_bytes;
        thin_kernels().rows(thin);
      }
    } else {
      thin_kernels().columns(thin);
    }
    finish(p, band, r);
  }

  // Panels of b, columns [band.n, band.n + band.cols) and k in [k, k + depth):
  // packed[j][depth][nr].
  void pack_columns(const Product& p, const Band& band, int64_t k, int64_t depth,
                    float* packed) const {
    const int64_t nr = kernel_.nr;
    if (p.in_panels) {
      for (int64_t n = 0; n < band.cols; n += nr) {
        const int64_t column = band.n + n;
        const float* scale =
            p.b.scale == nullptr ? nullptr : p.b.scale + column / kScaleBlock * p.b.scale_stride;
        const auto* words =
            reinterpret_cast<const uint32_t*>(panel_at(p, column / kPanelRows * kPanelRows, k));
        pack_kernels().panel(p.b.dtype, words + column % kPanelRows, depth, scale, k,
                             packed + n * depth);
      }
      return;
    }
    const int64_t piece = p.b.k_stride == 1 ? depth : kPackDepth;
    for (int64_t i = 0; i < depth; i += piece)
      for (int64_t n = 0; n < band.cols; n += nr)
        pack_panel(p.b, band.n + n, std::min(nr, band.cols - n), k + i, std::min(piece, depth - i),
                   nr, 0, packed + n * depth + i * nr);
  }

  // next: what the thread is likely to do afterwards, or null.
  void float_band(const Product& p, const PackedRows& a, const Band& band, const Band* next) const {
    const int64_t nr = kernel_.nr, width = kernel_.width, step = block_rows(p);
    const int64_t panels = ceil_div(band.cols, nr), depth_most = depth_of(p.K);
    const Result r = begin(p, band);
    float* packed = thread_floats(1, panels * nr * depth_most);
    for (int64_t k = 0; k < p.K; k += depth_most) {
      const int64_t depth = std::min(depth_most, p.K - k);
      const Start from = k > 0 ? Start::kOld : start_;
      pack_columns(p, band, k, depth, packed);
      Lines lines;
      if (k + depth < p.K)
        lines = Lines(p, band.n, band.cols, k + depth);
      else if (next != nullptr && !is_int(products_[next->product]))
        lines = Lines(products_[next->product], next->n, next->cols, 0);
      for (int64_t m = 0; m < band.rows; m += step) {
        const float* rows = a.f32 + ((band.m + m) / step * p.K + k) * width;
        float* c = r.data + m * r.ld;
        for (int64_t j = 0; j < panels; ++j, c += nr) {
          // The first tile of some rows asks for the panel of the next ones.
          const Ahead ahead =
              j == 0 ? Ahead{reinterpret_cast<const std::byte*>(rows + p.K * width), kLineBytes,
                             depth * width * static_cast<int64_t>(sizeof(float)) / kLineBytes}
                     : lines.next(depth);
          const float* next_c = j + 1 < panels ? c + nr : r.data + (m + step) * r.ld;
          kernel_.compute(depth, rows, packed + j * depth * nr, c, r.ld,
                          std::min(step, band.rows - m), from, next_c, ahead);
        }
      }
    }
    finish(p, band, r);
  }

  void int_band(const Product& p, const PackedRows& a, const Band& band) const {
    const IntBits bits = bits_of(p);
    const int64_t groups = int_groups(p.K), words = group_words(bits);
    // Sums of a panel side by side: rows of the result a power of two apart would push each other
    // out of the caches, once a group.
    float* sums = thread_floats(0, band.rows * kPanelRows);
    for (int64_t n = 0; n < band.cols; n += kPanelRows) {
      const int64_t column = band.n + n, cols = std::min(kPanelRows, band.cols - n);
      std::fill(sums, sums + band.rows * kPanelRows, 0.0f);
      if (start_ == Start::kOld)
        for (int64_t m = 0; m < band.rows; ++m)
          read_elements(element(p, band.m + m, column), p.c.dtype, sums + m * kPanelRows, cols);
      int_kernels().multiply(
          {.bits = bits,
           .rows = band.rows,
           .groups = groups,
           .q = a.q + band.m * groups * kIntWords,
           .a_scale = a.scale + band.m * groups,
           .sum = a.sum + band.m * groups,
           .words = static_cast<const uint32_t*>(p.b.data) + column * groups * words,
           .scale = p.int_scale + column * groups},
          sums, kPanelRows);
      for (int64_t m = 0; m < band.rows; ++m)
        write_elements(sums + m * kPanelRows, element(p, band.m + m, column), p.c.dtype, cols);
    }
  }

  Context& ctx_;
  std::span<const Product> products_;
  Start start_;
  const MatmulKernel<float>& kernel_;
  Block memory_;
  std::vector<PackedRows> rows_;
  std::vector<Band> bands_;
};

}  // namespace

void run_products(Context& ctx, std::span<const Product> products, Start start) {
  // What has no elements has no bands; an empty chain leaves zeros or the old values.
  std::vector<Product> real;
  for (const Product& p : products) {
    if (p.M == 0 || p.N == 0) continue;
    if (p.K > 0) {
      real.push_back(p);
      continue;
    }
    matmul<float>(p.M, p.N, 0, p.a, p.b, p.c, start);
  }
  if (!real.empty()) Run(ctx, real, start)();
}

}  // namespace hadal::ops::cpu
