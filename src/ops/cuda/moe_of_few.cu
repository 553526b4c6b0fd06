// A mixture of experts for few tokens on CUDA: two launches of gemv/moe.h.
//
//   T tokens   D model width   F hidden width   K choices of a token
// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/detail/launch.cuh"
#include "ops/cuda/gemv_matrices.h"
#include "ops/cuda/operands.h"
#include "ops/few_tokens.h"

namespace hadal::ops::cuda {
namespace {

using hadal::cuda::GemvConfig;
using hadal::cuda::GemvWeight;
using hadal::cuda::MoeFewArgs;

// The arguments that follow from the weights; false where the kernels do not take them.
bool find_moe(const MoeWeights& w, MoeFewArgs* args) {
  if (w.w1.empty() && w.shared_w1.empty()) return false;
  const DType dtype = w.w1.empty() ? w.shared_w1.data.dtype() : w.w1[0].data.dtype();
  if (dtype != DType::kBF16 && dtype != DType::kE4M3) return false;
  args->type = dtype == DType::kBF16 ? GemvWeight::kBF16 : GemvWeight::kE4M3;
  if (!w.w1.empty()) {
    if (!find_matrices(w.w1, dtype, &args->w1) || !find_matrices(w.w3, dtype, &args->w3) ||
        !find_matrices(w.w2, dtype, &args->w2))
      return false;
    args->f = static_cast<int>(w.w1[0].data.dim(0));
    args->num_experts = static_cast<int>(w.w1.size());
  }
  if (!w.shared_w1.empty()) {
    if (!find_matrices({&w.shared_w1, 1}, dtype, &args->shared_w1) ||
        !find_matrices({&w.shared_w3, 1}, dtype, &args->shared_w3) ||
        !find_matrices({&w.shared_w2, 1}, dtype, &args->shared_w2))
      return false;
    args->shared_f = static_cast<int>(w.shared_w1.data.dim(0));
  }
  return true;
}

}  // namespace

void moe_of_few_pays(Context& ctx, const MoeWeights& w, In x, bool* pays) {
  MoeFewArgs args{};
  *pays = ctx.numerics == Numerics::kFastest && x.dtype() == DType::kBF16 && is_aligned(x) &&
          x.stride(0) % 8 == 0 && x.dim(0) <= GemvConfig::kMaxRows &&
          x.dim(1) <= MoeFewArgs::kMostWidth &&
          (w.sums == nullptr || x.num_elements() <= w.sums->lines) && find_moe(w, &args);
}

void moe_of_few(Context& ctx, const MoeWeights& w, In x, In topk_idx, In topk_weight, Acc y) {
  const int64_t T = x.dim(0), D = x.dim(1), K = topk_idx.dim(1);
  MoeFewArgs args{};
  HADAL_CHECK(x.dtype() == DType::kBF16 && is_aligned(x) && x.stride(0) % 8 == 0 &&
                  (y.dtype() == DType::kBF16 || y.dtype() == DType::kF32) &&
                  (K == 0 || (topk_idx.stride(1) == 1 && topk_weight.stride(1) == 1)) &&
                  find_moe(w, &args),
              "moe_of_few on ", x.str(), ": it takes bf16 rows and weights in bf16 or block FP8 ",
              "with widths that are multiples of 16; ask moe_of_few_pays first");
  if (T == 0) return;
  Tensor hidden, shared_hidden;
  const Block hidden_memory = ctx.memory.take_tensor(DType::kBF16, {T, K, args.f}, &hidden);
  const Block shared_memory =
      ctx.memory.take_tensor(DType::kBF16, {T, args.shared_f}, &shared_hidden);
  args.x = x.raw();
  args.x_row_stride = x.stride(0);
  if (K > 0) {
    args.topk_idx = topk_idx.data<int32_t>();
    args.idx_row_stride = topk_idx.stride(0);
    args.topk_weight = topk_weight.data<float>();
    args.weight_row_stride = topk_weight.stride(0);
  }
  args.hidden = hidden.raw();
  args.shared_hidden = shared_hidden.raw();
  args.y = y.raw();
  args.y_row_stride = y.stride(0);
  args.y_is_f32 = y.dtype() == DType::kF32;
  args.num_tokens = static_cast<int>(T);
  args.d = static_cast<int>(D);
  args.num_choices = static_cast<int>(K);
  args.first_expert = static_cast<int>(std::max<int64_t>(w.first_expert, 0));
  args.sums = hadal::cuda::peer_sum_args(w.sums);
  moe_few_tokens(args, stream_of(ctx));
  check_launch(ctx, "moe_of_few", x);
}

}  // namespace hadal::ops::cuda
