// Which list of operations a plan has.
// SPDX-License-Identifier: Apache-2.0
#include "plan/layer_ops.h"

#include <cmath>

#include "plan/runtime_ops.h"

namespace hadal::plan {

LayerShape layer_shape(const TrainPlan& p) {
  const int64_t T = p.micro_batch_tokens();
  // A rank that has all experts has all rows, however they are spread.
  const double imbalance = p.is_runtime() && p.mesh.ep == 1 ? 1.0 : p.row_imbalance;
  const double rows = static_cast<double>(T * p.model.num_experts_per_tok) * imbalance;
  return {.plan = &p, .tokens = T, .routed_rows = std::llround(rows)};
}

OpList part_ops(const LayerShape& s, Part part, Pass pass) {
  return s.plan->is_runtime() ? runtime::part_ops(s, part, pass) : trace::part_ops(s, part, pass);
}

}  // namespace hadal::plan
