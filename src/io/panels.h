// A loaded model's weights into the panels that products on the CPU read (core/panels.h).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "io/hf.h"

namespace hadal::io {

// Whether generation multiplies with a parameter as x w^T alone: matrices of products but wkv_b,
// which absorbed attention reads both ways; the head; the projection of MTP modules.
bool is_for_panels(const ParamInfo& info);

// Whether a parameter goes into panels when it is loaded and packed as it is stored.
bool goes_into_panels(const HfParam& param);

// For models that only generate. Packs what fits, bf16 and block e4m3: what was loaded into memory
// in place, what is mapped from the files into the block that is returned, after which the files'
// pages leave this process's memory. Nothing on other devices than the CPU.
Block pack_weights(Context& ctx, const HfCheckpoint& checkpoint, Weights& weights);

}  // namespace hadal::io
