// What the roles of absorbed MLA decode share: shared memory, and the list of tiles of a block.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/cuda/detail/ptx.cuh"
#include "ops/cuda/mla_decode/config.h"

namespace hadal::cuda {

struct MlaDecodeShared {
  using C = MlaDecodeConfig;
  uint8_t* q;      // [kChunks][kRows][128]
  uint8_t* pages;  // [2][kChunks][kPage][128]
  float* row_max;  // [2][kRows]      m0, m1 of the pair
  float* row_sum;  // [2][2][kRows]   by parity of the tile
  uint64_t* q_full;
  uint64_t* q_empty;
  uint64_t* full;       // [2 pages][2 halves]; the rope columns count to the half of the non-owner
  uint64_t* empty;      // [2 pages][2 halves]
  uint64_t* published;  // [2 pages]   P and the maximum
  __device__ explicit MlaDecodeShared(uint8_t* raw) {
    q = raw;
    pages = q + C::kChunks * C::kChunkBytes;
    row_max = reinterpret_cast<float*>(pages + 2 * C::kChunks * C::kChunkBytes);
    row_sum = row_max + 2 * C::kRows;
    q_full = reinterpret_cast<uint64_t*>(row_sum + 4 * C::kRows);
    q_empty = q_full + 1;
    full = q_empty + 1;
    empty = full + 4;
    published = empty + 4;
  }
  __device__ uint8_t* page(int buffer) const {
    return pages + buffer * C::kChunks * C::kChunkBytes;
  }
};

// Tokens of a sequence's context.
__device__ inline int mla_decode_length(const MlaDecodeArgs& args, int seq) {
  return __ldg(args.positions + __ldg(args.offsets + seq + 1) - 1) + 1;
}
// Pages of a split of a sequence.
__device__ inline int mla_decode_per_split(const MlaDecodeArgs& args, int num_pages) {
  return args.pages_per_split > 0 ? args.pages_per_split : mla_decode_pages_per_split(num_pages);
}
// Splits that the row of a query token sees, which alone counts in its result.
__device__ inline int mla_decode_splits(const MlaDecodeArgs& args, int row, int length,
                                        int per_split) {
  const int limit = length - args.num_queries + row / args.num_heads;
  return limit / (MlaDecodeConfig::kPage * per_split) + 1;
}

// The tiles of one block, in order; every role walks the same list. The blocks of a cluster take
// neighbouring row tiles of the same split.
template <int kCluster>
struct MlaDecodeTiles {
  using C = MlaDecodeConfig;
  const MlaDecodeArgs& args;
  int row_groups, total, at, stride, rank;
  int seq = 0, split = 0, row0 = 0, length = 0, per_split = 0, first_page = 0, num_pages = 0;
  __device__ explicit MlaDecodeTiles(const MlaDecodeArgs& a) : args(a) {
    const int row_tiles = (a.num_queries * a.num_heads + C::kRows - 1) / C::kRows;
    row_groups = row_tiles / kCluster;
    total = row_groups * a.max_splits * a.num_seqs;
    at = static_cast<int>(blockIdx.x) / kCluster;
    stride = static_cast<int>(gridDim.x) / kCluster;
    rank = static_cast<int>(blockIdx.x) % kCluster;
  }
  __device__ bool next() {
    while (at < total) {
      const int group = at % row_groups, rest = at / row_groups;
      split = rest % args.max_splits;
      seq = rest / args.max_splits;
      at += stride;
      length = mla_decode_length(args, seq);
      const int pages = (length + C::kPage - 1) / C::kPage;
      per_split = mla_decode_per_split(args, pages);
      first_page = split * per_split;
      num_pages = min(per_split, pages - first_page);
      row0 = (group * kCluster + rank) * C::kRows;
      if (num_pages > 0) return true;
    }
    return false;
  }
  __device__ int rows() const { return min(C::kRows, args.num_queries * args.num_heads - row0); }
};

}  // namespace hadal::cuda
