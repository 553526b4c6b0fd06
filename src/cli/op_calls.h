// Single operations of a plan, ready to be timed: each with its own buffers on the device.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <vector>

#include "core/context.h"
#include "parallel/team.h"
#include "plan/layer_ops.h"

namespace hadal::cli {

// `run` may be called again and again. `recent` is what a step has just touched before: activations
// that the operation reads, and blocks that the pool gives out again for those it writes. Weights,
// gradients, optimizer state and what is kept for backward are not among them.
struct OpCall {
  plan::OpUse use;
  std::vector<Block> memory;
  std::vector<Tensor> recent;
  std::function<void()> run;
};

// team: this rank among others; none: alone. Calls that a group of ranks make together have to be
// run by all of them; a rank that has no part in one has no `run`.
// REQUIRES: plan.is_runtime(); `use` is one of plan::runtime::all_ops(plan). All arguments but
// `use` outlive the call.
OpCall make_op_call(Context& ctx, const plan::TrainPlan& plan, const plan::OpUse& use, Team* team);

}  // namespace hadal::cli
