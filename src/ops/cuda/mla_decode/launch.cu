// Launches absorbed MLA decode and the merge of its splits.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/check.h"
#include "ops/cuda/detail/programmatic_launch.h"
#include "ops/cuda/detail/shared_bytes.h"
#include "ops/cuda/detail/tensor_map.h"
#include "ops/cuda/mla_decode/kernel.cuh"

namespace hadal::cuda {

namespace {

template <int kCluster, CacheRows kFormat>
void launch_decode(const MlaDecodeArgs& args, const CUtensorMap& map_q,
                   const CUtensorMap& map_pages, int tiles, cudaStream_t stream) {
  using C = MlaDecodeConfig;
  allow_shared_bytes<mla_decode_kernel_sm90<kCluster, kFormat>, C::kSharedBytes>();
  const int blocks =
      std::min((tiles + kCluster - 1) / kCluster, args.num_sms / kCluster) * kCluster;
  const ProgrammaticLaunch launch(static_cast<unsigned>(blocks), C::kThreads, C::kSharedBytes,
                                  stream, kCluster);
  HADAL_CHECK_CUDA(launch.start(mla_decode_kernel_sm90<kCluster, kFormat>, args, map_q, map_pages));
}

// Tiles of 64 rows: where sequences differ, at least as many as there are.
int num_row_tiles(const MlaDecodeArgs& args) {
  using C = MlaDecodeConfig;
  if (args.num_queries > 0)
    return (args.num_queries * args.num_heads + C::kRows - 1) / C::kRows * args.num_seqs;
  return (args.num_tokens * args.num_heads + C::kRows - 1) / C::kRows + args.num_seqs;
}

// Two blocks share the pages they bring where every sequence has an even number of tiles; where
// they differ, where most have several, as one in two of an odd number is idle.
bool takes_clusters(const MlaDecodeArgs& args) {
  using C = MlaDecodeConfig;
  if (args.rows != CacheRows::kBF16) return false;
  if (args.num_queries > 0)
    return (args.num_queries * args.num_heads + C::kRows - 1) / C::kRows % 2 == 0;
  return args.num_tokens * args.num_heads >= 4 * C::kRows * args.num_seqs;
}

}  // namespace

void mla_decode_plan(MlaDecodeArgs& args, MlaDecodeSplit split, int max_length) {
  using C = MlaDecodeConfig;
  const int pages = (max_length + C::kPage - 1) / C::kPage;
  int per_split = mla_decode_pages_per_split(pages);
  args.pages_per_split = 0;
  if (split == MlaDecodeSplit::kFastest) {
    const int blocks = num_row_tiles(args);
    // As many splits as fill the SMs once, of at least two pages; past one wave, none.
    const int splits = std::max(1, args.num_sms / blocks);
    per_split = std::max(2, (pages + splits - 1) / splits);
    args.pages_per_split = per_split;
  }
  args.max_splits = (pages + per_split - 1) / per_split;
}

void mla_decode_sm90(const MlaDecodeArgs& args, cudaStream_t stream) {
  using C = MlaDecodeConfig;
  HADAL_CHECK(args.max_splits >= 1 && args.max_splits <= C::kMaxSplits, "mla_decode takes 1 to ",
              C::kMaxSplits, " splits; got ", args.max_splits);
  if (args.num_seqs == 0) return;
  const int64_t rows = static_cast<int64_t>(args.num_tokens) * args.num_heads;
  const CUtensorMap map_q =
      make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, args.q, rows, C::kWidth, C::kWidth,
                      static_cast<uint32_t>(mla_decode_q_box_rows(args)), 64);
  const bool fp8 = args.rows == CacheRows::kFp8;
  // Of FP8 rows, the keys.
  const CUtensorMap map_pages =
      make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
                      static_cast<const uint8_t*>(args.pages) + (fp8 ? kV3Fp8Row.key_at() : 0),
                      args.num_pages * C::kPage, fp8 ? C::kRope : C::kWidth,
                      fp8 ? kV3Fp8Row.bytes() / 2 : C::kWidth, C::kPage, 64);
  const bool clusters = takes_clusters(args);
  if (args.num_queries == 0) {
    const ProgrammaticLaunch launch(1, 32, 0, stream);
    HADAL_CHECK_CUDA(
        launch.start(clusters ? mla_decode_tiles_kernel<2> : mla_decode_tiles_kernel<1>, args));
  }
  const int tiles = num_row_tiles(args) * args.max_splits;
  if (fp8) {
    launch_decode<1, CacheRows::kFp8>(args, map_q, map_pages, tiles, stream);
  } else if (clusters) {
    launch_decode<2, CacheRows::kBF16>(args, map_q, map_pages, tiles, stream);
  } else {
    launch_decode<1, CacheRows::kBF16>(args, map_q, map_pages, tiles, stream);
  }
  if (args.max_splits == 1) return;
  const ProgrammaticLaunch launch(static_cast<unsigned>(rows), 256, 0, stream);
  HADAL_CHECK_CUDA(launch.start(mla_decode_merge_kernel, args));
}

}  // namespace hadal::cuda
