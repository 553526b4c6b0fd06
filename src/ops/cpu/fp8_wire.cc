// Rows of FP8 on the wire, on the CPU.
//
//   T tokens   K copies of a token   W width   B bytes of a row on the wire
// SPDX-License-Identifier: Apache-2.0
#include "ops/fp8_wire.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "ops/cpu/pages.h"
#include "ops/cpu/tiles.h"

namespace hadal::ops::cpu {
namespace {

std::byte* row_of(const Tensor& wire, int64_t row) {
  return static_cast<std::byte*>(wire.raw()) + row * wire.dim(1);
}

// Calls fn(token, its places that are not -1).
template <class Fn>
void for_tokens(Context& ctx, const Tensor& places, int64_t work, const Fn& fn) {
  const int64_t K = places.dim(1);
  for_rows(ctx, places.dim(0), work * K, [&](int64_t begin, int64_t end, int) {
    std::vector<int64_t> of_token;
    for (int64_t t = begin; t < end; ++t) {
      of_token.clear();
      for (int64_t k = 0; k < K; ++k)
        if (const int32_t place = places.data<int32_t>()[t * K + k]; place != -1)
          of_token.push_back(place);
      fn(t, of_token);
    }
  });
}

void check_copy(int64_t row, const Tensor& wire) {
  HADAL_CHECK(row >= 0 && row < wire.dim(0), "a copy is number ", row, " of ", wire.dim(0));
}

}  // namespace

void pack_wire_rows(Context& ctx, In x, In copy, Out wire) {
  const int64_t W = x.dim(1), B = wire.dim(1);
  for_tokens(ctx, copy, W, [&](int64_t t, const std::vector<int64_t>& copies) {
    if (copies.empty()) return;
    check_copy(copies[0], wire);
    std::byte* const first = row_of(wire, copies[0]);
    auto* const elements = reinterpret_cast<e4m3*>(first);
    auto* const scales = reinterpret_cast<uint8_t*>(first + W);
    float scratch[kTileSize];
    for (int64_t w0 = 0; w0 < W; w0 += kTileSize) {
      const int64_t count = std::min(kTileSize, W - w0);
      const float* v = read_row(x, t * x.stride(0) + w0, count, scratch);
      scales[w0 / kTileSize] = to_wire_scale(quantise_tile(v, count, elements + w0));
    }
    std::memset(scales + num_tiles(W), 0, static_cast<size_t>(B - W - num_tiles(W)));
    for (size_t k = 1; k < copies.size(); ++k) {
      check_copy(copies[k], wire);
      std::memcpy(row_of(wire, copies[k]), first, static_cast<size_t>(B));
    }
  });
}

void copy_wire_rows(Context& ctx, In from, In copy, Out wire) {
  for_tokens(ctx, copy, from.dim(1), [&](int64_t t, const std::vector<int64_t>& copies) {
    for (const int64_t row : copies) {
      check_copy(row, wire);
      std::memcpy(row_of(wire, row), row_of(from, t), static_cast<size_t>(from.dim(1)));
    }
  });
}

void place_wire_rows(Context& ctx, In from, In row_of_choice, const PagedRows& rows) {
  const int64_t W = rows.slab.dim(2), tiles = num_tiles(W);
  for_tokens(ctx, row_of_choice, W, [&](int64_t t, const std::vector<int64_t>& places) {
    const std::byte* const row = row_of(from, t);
    const auto* const scales = reinterpret_cast<const uint8_t*>(row + W);
    for (const int64_t place : places) {
      std::memcpy(rows.slab.data<e4m3>() + row_offset(rows, place), row, static_cast<size_t>(W));
      const int64_t column = page_of(rows, place / kPageRows) * kPageRows + place % kPageRows;
      for (int64_t i = 0; i < tiles; ++i)
        rows.scale.data<float>()[i * rows.scale.stride(0) + column] = from_wire_scale(scales[i]);
    }
  });
}

}  // namespace hadal::ops::cpu
