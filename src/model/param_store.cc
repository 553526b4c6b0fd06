// ParamStore: layout, initialisation, and the view that modules compute with.
// SPDX-License-Identifier: Apache-2.0
#include "model/param_store.h"

#include <algorithm>

#include "core/rng.h"
#include "core/transfer.h"
#include "ops/copy.h"

namespace hadal {
namespace {

constexpr int64_t kPad = 64;  // elements
constexpr int kNumGroups = 4;

int group_of(const ParamInfo& info) {
  if (info.kind == ParamKind::kBuffer) return 3;
  if (info.kind == ParamKind::kNorm) return 2;
  return info.name.ends_with("gate.weight") ? 1 : 0;
}

int64_t padded(const Shape& shape) { return (shape.num_elements() + kPad - 1) / kPad * kPad; }

}  // namespace

ParamStore::ParamStore(Context& ctx, const Config& config, DType dtype, Extent extent) {
  const int last_group = extent == Extent::kAll ? 3 : extent == Extent::kTrained ? 2 : 0;
  resize(config, tree);
  int64_t size[kNumGroups] = {0, 0, 0, 0};
  for_each_param(
      config, [&](const ParamInfo& info, Tensor&) { size[group_of(info)] += padded(info.shape); },
      tree);
  int64_t next[kNumGroups], total = 0;
  for (int g = 0; g < kNumGroups; ++g) {
    next[g] = total;
    if (g <= last_group) total += size[g];
    end_[g] = total;
  }
  memory_ = ctx.memory.take_tensor(dtype, {total}, &flat_);
  ops::fill(ctx, 0.0, flat_);
  for_each_param(
      config,
      [&](const ParamInfo& info, Tensor& leaf) {
        const int g = group_of(info);
        if (g > last_group) return;
        leaf = flat_.rows(next[g], info.shape.num_elements()).view(info.shape);
        next[g] += padded(info.shape);
      },
      tree);
}

Tensor ParamStore::matrices() const { return flat_.rows(0, end_[0]); }
Tensor ParamStore::decayed() const { return flat_.rows(0, end_[1]); }
Tensor ParamStore::norms() const { return flat_.rows(end_[1], end_[2] - end_[1]); }
Tensor ParamStore::trained() const { return flat_.rows(0, end_[2]); }

void init_params(Context& ctx, const Config& config, uint64_t seed, ModelParams<Tensor>& tree) {
  constexpr int64_t kTask = int64_t{1} << 16;  // elements
  for_each_param(
      config,
      [&](const ParamInfo& info, Tensor& leaf) {
        const int64_t n = leaf.num_elements();
        const Rng rng(seed, stream_id("init." + info.name));
        HostWrite values(ctx, leaf);
        const Tensor& to = values.tensor();
        ctx.threads.parallel_for((n + kTask - 1) / kTask, [&](int64_t task, int) {
          for (int64_t i = task * kTask; i < std::min(n, (task + 1) * kTask); ++i) {
            double value = info.kind == ParamKind::kNorm ? 1.0 : 0.0;
            if (info.shape.rank >= 2)
              value = config.initializer_range * rng.normal(static_cast<uint64_t>(i));
            store_element(to.raw(), to.dtype(), i, value);
          }
        });
        values.finish();
      },
      tree);
}

HostTree::HostTree(Context& ctx, const Config& config, ModelParams<Tensor>& from) : tree(from) {
  for_each_param(
      config,
      [&](const ParamInfo&, Tensor& leaf) {
        if (leaf.empty()) return;
        copies_.emplace_back(ctx, leaf);
        leaf = copies_.back().tensor();
      },
      tree);
}

Weights weights_of(const Config& config, ModelParams<Tensor>& masters,
                   ModelParams<Tensor>* copies) {
  Weights weights;
  resize(config, weights);
  const auto fill = [](const ParamInfo&, Operand& to, Tensor& from) {
    if (!from.empty()) to = Operand(from);
  };
  for_each_param(config, fill, weights, masters);
  if (copies != nullptr) for_each_param(config, fill, weights, *copies);
  return weights;
}

}  // namespace hadal
