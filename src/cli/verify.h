// The two comparisons of `hadal verify`: a forward-and-backward golden, and a ten-step training
// golden. Keys and conventions: tests/goldens/make_goldens.py.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cli/verify_report.h"
#include "core/context.h"
#include "io/hf.h"
#include "io/hf_names.h"

namespace hadal::cli {

// Logits, hidden states, router choices, losses and gradients through the training form; logits
// again through absorbed decode in chunks; greedy tokens with and without speculation.
void verify_golden(Context& ctx, const io::HfCheckpoint& checkpoint, DType dtype,
                   VerifyReport& report);
// Replays the optimizer steps of a train.safetensors.
void verify_train(Context& ctx, const io::HfCheckpoint& checkpoint, DType dtype,
                  VerifyReport& report);

}  // namespace hadal::cli
