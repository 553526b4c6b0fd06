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

// Query tokens of a sequence.
__device__ inline int mla_decode_queries(const MlaDecodeArgs& args, int seq) {
  return args.num_queries > 0 ? args.num_queries
                              : __ldg(args.offsets + seq + 1) - __ldg(args.offsets + seq);
}
// The sequence that item `at` of a list belongs to: first[seq] <= at < first[seq + 1].
__device__ inline int mla_decode_seq_of(const int* first, int num_seqs, int at) {
  int low = 0, high = num_seqs;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (__ldg(first + middle) <= at) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}
// Tokens of a sequence's context.
__device__ inline int mla_decode_length(const MlaDecodeArgs& args, int seq) {
  return __ldg(args.positions + __ldg(args.offsets + seq + 1) - 1) + 1;
}
// Pages of a split of a sequence.
__device__ inline int mla_decode_per_split(const MlaDecodeArgs& args, int num_pages) {
  return args.pages_per_split > 0 ? args.pages_per_split : mla_decode_pages_per_split(num_pages);
}
// Splits that the row of a query token sees, which alone counts in its result. first_query: its
// sequence's first query token's position.
__device__ inline int mla_decode_splits(const MlaDecodeArgs& args, int row, int first_query,
                                        int per_split) {
  const int limit = first_query + row / args.num_heads;
  return limit / (MlaDecodeConfig::kPage * per_split) + 1;
}

// The tiles of one block, in order; every role walks the same list. The blocks of a cluster take
// neighbouring row tiles of the same split; the last of an odd number has a neighbour without rows.
template <int kCluster>
struct MlaDecodeTiles {
  using C = MlaDecodeConfig;
  const MlaDecodeArgs& args;
  int total, at, stride, rank;
  int seq = 0, split = 0, row0 = 0, length = 0, per_split = 0, first_page = 0, num_pages = 0;
  int num_queries = 0;
  int first_row = 0;  // of the sequence, among those of all
  __device__ explicit MlaDecodeTiles(const MlaDecodeArgs& a) : args(a) {
    total = a.num_queries > 0 ? row_groups(a, a.num_queries) * a.max_splits * a.num_seqs
                              : __ldg(a.first_tile + a.num_seqs);
    at = static_cast<int>(blockIdx.x) / kCluster;
    stride = static_cast<int>(gridDim.x) / kCluster;
    rank = static_cast<int>(blockIdx.x) % kCluster;
  }
  __device__ static int row_groups(const MlaDecodeArgs& a, int queries) {
    return (queries * a.num_heads + kCluster * C::kRows - 1) / (kCluster * C::kRows);
  }
  __device__ bool next() {
    while (at < total) {
      int local = at;  // among the tiles of its sequence
      if (args.num_queries > 0) {
        const int tiles = row_groups(args, args.num_queries) * args.max_splits;
        seq = at / tiles;
        local = at % tiles;
      } else {
        seq = mla_decode_seq_of(args.first_tile, args.num_seqs, at);
        local = at - __ldg(args.first_tile + seq);
      }
      at += stride;
      num_queries = mla_decode_queries(args, seq);
      const int groups = row_groups(args, num_queries), group = local % groups;
      split = local / groups;
      first_row = __ldg(args.offsets + seq) * args.num_heads;
      length = mla_decode_length(args, seq);
      per_split = mla_decode_per_split(args, (length + C::kPage - 1) / C::kPage);
      first_page = split * per_split;
      row0 = (group * kCluster + rank) * C::kRows;
      // Pages that the last row of the cluster's tiles sees.
      const int last_row = min((group + 1) * kCluster * C::kRows, seq_rows()) - 1;
      const int seen = (first_query() + last_row / args.num_heads) / C::kPage + 1;
      num_pages = min(per_split, seen - first_page);
      if (num_pages > 0) return true;
    }
    return false;
  }
  __device__ int seq_rows() const { return num_queries * args.num_heads; }
  __device__ int first_query() const { return length - num_queries; }  // its position
  __device__ int rows() const { return min(C::kRows, seq_rows() - row0); }
  // Copies of q that the tile takes: one at least, as somebody waits for it.
  __device__ int q_boxes(int box_rows) const { return max(1, (rows() + box_rows - 1) / box_rows); }
  __device__ int q_row() const { return first_row + row0; }
};

}  // namespace hadal::cuda
