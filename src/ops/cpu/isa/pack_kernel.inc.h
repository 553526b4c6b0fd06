// The packing kernels, compiled once per instruction set.
//
// The including file sets HADAL_TABLE and includes decode.h.
// SPDX-License-Identifier: Apache-2.0

namespace hadal::ops::cpu {
namespace {

constexpr int64_t kScaleBlock = 128;
constexpr int64_t kAhead = 512;        // bytes of a row to ask for before they are read
constexpr int64_t kAheadWords = 1024;  // of a panel

// `lanes` rows of a panel (at most kLanes) from row `first`; their k from k0 on.
template <class T>
void pack_stripe(const StoredRows& from, int64_t first, int64_t lanes, int64_t K,
                 const float* scale, int64_t first_k, int64_t width, float* panel) {
  constexpr int64_t kElementBytes = 4 / T::kPerWord, kChunk = kLanes * T::kPerWord;
  const std::byte* row[kLanes];
  for (int64_t r = 0; r < kLanes; ++r) {
    const int64_t i = first + r < from.rows ? first + r : from.rows - 1;
    row[r] = from.data + i * from.row_bytes;
  }
  for (int64_t k = 0; k < K; k += kChunk) {
    Words w[kLanes];
    const int64_t n = K - k < kChunk ? K - k : kChunk;
    if (n == kChunk) {
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        __builtin_memcpy(&w[r], row[r] + k * kElementBytes, sizeof(Words));
        if (from.ahead != nullptr)
          __builtin_prefetch(row[r] + (from.ahead - from.data) + k * kElementBytes, 0, 2);
        else if ((K - k) * kElementBytes > kAhead)
          __builtin_prefetch(row[r] + k * kElementBytes + kAhead, 0, 2);
      }
    } else {
      for (int r = 0; r < kLanes; ++r) {
        w[r] = Words{};
        __builtin_memcpy(&w[r], row[r] + k * kElementBytes, static_cast<size_t>(n * kElementBytes));
      }
    }
    Vec factor = {};
    bool special = false;
    if constexpr (std::is_same_v<T, E4M3>) {
      const float s = scale[(k + first_k) / kScaleBlock];
      factor = s * 0x1p120f - Vec{};
      special = s >= 128.0f || E4M3::needs_special(w);  // from 2^8 on, the factor overflows
    }
    transpose(w);
    float* out = panel + k * width;
    // A store may run over into the next k, which comes later; not past the end of the panel.
    if (!special && n == kChunk && (lanes == kLanes || k + kChunk < K)) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        Vec v[T::kPerWord];
        T::decode(w[i], factor, v);
#pragma GCC unroll 4
        for (int e = 0; e < T::kPerWord; ++e)
          __builtin_memcpy(out + (i * T::kPerWord + e) * width, &v[e], sizeof(Vec));
      }
      continue;
    }
    for (int i = 0; i * T::kPerWord < n; ++i) {
      Vec v[T::kPerWord];
      if constexpr (std::is_same_v<T, E4M3>)
        E4M3::decode_special(w[i], scale[(k + first_k) / kScaleBlock] - Vec{}, v);
      else
        T::decode(w[i], factor, v);
      for (int e = 0; e < T::kPerWord && i * T::kPerWord + e < n; ++e) {
        float* to = out + (i * T::kPerWord + e) * width;
        if (lanes == kLanes)
          __builtin_memcpy(to, &v[e], sizeof(Vec));
        else
          __builtin_memcpy(to, &v[e], static_cast<size_t>(lanes) * sizeof(float));
      }
    }
  }
}

template <class T>
void pack_rows(const StoredRows& from, int64_t K, const float* scale, int64_t first_k,
               int64_t width, float* panel) {
  for (int64_t r = 0; r < width; r += kLanes)
    pack_stripe<T>(from, r, width - r < kLanes ? width - r : kLanes, K, scale, first_k, width,
                   panel + r);
}

void rows(DType dtype, const StoredRows& from, int64_t K, const float* scale, int64_t first_k,
          int64_t width, float* panel) {
  if (dtype == DType::kF32) return pack_rows<F32>(from, K, scale, first_k, width, panel);
  if (dtype == DType::kBF16) return pack_rows<BF16>(from, K, scale, first_k, width, panel);
  return pack_rows<E4M3>(from, K, scale, first_k, width, panel);
}

template <class T>
void unpack(const uint32_t* words, int64_t K, const float* scale, int64_t first_k, float* panel) {
  constexpr int64_t kWidth = 2 * kLanes, kTile = kLanes;
  for (int64_t first = 0; first < K / T::kPerWord; first += kTile) {
    const int64_t left = K / T::kPerWord - first, count = left < kTile ? left : kTile;
    for (int64_t v = 0; v < kWidth; v += kLanes) {
      const uint32_t* from = words + first * kPanelRows + v;
      Vec factor = {};
      bool special = false;
      if constexpr (std::is_same_v<T, E4M3>) {
        Words w[kLanes] = {};
        for (int64_t i = 0; i < count; ++i)
          __builtin_memcpy(&w[i], from + i * kPanelRows, sizeof(Words));
        const float s = scale[(first * T::kPerWord + first_k) / kScaleBlock];
        special = s >= 128.0f || (count == kTile && E4M3::needs_special(w)) || count < kTile;
        factor = (special ? s : s * 0x1p120f) - Vec{};  // from 2^8 on, the product overflows
      }
      float* out = panel + first * T::kPerWord * kWidth + v;
      for (int64_t i = 0; i < count; ++i, from += kPanelRows) {
        Words w;
        __builtin_memcpy(&w, from, sizeof(w));
        __builtin_prefetch(from + kAheadWords, 0, 2);
        Vec real[T::kPerWord];
        bool done = false;
        if constexpr (std::is_same_v<T, E4M3>) {
          done = special;
          if (special) E4M3::decode_special(w, factor, real);
        }
        if (!done) T::decode(w, factor, real);
#pragma GCC unroll 4
        for (int e = 0; e < T::kPerWord; ++e, out += kWidth)
          __builtin_memcpy(out, &real[e], sizeof(Vec));
      }
    }
  }
}

void panel(DType dtype, const uint32_t* words, int64_t K, const float* scale, int64_t first_k,
           float* panel) {
  if (dtype == DType::kBF16) return unpack<BF16>(words, K, scale, first_k, panel);
  unpack<E4M3>(words, K, scale, first_k, panel);
}

// Whole panels of kWidth rows: a few vector moves each k.
template <int64_t kWidth>
void bf16_columns(int64_t K, const bf16* data, int64_t stride, float* panel) {
  for (int64_t k = 0; k < K; ++k)
#pragma GCC unroll 8
    for (int64_t r = 0; r < kWidth; r += kLanes) {
      const Words bits = load_halves(data + k * stride + r) << 16;
      __builtin_memcpy(panel + k * kWidth + r, &bits, sizeof(bits));
    }
}

void bf16_columns(int64_t rows, int64_t K, const bf16* data, int64_t stride, int64_t width,
                  float* panel) {
  if (rows == width && width == 2 * kLanes) return bf16_columns<2 * kLanes>(K, data, stride, panel);
  for (int64_t k = 0; k < K; ++k) {
    const bf16* from = data + k * stride;
    float* to = panel + k * width;
    for (int64_t r = 0; r < rows; ++r) {
      const uint32_t bits = static_cast<uint32_t>(from[r].bits) << 16;
      __builtin_memcpy(to + r, &bits, sizeof(bits));
    }
    for (int64_t r = rows; r < width; ++r) to[r] = 0.0f;
  }
}

void e4m3_row(const uint8_t* from, float scale, int64_t n, float* to) {
  for (int64_t r = 0; r < n; ++r) {
    const uint32_t byte = from[r], magnitude = byte & 0x7fu;
    const uint32_t as_normal = (magnitude << 20) + (120u << 23);
    float f;
    __builtin_memcpy(&f, &as_normal, sizeof(f));
    const float low = (f + f) - 0x1p-6f;
    const float v = low < f ? low : f;
    const float real = (byte & 0x80u) != 0 ? -(v * scale) : v * scale;
    to[r] = magnitude == 0x7fu ? std::numeric_limits<float>::quiet_NaN() : real;
  }
}

}  // namespace

extern const PackKernels HADAL_TABLE;
const PackKernels HADAL_TABLE = {
    .rows = rows, .panel = panel, .bf16_columns = bf16_columns, .e4m3_row = e4m3_row};

}  // namespace hadal::ops::cpu
