// Launches MLA training attention: forward; statistics, queries, keys and the shared key backward.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/check.h"
#include "ops/cuda/detail/shared_bytes.h"
#include "ops/cuda/detail/tensor_map.h"
#include "ops/cuda/mla_attention/backward_kernels.cuh"
#include "ops/cuda/mla_attention/forward.cuh"

namespace hadal::cuda {

namespace {

using C = MlaAttentionConfig;

// Calls fn with the head whose nope width is `nope`.
template <class Fn>
void with_head(int nope, const Fn& fn) {
  switch (nope) {
    case 128:
      return fn(MlaAttentionHead<128, 64, 128>{});
    case 64:
      return fn(MlaAttentionHead<64, 32, 64>{});
    case 32:
      return fn(MlaAttentionHead<32, 16, 32>{});
    default:
      HADAL_FAIL("mla_attention has no kernel for a nope width of ", nope);
  }
}

CUtensorMap map_rows(const MlaRows& rows, const MlaAttentionCall& call, int heads, int width,
                     int box_rows) {
  return make_tensor_map(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, rows.data, call.num_tokens,
                         (heads - 1) * rows.head_stride + width, rows.stride,
                         static_cast<uint32_t>(box_rows), 64);
}

// NOTE: no memset, which the kernels around it do not overlap: in a graph it costs ten
// microseconds.
__global__ void clear_counters_kernel(int* counters) { counters[threadIdx.x] = 0; }

// Blocks stay for task after task; where there are few tasks, one block each.
unsigned num_blocks(const MlaAttentionCall& call) {
  const int64_t row_blocks = (call.max_len + C::kRows - 1) / C::kRows;
  return static_cast<unsigned>(
      std::min<int64_t>(call.num_sms, row_blocks * call.num_seqs * call.num_heads));
}

template <class D>
void launch_forward(const MlaForwardArgs& args, cudaStream_t stream) {
  using S = MlaForwardShared<D>;
  const auto kernel = mla_forward_kernel_sm90<D>;
  allow_shared_bytes<mla_forward_kernel_sm90<D>, S::kBytes>();
  const MlaAttentionCall& call = args.call;
  const int heads = call.num_heads;
  const CUtensorMap q = map_rows(args.q, call, heads, D::kNope + D::kRope, C::kRows / 2),
                    kv = map_rows(args.kv, call, heads, D::kNope + D::kValue, C::kForwardKeys),
                    k_pe = map_rows(args.k_pe, call, 1, D::kRope, C::kForwardKeys);
  clear_counters_kernel<<<1, C::kNumCounters, 0, stream>>>(call.counters);
  kernel<<<num_blocks(call), C::kThreads, S::kBytes, stream>>>(args, q, kv, k_pe);
}

template <class D>
void launch_backward(const MlaBackwardArgs& args, cudaStream_t stream) {
  using S = MlaBackwardShared<D>;
  const auto queries = mla_backward_kernel_sm90<D, false>, keys = mla_backward_kernel_sm90<D, true>;
  allow_shared_bytes<mla_backward_kernel_sm90<D, false>, S::kBytes>();
  allow_shared_bytes<mla_backward_kernel_sm90<D, true>, S::kBytes>();
  const MlaAttentionCall& call = args.call;
  const int heads = call.num_heads;
  const MlaBackwardMaps maps{
      map_rows(args.q, call, heads, D::kNope + D::kRope, C::kStep),
      map_rows(args.kv, call, heads, D::kNope + D::kValue, C::kStep),
      map_rows(args.k_pe, call, 1, D::kRope, C::kStep),
      map_rows(args.dout, call, heads, D::kValue, C::kStep),
  };
  const auto slots = static_cast<unsigned>(mla_backward_slots(call.num_tokens, call.num_seqs));
  const auto head_groups = static_cast<unsigned>((heads + C::kHeadGroup - 1) / C::kHeadGroup);
  mla_backward_stats_kernel<D><<<dim3(slots, head_groups), 256, 0, stream>>>(args);
  queries<<<num_blocks(call), C::kThreads, S::kBytes, stream>>>(args, maps);
  keys<<<num_blocks(call), C::kThreads, S::kBytes, stream>>>(args, maps);
  const int64_t quads = call.num_tokens * (D::kRope / 4);
  mla_backward_dk_pe_kernel<D>
      <<<static_cast<unsigned>((quads + 255) / 256), 256, 0, stream>>>(args);
}

}  // namespace

bool mla_attention_sm90_has(int64_t nope, int64_t rope, int64_t value) {
  return (nope == 128 || nope == 64 || nope == 32) && rope * 2 == nope && value == nope;
}

void mla_attention_forward_sm90(const MlaForwardArgs& args, int nope, cudaStream_t stream) {
  if (args.call.num_tokens == 0 || args.call.num_seqs == 0) return;
  with_head(nope, [&]<class D>(D) { launch_forward<D>(args, stream); });
}

void mla_attention_backward_sm90(const MlaBackwardArgs& args, int nope, cudaStream_t stream) {
  if (args.call.num_tokens == 0 || args.call.num_seqs == 0) return;
  with_head(nope, [&]<class D>(D) { launch_backward<D>(args, stream); });
}

}  // namespace hadal::cuda
