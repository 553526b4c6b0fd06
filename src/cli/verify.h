// The two comparisons of `hadal verify`: a forward-and-backward golden, and a ten-step training
// golden. Keys and conventions: tests/goldens/make_goldens.py.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cli/verify_report.h"
#include "core/context.h"
#include "io/hf.h"
#include "io/hf_names.h"
#include "model/precision.h"

namespace hadal::cli {

// What a comparison computes in: f64, f32, bf16, or bf16 with the FP8 recipe; and what its latent
// cache holds.
struct VerifyFormat {
  DType dtype;
  Precision precision = {};
  CacheFormat cache = CacheFormat::kCompute;
};

// Logits, hidden states, router choices, losses and gradients through the training form; logits
// again through absorbed decode in chunks; greedy tokens with and without speculation.
void verify_golden(Context& ctx, const io::HfCheckpoint& checkpoint, const VerifyFormat& format,
                   VerifyReport& report);
// Replays the optimizer steps of a train.safetensors.
void verify_train(Context& ctx, const io::HfCheckpoint& checkpoint, const VerifyFormat& format,
                  VerifyReport& report);

}  // namespace hadal::cli
