// Launches decode attention.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>
#include <mutex>

#include "core/check.h"
#include "ops/cuda/decode_attention/kernel.cuh"
#include "ops/cuda/detail/tensor_map.h"

namespace hadal::cuda {

namespace {

int rows_of(const DecodeAttentionArgs& args) { return args.tokens <= 2 ? args.tokens : 4; }

// Bytes of rows, and of what else is not there while pages are used.
int64_t rows_bytes(const DecodeAttentionArgs& args) {
  using C = DecodeAttentionConfig;
  const int64_t rows = rows_of(args);
  const int64_t widest = std::max({args.d, args.q_rank, args.heads * args.v, C::kLatent});
  return std::max(rows * (widest + 8) * 2,
                  C::kWarps * rows * 64 * static_cast<int64_t>(sizeof(float)));
}
int64_t early_pages_at(const DecodeAttentionArgs& args) {
  return (std::max<int64_t>(rows_bytes(args), DecodeAttentionConfig::kHeadBytes) + 127) / 128 * 128;
}

// Which of the barriers is the stream's: kernels of two streams may run side by side, those of one
// do not. A stream that takes a destroyed one's handle takes its barrier too.
int barrier_of(cudaStream_t stream) {
  static std::mutex mutex;
  static std::map<cudaStream_t, int> known;
  const std::lock_guard lock(mutex);
  const int next = static_cast<int>(known.size());
  const int barrier = known.try_emplace(stream, next).first->second;
  HADAL_CHECK(barrier < DecodeAttentionConfig::kMostStreams, "decode_attention runs in up to ",
              DecodeAttentionConfig::kMostStreams, " streams of a process; this is one more");
  return barrier;
}

template <GemvWeight kType, int kRows, CacheRows kFormat>
void launch(const DecodeAttentionArgs& args, const ops::cuda::FaultSite& no_page, int num_sms,
            cudaStream_t stream) {
  const auto kernel = decode_attention_kernel<kType, kRows, kFormat>;
  const auto shared = static_cast<int>(std::max<int64_t>(
      rows_bytes(args), args.pages_at + DecodeAttentionConfig::pages_bytes(args.rows)));
  HADAL_CHECK_CUDA(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeCooperative;
  attributes[0].val.cooperative = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(num_sms));
  config.blockDim = dim3(DecodeAttentionConfig::kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  HADAL_CHECK_CUDA(cudaLaunchKernelEx(&config, kernel, args, no_page));
}

template <GemvWeight kType, CacheRows kFormat>
void choose_rows(const DecodeAttentionArgs& args, const ops::cuda::FaultSite& no_page, int num_sms,
                 cudaStream_t stream) {
  switch (rows_of(args)) {
    case 1:
      return launch<kType, 1, kFormat>(args, no_page, num_sms, stream);
    case 2:
      return launch<kType, 2, kFormat>(args, no_page, num_sms, stream);
    default:
      return launch<kType, 4, kFormat>(args, no_page, num_sms, stream);
  }
}

template <GemvWeight kType>
void choose_format(const DecodeAttentionArgs& args, const ops::cuda::FaultSite& no_page,
                   int num_sms, cudaStream_t stream) {
  if (args.rows == CacheRows::kFp8)
    choose_rows<kType, CacheRows::kFp8>(args, no_page, num_sms, stream);
  else
    choose_rows<kType, CacheRows::kBF16>(args, no_page, num_sms, stream);
}

}  // namespace

int64_t decode_attention_shared_bytes(const DecodeAttentionArgs& args) {
  using C = DecodeAttentionConfig;
  return std::max<int64_t>(rows_bytes(args), C::kHeadBytes + C::pages_bytes(args.rows));
}

void decode_attention_sm90(DecodeAttentionArgs args, const ops::cuda::FaultSite& no_page,
                           int num_sms, cudaStream_t stream) {
  using C = DecodeAttentionConfig;
  static_assert(C::kWarps == C::kHeads && C::kThreads == C::kLatent);
  HADAL_CHECK(args.tokens >= 1 && args.tokens <= C::kMaxTokens && args.max_splits >= 1 &&
                  args.max_splits <= C::kMaxSplits,
              "decode_attention takes up to ", C::kMaxTokens, " tokens and ", C::kMaxSplits,
              " splits; got ", args.tokens, " and ", args.max_splits);
  args.pages_early = early_pages_at(args) + C::pages_bytes(args.rows) <= C::kMostShared;
  args.pages_at = args.pages_early ? static_cast<int>(early_pages_at(args)) : C::kHeadBytes;
  args.barrier = barrier_of(stream);
  switch (args.type) {
    case GemvWeight::kBF16:
      return choose_format<GemvWeight::kBF16>(args, no_page, num_sms, stream);
    case GemvWeight::kE4M3:
      return choose_format<GemvWeight::kE4M3>(args, no_page, num_sms, stream);
    case GemvWeight::kF32:
      HADAL_FAIL("decode_attention takes bf16 and e4m3 weights");
  }
}

}  // namespace hadal::cuda
