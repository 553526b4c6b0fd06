// The packing kernels, compiled once per instruction set.
//
// The including file sets HADAL_TABLE and includes words.h.
// SPDX-License-Identifier: Apache-2.0

namespace hadal::ops::cpu {
namespace {

typedef float Vec __attribute__((vector_size(sizeof(Words))));
typedef int32_t Ints __attribute__((vector_size(sizeof(Words))));

// How kPerWord elements of one row, stored in a 32-bit word, become floats: kLanes rows at once.
struct F32 {
  static constexpr int kPerWord = 1;
  static void decode(Words w, Vec, Vec* out) { out[0] = reinterpret_cast<Vec>(w); }
};
struct BF16 {
  static constexpr int kPerWord = 2;
  static void decode(Words w, Vec, Vec* out) {
    out[0] = reinterpret_cast<Vec>(w << 16);
    out[1] = reinterpret_cast<Vec>(w & 0xffff0000u);
  }
};
// An e4m3 byte in the top byte of a word, shifted right by 4 with its sign, is a float of the
// element times 2^-120, exactly; the scale carries 2^120. NOTE: zeros, subnormals (which would be
// subnormal floats, slow on many processors) and NaN go through decode_special.
struct E4M3 {
  static constexpr int kPerWord = 4;
  static void decode(Words w, Vec scale, Vec* out) {
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      const Ints top = reinterpret_cast<Ints>(w << (24 - 8 * b));
      const Ints bits = (top >> 4) & static_cast<int32_t>(0x87f00000u);
      out[b] = reinterpret_cast<Vec>(bits) * scale;
    }
  }
  // The same for any byte. As if normal, a magnitude is f = (1 + m/8) 2^(e-7); where e is 0 the
  // element is 2 f - 2^-6, which is less than f there and not less elsewhere.
  static void decode_special(Words w, Vec scale, Vec* out) {
    for (int b = 0; b < 4; ++b) {
      const Words byte = w >> (8 * b);
      const Vec f = reinterpret_cast<Vec>(((byte & 0x7fu) << 20) + (120u << 23));
      const Vec low = (f + f) - 0x1p-6f;
      const Words sign = (byte & 0x80u) << 24;
      const Vec v = low < f ? low : f;
      const Vec real = reinterpret_cast<Vec>(reinterpret_cast<Words>(v) | sign) * scale;
      const Ints nan = (byte & 0x7fu) == 0x7fu;
      const Ints bits = reinterpret_cast<Ints>(real);
      out[b] = reinterpret_cast<Vec>((nan & 0x7fc00000) | (~nan & bits));
    }
  }
  // Whether a byte is a zero, a subnormal or NaN: magnitude below 8, or 127.
  static bool has_special(const Words* w) {
    Words normal = ~Words{}, nan = {};
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const Words magnitude = w[i] & 0x7f7f7f7fu;
      normal &= (magnitude | 0x80808080u) - 0x08080808u;
      nan |= magnitude + 0x01010101u;
    }
    const Words special = (~normal | nan) & 0x80808080u;
    uint32_t lane[kLanes], all = 0;
    __builtin_memcpy(lane, &special, sizeof(special));
    for (int i = 0; i < kLanes; ++i) all |= lane[i];
    return all != 0;
  }
};

constexpr int64_t kScaleBlock = 128;
constexpr int64_t kAhead = 512;  // bytes of a row to ask for before they are read

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
      special = s >= 128.0f || E4M3::has_special(w);  // from 2^8 on, the factor overflows
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

void bf16_columns(int64_t rows, int64_t K, const bf16* data, int64_t stride, int64_t width,
                  float* panel) {
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
const PackKernels HADAL_TABLE = {.rows = rows, .bf16_columns = bf16_columns, .e4m3_row = e4m3_row};

}  // namespace hadal::ops::cpu
