// The kernels of thin products, compiled once per instruction set.
//
// The including file includes decode.h, defines multiply_add and sets HADAL_TABLE.
// SPDX-License-Identifier: Apache-2.0

namespace hadal::ops::cpu {
namespace {

// Vectors of weight rows whose chains run beside each other: 16 rows where four bytes are one or
// two k, as each of two chains waits four cycles for its last sum. More would be more pages than
// the processor follows; e4m3 has long chains and short rows.
template <class T>
constexpr int kStripes = T::kPerWord == 4 ? 2 : 16 / kLanes;
constexpr int64_t kThinScaleBlock = 128;
constexpr int64_t kPanelAhead = 4096;  // bytes of a panel to ask for before they are read

inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(float* p, const Vec& v) { __builtin_memcpy(p, &v, sizeof(v)); }

// Word i of each stripe times all rows of a. kCareful: for any bytes of e4m3, and where only
// k_count k of all words are real.
template <class T, int M, bool kCareful>
[[gnu::always_inline]] inline void add_word(const Words (*w)[kLanes], int i, int64_t k_count,
                                            const float* a, int64_t lda, Vec factor,
                                            Vec (*sum)[M]) {
  constexpr int S = kStripes<T>;
  Vec v[S][T::kPerWord];
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s) {
    if constexpr (kCareful && std::is_same_v<T, E4M3>)
      E4M3::decode_special(w[s][i], factor, v[s]);
    else
      T::decode(w[s][i], factor, v[s]);
  }
#pragma GCC unroll 4
  for (int e = 0; e < T::kPerWord; ++e) {
    if (kCareful && i * T::kPerWord + e >= k_count) break;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const Vec x = a[m * lda + i * T::kPerWord + e] - Vec{};
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) sum[s][m] = multiply_add(x, v[s][e], sum[s][m]);
    }
  }
}

template <class T, int M>
inline void add_careful(const Words (*w)[kLanes], int64_t k_count, const float* a, int64_t lda,
                        float scale, Vec (*sum)[M]) {
  for (int i = 0; i * T::kPerWord < k_count; ++i)
    add_word<T, M, true>(w, i, k_count, a, lda, scale - Vec{}, sum);
}

// A part of the words, one of kParts.
template <class T, int M, int kPart, int kParts>
[[gnu::always_inline]] inline void add_part(const Words (*w)[kLanes], const float* a, int64_t lda,
                                            Vec factor, Vec (*sum)[M]) {
  constexpr int kBegin = kPart * kLanes / kParts, kEnd = (kPart + 1) * kLanes / kParts;
#pragma GCC unroll 16
  for (int i = kBegin; i < kEnd; ++i)
    add_word<T, M, false>(w, i, kLanes * T::kPerWord, a, lda, factor, sum);
}

// Asks for a part of the memory that is read next, one of kParts; all of it at once where there is
// but one stripe, whose reads are far between.
template <class T, int kPart, int kParts>
[[gnu::always_inline]] inline void prefetch_part(const std::byte* ahead) {
  constexpr int kLines = kStripes<T> * kLanes * static_cast<int>(sizeof(Words)) / 64;
  constexpr bool kAtOnce = kStripes<T> == 1;
  constexpr int kBegin = kAtOnce ? 0 : kPart * kLines / kParts;
  constexpr int kEnd = kAtOnce ? (kPart == 0 ? kLines : 0) : (kPart + 1) * kLines / kParts;
  if (ahead == nullptr) return;
#pragma GCC unroll 32
  for (int line = kBegin; line < kEnd; ++line) __builtin_prefetch(ahead + line * 64, 0, 2);
}

// What add_while_next needs beside its template's types.
template <class T, int M>
struct Pipe {
  const std::byte* (*row)[kLanes];
  const float* a;
  int64_t lda;
  Vec (*sum)[M];
  Words nan;
};

// Adds the words of `w`, of k elements from p.a + k on, while those of the next chunk are read and
// transposed into `next`: shuffles have one port, so they are spread among the multiplications.
template <class T, int M, int kStripe>
[[gnu::always_inline]] inline void add_while_next(Pipe<T, M>& p, int64_t k, Vec factor,
                                                  const std::byte* ahead, const Words (*w)[kLanes],
                                                  Words (*next)[kLanes]) {
  constexpr int S = kStripes<T>, kPart = 4 * kStripe, kParts = 4 * S;
  constexpr int64_t kElementBytes = 4 / T::kPerWord, kChunk = kLanes * T::kPerWord;
  Words in[kLanes], t[kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) {
    __builtin_memcpy(&in[r], p.row[kStripe][r] + (k + kChunk) * kElementBytes, sizeof(Words));
    if constexpr (std::is_same_v<T, E4M3>) p.nan |= E4M3::nan_bits(in[r]);
  }
  transpose_stage<0>(in, t);
  prefetch_part<T, kPart, kParts>(ahead);
  add_part<T, M, kPart, kParts>(w, p.a + k, p.lda, factor, p.sum);
  transpose_stage<1>(t, in);
  prefetch_part<T, kPart + 1, kParts>(ahead);
  add_part<T, M, kPart + 1, kParts>(w, p.a + k, p.lda, factor, p.sum);
  transpose_stage<2>(in, next[kStripe]);
  prefetch_part<T, kPart + 2, kParts>(ahead);
  add_part<T, M, kPart + 2, kParts>(w, p.a + k, p.lda, factor, p.sum);
  transpose_stage<3>(in, next[kStripe]);
  prefetch_part<T, kPart + 3, kParts>(ahead);
  add_part<T, M, kPart + 3, kParts>(w, p.a + k, p.lda, factor, p.sum);
  if constexpr (kStripe + 1 < S) add_while_next<T, M, kStripe + 1>(p, k, factor, ahead, w, next);
}

// Columns [first, first + kStripes * kLanes); false, and nothing stored, where care is needed.
template <class T, int M, bool kCareful>
bool rows_group(const ThinProduct& p, int64_t first, const std::byte* ahead) {
  constexpr int S = kStripes<T>;
  constexpr bool kIsE4M3 = std::is_same_v<T, E4M3>;
  constexpr int64_t kElementBytes = 4 / T::kPerWord, kChunk = kLanes * T::kPerWord;
  constexpr int64_t kChunkBytes = S * kLanes * static_cast<int64_t>(sizeof(Words));
  const float* scales =
      kIsE4M3 ? p.scale + p.first_row / kThinScaleBlock * p.scale_stride : nullptr;
  const std::byte* row[S][kLanes];
  for (int64_t r = 0; r < S * kLanes; ++r) {
    const int64_t n = first + r < p.N ? first + r : p.N - 1;
    row[r / kLanes][r % kLanes] = p.data + n * p.stride_bytes;
  }
  // A stripe past the last column repeats it, and is stored nowhere.
  const auto real = static_cast<int>((p.N - first + kLanes - 1) / kLanes);
  Vec sum[S][M];
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
      sum[s][m] =
          p.start == Start::kOld && s < real ? load(p.c + m * p.ldc + first + s * kLanes) : Vec{};
  Pipe<T, M> pipe{.row = row, .a = p.a, .lda = p.lda, .sum = sum, .nan = {}};
  Words words[2][S][kLanes];
  // Words of n k from k on.
  const auto read = [&](int64_t k, int64_t n, Words(*w)[kLanes]) {
    for (int s = 0; s < S; ++s) {
      for (int r = 0; r < kLanes; ++r) {
        w[s][r] = Words{};
        __builtin_memcpy(&w[s][r], row[s][r] + k * kElementBytes,
                         static_cast<size_t>(n * kElementBytes));
        if constexpr (kIsE4M3 && !kCareful) pipe.nan |= E4M3::nan_bits(w[s][r]);
      }
      transpose(w[s]);
    }
  };
  int now = 0;
  read(0, p.K < kChunk ? p.K : kChunk, words[now]);
  for (int64_t k = 0; k < p.K; k += kChunk) {
    const int64_t n = p.K - k < kChunk ? p.K - k : kChunk, next = k + kChunk;
    float scale = 0.0f;
    if constexpr (kIsE4M3) {
      scale = scales[(k + p.first_col) / kThinScaleBlock];
      // From 2^8 on, the factor overflows.
      if (!kCareful && scale >= 128.0f) return false;
    }
    if (!kCareful && next + kChunk <= p.K) {
      add_while_next<T, M, 0>(pipe, k, scale * 0x1p120f - Vec{}, ahead, words[now], words[1 - now]);
    } else {
      prefetch_part<T, 0, 1>(ahead);
      if (kCareful || n < kChunk)
        add_careful<T, M>(words[now], n, p.a + k, p.lda, scale, sum);
      else
        add_part<T, M, 0, 1>(words[now], p.a + k, p.lda, scale * 0x1p120f - Vec{}, sum);
      if (next < p.K) read(next, p.K - next < kChunk ? p.K - next : kChunk, words[1 - now]);
    }
    if (ahead != nullptr) ahead += kChunkBytes;
    now = 1 - now;
  }
  if constexpr (kIsE4M3 && !kCareful)
    if (E4M3::any_nan(pipe.nan)) return false;
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
      if (s < real) store(p.c + m * p.ldc + first + s * kLanes, sum[s][m]);
  return true;
}

template <class T, int M>
void rows_of(const ThinProduct& p) {
  constexpr int64_t kGroup = kStripes<T> * kLanes;
  for (int64_t first = 0; first < p.N; first += kGroup) {
    const std::byte* ahead =
        p.ahead == nullptr ? nullptr : p.data + (first + kGroup) * p.stride_bytes;
    if (!rows_group<T, M, false>(p, first, ahead)) rows_group<T, M, true>(p, first, nullptr);
  }
}

// kLanes elements that lie one after the other. kCareful: any bytes of e4m3 and any scale; else
// factor is the scale times 2^120.
template <class T, bool kCareful>
inline Vec load_elements(const std::byte* from, Vec factor) {
  if constexpr (std::is_same_v<T, F32>) {
    return load(reinterpret_cast<const float*>(from));
  } else if constexpr (std::is_same_v<T, BF16>) {
    return reinterpret_cast<Vec>(load_halves(from) << 16);
  } else {
    const Words w = load_bytes(from);
    return kCareful ? E4M3::decode_byte(w & 0xffu, factor) : E4M3::decode_signed(w, factor);
  }
}

constexpr int64_t kAheadBytes = 4096;  // of stored rows, to ask for before they are read

// Whether load_elements must be careful in kDeep stored rows of columns [begin, end), which are of
// one column of blocks.
template <class T, int kDeep>
inline bool needs_care(const ThinProduct& p, int64_t k, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, E4M3>) {
    constexpr auto kStep = static_cast<int64_t>(sizeof(Words));
    if ((end - begin) % kStep != 0) return true;
    const float* scale = p.scale + (p.first_col + begin) / kThinScaleBlock;
    Words nan = {};
    for (int d = 0; d < kDeep; ++d) {
      if (scale[(p.first_row + k + d) / kThinScaleBlock * p.scale_stride] >= 128.0f) return true;
      for (int64_t i = begin; i < end; i += kStep) {
        Words w;
        __builtin_memcpy(&w, p.data + (k + d) * p.stride_bytes + i, sizeof(w));
        nan |= E4M3::nan_bits(w);
      }
    }
    return E4M3::any_nan(nan);
  }
  return false;
}

// kDeep stored rows from k on, for columns [begin, end) of one column of blocks: each element's
// chain goes on through them. Asks for the rows that are `ahead` further, one each vector.
template <class T, int M, int kDeep, bool kCareful>
void columns_strip(const ThinProduct& p, int64_t k, int64_t begin, int64_t end, int64_t ahead) {
  constexpr int64_t kElementBytes = 4 / T::kPerWord;
  Vec factor[kDeep] = {};
  if constexpr (std::is_same_v<T, E4M3>)
    for (int d = 0; d < kDeep; ++d) {
      const float scale = p.scale[(p.first_row + k + d) / kThinScaleBlock * p.scale_stride +
                                  (p.first_col + begin) / kThinScaleBlock];
      factor[d] = (kCareful ? scale : scale * 0x1p120f) - Vec{};
    }
  const std::byte* const data = p.data + k * p.stride_bytes;
  const float* const a = p.a + k;
  const int64_t N = p.N, lda = p.lda, ldc = p.ldc, stride = p.stride_bytes;
  const bool from_zero = k == 0 && p.start == Start::kZero;
  float* const first = p.c;
  const std::byte* asked = data + ahead * stride + begin * kElementBytes;
  const std::byte* const last_asked = asked + kDeep * stride;
  const auto ask = [&] {
    for (int64_t i = 0; i < (end - begin) * kElementBytes; i += 64)
      __builtin_prefetch(asked + i, 0, 3);
    asked += stride;
  };
  for (int64_t n = begin; n < end; n += kLanes) {
    if (asked != last_asked) ask();
    Vec w[kDeep];
    std::byte tail[kLanes * kElementBytes];
#pragma GCC unroll 8
    for (int d = 0; d < kDeep; ++d) {
      const std::byte* from = data + d * stride + n * kElementBytes;
      if (N - n < kLanes) {
        __builtin_memset(tail, 0, sizeof(tail));
        __builtin_memcpy(tail, from, static_cast<size_t>((N - n) * kElementBytes));
        from = tail;
      }
      w[d] = load_elements<T, kCareful>(from, factor[d]);
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      float* c = first + m * ldc + n;
      Vec sum = from_zero ? Vec{} : load(c);
#pragma GCC unroll 8
      for (int d = 0; d < kDeep; ++d) sum = multiply_add(a[m * lda + d] - Vec{}, w[d], sum);
      store(c, sum);
    }
  }
  while (asked != last_asked) ask();
}
template <class T, int M, int kDeep>
void columns_of(const ThinProduct& p, int64_t k) {
  const int64_t row_bytes = p.N * 4 / T::kPerWord;
  const int64_t ahead = kDeep > kAheadBytes / row_bytes ? kDeep : kAheadBytes / row_bytes;
  for (int64_t n = 0, end = 0; n < p.N; n = end) {
    const int64_t block_end =
        (p.first_col + n) / kThinScaleBlock * kThinScaleBlock + kThinScaleBlock - p.first_col;
    end = p.N < block_end ? p.N : block_end;
    if (needs_care<T, kDeep>(p, k, n, end))
      columns_strip<T, M, kDeep, true>(p, k, n, end, ahead);
    else
      columns_strip<T, M, kDeep, false>(p, k, n, end, ahead);
  }
}
template <class T, int M>
void columns_of(const ThinProduct& p) {
  constexpr int kDeep = 8;
  int64_t k = 0;
  for (; k + kDeep <= p.K; k += kDeep) columns_of<T, M, kDeep>(p, k);
  for (; k < p.K; ++k) columns_of<T, M, 1>(p, k);
}

// Rows and vectors of columns of a block of tall products: sums beside operands in registers.
constexpr int kTallBlock = kLanes == 8 ? 6 : kLanes, kTallVecs = kLanes == 8 ? 2 : 1;

// M rows from m0 on. Strides of a are constants, so that a few registers hold its addresses.
template <class T, int M, int64_t kRowStride, int64_t kStride>
void tall_block(const TallProduct& p, int64_t m0) {
  constexpr int64_t kElementBytes = 4 / T::kPerWord;
  const int64_t K = p.K, N = p.N, ldc = p.ldc, stride = p.stride_bytes;
  const int64_t ahead_stride = p.ahead == nullptr ? stride : p.ahead_stride;
  const bool from_zero = p.start == Start::kZero;
  for (int64_t n = 0; n < N; n += kTallVecs * kLanes) {
    float* const c = p.c + m0 * ldc + n;
    Vec sum[M][kTallVecs];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < kTallVecs; ++v)
        sum[m][v] = from_zero ? Vec{} : load(c + m * ldc + v * kLanes);
    const float* a = p.a + m0 * kRowStride;
    const std::byte* from = p.data + n * kElementBytes;
    const std::byte* ahead = p.ahead == nullptr ? from : p.ahead + n * kElementBytes;
    for (int64_t k = 0; k < K; ++k, a += kStride, from += stride, ahead += ahead_stride) {
      __builtin_prefetch(ahead, 0, 2);
      Vec w[kTallVecs];
#pragma GCC unroll 2
      for (int v = 0; v < kTallVecs; ++v)
        w[v] = load_elements<T, false>(from + v * kLanes * kElementBytes, Vec{});
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const Vec x = a[m * kRowStride] - Vec{};
#pragma GCC unroll 2
        for (int v = 0; v < kTallVecs; ++v) sum[m][v] = multiply_add(x, w[v], sum[m][v]);
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < kTallVecs; ++v) store(c + m * ldc + v * kLanes, sum[m][v]);
  }
}
// Blocks of M rows while there are that many, then one of what is left.
template <class T, int M, int64_t kRowStride, int64_t kStride>
void tall_of(const TallProduct& p, int64_t m) {
  for (; m + M <= p.M; m += M) tall_block<T, M, kRowStride, kStride>(p, m);
  if constexpr (M > 1)
    if (m < p.M) tall_of<T, M - 1, kRowStride, kStride>(p, m);
}

// Vectors of a panel's rows whose chains run beside each other, decoded two by two: all of them for
// one row of a, as the chains of two wait for their sums; more rows have chains enough.
template <int M>
constexpr int kPanelVecs = M == 1 ? static_cast<int>(kPanelRows) / kLanes : 2;

// 128 k of a panel for kPanelVecs vectors of its rows: c goes on from itself, or from zero.
template <class T, int M>
void panel_block(const std::byte* words, const float* a, int64_t lda, float scale, bool from_zero,
                 float* c, int64_t ldc) {
  constexpr int kVecs = kPanelVecs<M>;
  const Vec factor = scale * 0x1p120f - Vec{};
  Vec sum[kVecs][M];
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sum[v][m] = from_zero ? Vec{} : load(c + m * ldc + v * kLanes);
  for (int64_t k = 0; k < kThinScaleBlock; k += T::kPerWord, words += kPanelRows * 4) {
#pragma GCC unroll 2
    for (int first = 0; first < kVecs; first += 2) {
      Vec real[2][T::kPerWord];
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const std::byte* from = words + (first + v) * sizeof(Words);
        Words w;
        __builtin_memcpy(&w, from, sizeof(w));
        __builtin_prefetch(from + kPanelAhead, 0, 3);
        T::decode(w, factor, real[v]);
      }
#pragma GCC unroll 8
      for (int e = 0; e < T::kPerWord; ++e)
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const Vec x = a[m * lda + k + e] - Vec{};
#pragma GCC unroll 2
          for (int v = 0; v < 2; ++v)
            sum[first + v][m] = multiply_add(x, real[v][e], sum[first + v][m]);
        }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) store(c + m * ldc + v * kLanes, sum[v][m]);
}

template <class T, int M>
void panels_of(const ThinProduct& p) {
  if constexpr (T::kPerWord > 1) {
    constexpr int64_t kBlockBytes = kThinScaleBlock / T::kPerWord * kPanelRows * 4;
    for (int64_t first = 0; first < p.N; first += kPanelRows) {
      const std::byte* words = p.data + first / kPanelRows * p.stride_bytes;
      for (int64_t k = 0; k < p.K; k += kThinScaleBlock, words += kBlockBytes) {
        const int64_t block =
            (p.first_row + first) / kThinScaleBlock * p.scale_stride + k / kThinScaleBlock;
        const float scale = std::is_same_v<T, E4M3> ? p.scale[block] : 1.0f;
        const bool from_zero = k == 0 && p.start == Start::kZero;
        for (int64_t v = 0; v < kPanelRows; v += kPanelVecs<M> * kLanes)
          panel_block<T, M>(words + 4 * v, p.a + k, p.lda, scale, from_zero, p.c + first + v,
                            p.ldc);
      }
    }
  }
}

enum class Order : uint8_t { kRows, kColumns, kPanels };

constexpr int kMostRows = kLanes == 16 ? kThinRows : 4;  // with 32 registers, with 16

template <class T, int M>
void of_rows(const ThinProduct& p, Order order) {
  if (p.M == M) {
    if (order == Order::kRows) return rows_of<T, M>(p);
    return order == Order::kColumns ? columns_of<T, M>(p) : panels_of<T, M>(p);
  }
  if constexpr (M > 1) of_rows<T, M - 1>(p, order);
}
void of_type(const ThinProduct& p, Order order) {
  if (p.dtype == DType::kF32) return of_rows<F32, kMostRows>(p, order);
  if (p.dtype == DType::kBF16) return of_rows<BF16, kMostRows>(p, order);
  of_rows<E4M3, kMostRows>(p, order);
}
void rows(const ThinProduct& p) { of_type(p, Order::kRows); }
void columns(const ThinProduct& p) { of_type(p, Order::kColumns); }
void panels(const ThinProduct& p) { of_type(p, Order::kPanels); }
template <int64_t kRowStride, int64_t kStride>
void tall(const TallProduct& p) {
  if (p.dtype == DType::kF32) return tall_of<F32, kTallBlock, kRowStride, kStride>(p, 0);
  tall_of<BF16, kTallBlock, kRowStride, kStride>(p, 0);
}

}  // namespace

extern const ThinKernels HADAL_TABLE;
const ThinKernels HADAL_TABLE = {.most_rows = kMostRows,
                                 .rows = rows,
                                 .columns = columns,
                                 .tall_rows = tall<kTallDepth, 1>,
                                 .tall_panel = tall<1, kTallRows>,
                                 .panels = panels};

}  // namespace hadal::ops::cpu
