// Launches products with few rows.
// SPDX-License-Identifier: Apache-2.0
#include "core/check.h"
#include "ops/cuda/detail/programmatic_launch.h"
#include "ops/cuda/detail/tensor_map.h"
#include "ops/cuda/gemv/kernel.cuh"
#include "ops/cuda/gemv/moe.cuh"

namespace hadal::cuda {

namespace {

template <class Args>
void launch_gemv(void (*kernel)(Args), dim3 grid, const Args& args, cudaStream_t stream,
                 int warps = GemvConfig::kWarps, int shared_bytes = 0) {
  HADAL_CHECK(grid.y <= 65535 && grid.z <= 65535, "gemv: ", grid.y, " x ", grid.z,
              " batches are more than a CUDA grid has");
  const ProgrammaticLaunch launch(grid, warps * 32, shared_bytes, stream);
  HADAL_CHECK_CUDA(launch.start(kernel, args));
}

}  // namespace

void gemv_nt(const GemvArgs& args, cudaStream_t stream) {
  HADAL_CHECK(args.k % 16 == 0, "gemv_nt needs K a multiple of 16; got ", args.k);
  constexpr int kPerBlock = GemvConfig::kWarps * GemvConfig::kOutputs;
  const dim3 grid(static_cast<unsigned>((args.n + kPerBlock - 1) / kPerBlock),
                  static_cast<unsigned>(args.batches));
  switch (args.type) {
    case GemvWeight::kBF16:
      return launch_gemv(gemv_nt_kernel<GemvWeight::kBF16>, grid, args, stream);
    case GemvWeight::kF32:
      return launch_gemv(gemv_nt_kernel<GemvWeight::kF32>, grid, args, stream);
    case GemvWeight::kE4M3:
      return launch_gemv(gemv_nt_kernel<GemvWeight::kE4M3>, grid, args, stream);
  }
}

void gemv_nn(const GemvArgs& args, cudaStream_t stream) {
  HADAL_CHECK(args.n % 8 == 0 && args.type == GemvWeight::kBF16 && args.counts == nullptr,
              "gemv_nn needs a bf16 weight and N a multiple of 8; got N ", args.n);
  launch_gemv(gemv_nn_kernel,
              dim3(static_cast<unsigned>((args.n + kGemvColumns - 1) / kGemvColumns),
                   static_cast<unsigned>(args.batches), static_cast<unsigned>(args.m)),
              args, stream, GemvConfig::kColumnWarps);
}

namespace {

template <GemvWeight kType>
void launch_moe(const MoeFewArgs& args, cudaStream_t stream) {
  const auto tokens = static_cast<unsigned>(args.num_tokens);
  const int blocks = (args.shared_f + args.num_choices * args.f) / kMoeUnits;
  launch_gemv(moe_up_kernel<kType>, dim3(static_cast<unsigned>(blocks), tokens), args, stream,
              kMoeUpWarps, kMoeUpWarps * staged_bytes<kType>(moe_up_share(args.d)));
  launch_gemv(moe_down_kernel<kType>, dim3(static_cast<unsigned>(args.d / kMoeOutputs), tokens),
              args, stream, kMoeDownWarps, kMoeDownWarps * staged_bytes<kType>(args.down_share));
}

}  // namespace

void moe_few_tokens(const MoeFewArgs& given, cudaStream_t stream) {
  MoeFewArgs args = given;
  HADAL_CHECK(args.d % 16 == 0 && args.f % 16 == 0 && args.shared_f % 16 == 0,
              "moe_few_tokens needs widths that are multiples of 16; got ", args.d, ", ", args.f,
              " and ", args.shared_f);
  if (args.num_choices == 0) args.f = 0;
  if (args.num_tokens == 0 || args.shared_f + args.num_choices * args.f == 0) return;
  args.down_share = moe_down_share(args.num_choices, args.f, args.shared_f);
  switch (args.type) {
    case GemvWeight::kBF16:
      return launch_moe<GemvWeight::kBF16>(args, stream);
    case GemvWeight::kE4M3:
      return launch_moe<GemvWeight::kE4M3>(args, stream);
    case GemvWeight::kF32:
      HADAL_FAIL("moe_few_tokens takes bf16 and e4m3 weights");
  }
}

}  // namespace hadal::cuda
