// LatentRows: rows of the compute type where they lie; FP8 rows quantised and widened.
// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/latent_rows.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/cpu/isa/row_kernels.h"

namespace hadal::ops::cpu {
namespace {

// Quantises a row of elements v into `to`. amax passes over NaN, which stays one in e4m3.
template <class T>
void quantise(const Fp8LatentRow& fp8, const T* v, char* to) {
  auto* const elements = reinterpret_cast<e4m3*>(to);
  auto* const scales = reinterpret_cast<float*>(to + fp8.scale_at());
  for (int64_t begin = 0; begin < fp8.R; begin += Fp8LatentRow::kTile) {
    const int64_t end = std::min(begin + Fp8LatentRow::kTile, fp8.R);
    float amax = 0.0f;
    for (int64_t i = begin; i < end; ++i)
      amax = std::max(amax, static_cast<float>(std::fabs(v[i])));
    const float scale = latent_scale(amax);
    scales[begin / Fp8LatentRow::kTile] = scale;
    for (int64_t i = begin; i < end; ++i)
      store_element(elements, DType::kE4M3, i, static_cast<double>(v[i] / static_cast<T>(scale)));
  }
  convert(v + fp8.R, DTypeOf<T>::value, to + fp8.key_at(), DType::kBF16, fp8.Dr);
}

template <class T>
void quantise_from(const Fp8LatentRow& fp8, const void* row, DType dtype, char* to) {
  thread_local std::vector<T> elements;
  elements.resize(static_cast<size_t>(fp8.R + fp8.Dr));
  convert(row, dtype, elements.data(), DTypeOf<T>::value, fp8.R + fp8.Dr);
  quantise(fp8, elements.data(), to);
}

// Columns [begin, end) of a row as bf16.
void widen(const Fp8LatentRow& fp8, const char* from, int64_t begin, int64_t end, bf16* to) {
  const auto* const scales = reinterpret_cast<const float*>(from + fp8.scale_at());
  int64_t i = begin;
  while (i < std::min(end, fp8.R)) {
    const int64_t tile = i / Fp8LatentRow::kTile;
    const int64_t stop = std::min({end, fp8.R, (tile + 1) * Fp8LatentRow::kTile});
    row_kernels().widen_scaled(reinterpret_cast<const e4m3*>(from) + i, scales[tile],
                               to + (i - begin), stop - i);
    i = stop;
  }
  if (i == end) return;
  const auto* const key = reinterpret_cast<const bf16*>(from + fp8.key_at());
  std::copy(key + (i - fp8.R), key + (end - fp8.R), to + (i - begin));
}

}  // namespace

LatentRows::LatentRows(const LatentPages& cache, int64_t seq)
    : cache_(cache), table_(cache.table.data<int32_t>() + seq * cache.table.stride(0)) {}

char* LatentRows::row(int64_t position) const {
  const Tensor& pages = cache_.pages;
  const int64_t page = table_[position / kCachePageTokens];
  HADAL_CHECK(page >= 0 && page < pages.dim(0), "position ", position, " has no page in the cache");
  const int64_t index = page * pages.stride(0) + position % kCachePageTokens * pages.stride(1);
  return static_cast<char*>(pages.raw()) + index * static_cast<int64_t>(dtype_size(pages.dtype()));
}

void LatentRows::store(int64_t position, const void* from, DType dtype) const {
  char* const to = row(position);
  if (!cache_.fp8)
    convert(from, dtype, to, cache_.pages.dtype(), cache_.width());
  else if (dtype == DType::kF64)
    quantise_from<double>(*cache_.fp8, from, dtype, to);
  else
    quantise_from<float>(*cache_.fp8, from, dtype, to);
}

MatrixView LatentRows::keys(int64_t position, int64_t n, int64_t begin, int64_t count) const {
  const Tensor& pages = cache_.pages;
  const char* from = row(position);
  if (!cache_.fp8) return MatrixView{from, pages.dtype(), pages.stride(1), 1}.block(0, begin);
  thread_local std::vector<bf16> wide;
  wide.resize(static_cast<size_t>(kCachePageTokens * cache_.width()));
  for (int64_t r = 0; r < n; ++r)
    widen(*cache_.fp8, from + r * pages.stride(1), begin, begin + count, wide.data() + r * count);
  return {wide.data(), DType::kBF16, count, 1};
}

const std::byte* LatentRows::ahead(int64_t position, int64_t begin) const {
  if (cache_.fp8) return nullptr;
  return reinterpret_cast<const std::byte*>(row(position)) +
         begin * static_cast<int64_t>(dtype_size(cache_.pages.dtype()));
}

MatrixView LatentRows::values(int64_t position, int64_t n, int64_t begin, int64_t count) const {
  MatrixView v = keys(position, n, begin, count);
  std::swap(v.row_stride, v.k_stride);
  return v;
}

}  // namespace hadal::ops::cpu
