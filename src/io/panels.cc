// Packing of a loaded model's weights.
// SPDX-License-Identifier: Apache-2.0
#include "io/panels.h"

#include "core/memory.h"
#include "core/panels.h"
#include "io/drop_pages.h"

namespace hadal::io {

bool is_for_panels(const ParamInfo& info) {
  if (info.name == "head" || info.name.ends_with("eh_proj")) return true;
  return info.kind == ParamKind::kMatrix && !info.name.ends_with("attn.wkv_b");
}

bool goes_into_panels(const HfParam& param) {
  const StoredType type = param.data->type;
  if (type == StoredType::kI32) return true;
  const Shape& shape = param.info.shape;
  return is_for_panels(param.info) && (type == StoredType::kBF16 || type == StoredType::kE4M3) &&
         shape[0] % kPanelRows == 0 && shape[1] % kScaleBlock == 0;
}

Block pack_weights(Context& ctx, const HfCheckpoint& checkpoint, Weights& weights) {
  if (ctx.device.kind != DeviceKind::kCpu) return {};
  // Calls fn(leaf, whether it is mapped from a file) for each weight that fits.
  const auto for_each_fitting = [&](const auto& fn) {
    auto param = checkpoint.params.begin();
    for_each_param(
        checkpoint.config,
        [&](const ParamInfo& info, Operand& leaf) {
          const HfParam& from = *param++;
          const auto* at = static_cast<const std::byte*>(leaf.data.raw());
          if (is_for_panels(info) && fits_panels(leaf))
            fn(leaf, at >= from.data->data && at < from.data->data + from.data->bytes);
        },
        weights);
  };
  size_t bytes = 0;
  for_each_fitting([&](const Operand& leaf, bool is_mapped) {
    if (is_mapped) bytes += tensor_bytes(leaf.data.dtype(), leaf.data.shape());
  });
  Block block = ctx.memory.take(bytes);
  for_each_fitting([&](Operand& leaf, bool is_mapped) {
    if (!is_mapped) {
      leaf = pack_panels(ctx, leaf, leaf.data.raw());
      return;
    }
    const Tensor to = block.tensor(leaf.data.dtype(), leaf.data.shape());
    const auto* from = static_cast<const std::byte*>(leaf.data.raw());
    const auto size = static_cast<size_t>(leaf.data.num_bytes());
    leaf = pack_panels(ctx, leaf, to.raw());
    if (in_panels(leaf)) drop_pages(from, size);
  });
  return block;
}

}  // namespace hadal::io
