// Parts of parameters, and whether they can be had.
// SPDX-License-Identifier: Apache-2.0
#include "io/hf_part.h"

#include "core/check.h"
#include "core/panels.h"
#include "io/hf.h"

namespace hadal::io {

ParamPart part_of(const ParamInfo& info, const RankShare& share) {
  const Slice slice = decode_slice(info, share);
  const Shape shape = decode_shape(info, share);
  return {.row = slice.offset / slice.row,
          .rows = shape.rank == 1 ? 1 : shape[0],
          .col = slice.first,
          .cols = slice.width,
          .all_cols = slice.row};
}

void check_decode_parts(const HfCheckpoint& checkpoint, WeightFormat format, int ranks,
                        AttentionSplit attention) {
  check_decode_ranks(checkpoint.config, ranks, attention);
  if (format != WeightFormat::kKeep || ranks == 1) return;
  for (const HfParam& param : checkpoint.params) {
    if (param.scale == nullptr || param.info.kind != ParamKind::kMatrix) continue;
    const ParamPart part =
        part_of(param.info, {.tensor = {.ways = ranks, .index = 1}, .attention = attention});
    const bool is_int = param.data->type == StoredType::kI32;
    // Groups of integers lie along rows; rows of those are independent.
    HADAL_CHECK((is_int || part.row % kScaleBlock == 0) && part.col % kScaleBlock == 0,
                param.data->file, ": tensor ", param.data->name, " ", param.info.shape.str(),
                " is scaled in ", is_int ? "groups of 128 columns" : "blocks of 128 x 128",
                ", which ranks = ", ranks, " would cut: a rank would have ",
                part.has_all_columns() ? concat(part.rows, " rows") : concat(part.cols, " columns"),
                "; use fewer ranks, or --dtype bf16");
  }
  static_assert(kScaleBlock == kIntGroup);
}

}  // namespace hadal::io
