// Shapes and arguments of absorbed MLA decode over the paged latent cache on Hopper.
//
//   S sequences   Q query tokens of a sequence   T of all   H heads   R = 512 latent
//   Dr = 64 rope width
//
// out[s, i, h] = softmax(scale q[s, i, h] . cache rows 0 .. n - Q + i) cache[:, :R], n the tokens
// of the sequence's context, its Q query tokens included. Sequences may have different Q: chunks of
// prompts and decode rows are one call. Pages that no row of a tile sees are left out. The context
// is cut into splits of whole pages, merged in split order. kInvariant: the cut depends on the
// context length alone, so a row's bits do not depend on the batch, nor on the query tokens after
// it up to 256 Ki tokens. kFastest: it depends on the batch as well. bf16 in and out, f32 softmax
// and accumulation; deterministic in both modes. Rows of the cache are bf16 or FP8; FP8 ones are
// widened to bf16, exactly, on their way to the matrix unit, so both compute the same from the same
// values.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda/detail/cache_rows.h"

namespace hadal::cuda {

struct MlaDecodeConfig {
  static constexpr int kPage = 64;  // tokens of a cache page
  static constexpr int kRows = 64;  // (token, head) rows of a block
  static constexpr int kLatent = 512;
  static constexpr int kRope = 64;
  static constexpr int kWidth = kLatent + kRope;
  static constexpr int kChunks = kWidth / 64;  // 64 columns: one 128-byte swizzled tile
  static constexpr int kChunkBytes = kPage * 128;
  static constexpr int kThreads = 384;  // a warpgroup that brings pages, two that multiply

  static constexpr int kMaxSplits = 512;

  static constexpr int kSharedBytes = 1024 + 3 * kChunks * kChunkBytes + 6 * kRows * 4 + 16 * 8;
};

enum class MlaDecodeSplit : uint8_t { kInvariant, kFastest };

struct MlaDecodeArgs {
  CacheRows rows;
  const void* q;         // [T, H, R+Dr] bf16
  const void* pages;     // [num_pages, kPage, R+Dr] bf16, or [.., .., kV3Fp8Row.bytes()]
  const int* table;      // [S, table_stride]
  const int* offsets;    // [S+1] first query token of each sequence
  const int* positions;  // [T] of the query tokens; the last one ends its sequence's context
  void* out;             // [T, H, R] bf16
  void* partial_out;     // of each sequence [max_splits, Q*H, R] f16, normalised
  float* partial_lse;    // of each sequence [max_splits, Q*H] f32, base 2
  int* first_tile;       // [S+1] scratch, where num_queries is 0
  int64_t num_pages;
  int num_seqs, num_tokens, num_heads;
  int num_queries;  // of every sequence; 0: they differ
  int table_stride;
  int max_splits;       // splits that the longest context of this launch has
  int pages_per_split;  // 0: by mla_decode_pages_per_split of each sequence's own length
  int num_sms;          // SMs this launch may use
  float scale;
};

// Pages of a split in the invariant mode.
__host__ __device__ inline int mla_decode_pages_per_split(int num_pages) {
  const int even = (num_pages + 255) / 256;
  return even < 16 ? 16 : even;
}

// Rows of q that one copy brings: a whole tile where tiles are full or sequences differ, else few,
// not to read rows of the next sequence for nothing.
__host__ __device__ inline int mla_decode_q_box_rows(const MlaDecodeArgs& args) {
  return args.num_queries * args.num_heads % MlaDecodeConfig::kRows == 0 ? MlaDecodeConfig::kRows
                                                                         : 16;
}

// Fills max_splits and pages_per_split for contexts of at most max_length tokens.
void mla_decode_plan(MlaDecodeArgs& args, MlaDecodeSplit split, int max_length);

void mla_decode_sm90(const MlaDecodeArgs& args, cudaStream_t stream);

}  // namespace hadal::cuda
