// The two comparisons of `hadal verify`: a forward-and-backward golden, and a ten-step training
// golden. Keys and conventions: tests/goldens/make_goldens.py.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cli/verify_report.h"
#include "core/context.h"
#include "io/hf.h"
#include "io/hf_names.h"
#include "model/decoder.h"
#include "model/precision.h"

namespace hadal::cli {

// What a comparison computes in: f64, f32, bf16, or bf16 with the FP8 recipe; and what its latent
// cache holds.
struct VerifyFormat {
  DType dtype;
  Precision precision = {};
  CacheFormat cache = CacheFormat::kCompute;
};

// What each kind of key may differ by. f32 and f64: the project's acceptance bounds; bf16: what 8
// bits of mantissa leave over a few layers (docs/numerics.md).
struct GoldenTolerances {
  Tolerance state, gate, loss, gradient, choice, load, greedy;
};
GoldenTolerances tolerances_of_compute(const VerifyFormat& format);

// input_ids of a golden, an Error if there are none. [num_seqs, length]
struct GoldenTokens {
  explicit GoldenTokens(VerifyReport& report);
  std::vector<int32_t> ids;
  int64_t num_seqs = 0, length = 0;
};

// Logits, hidden states, router choices, losses and gradients through the training form; logits
// again through absorbed decode in chunks; greedy tokens with and without speculation.
void verify_golden(Context& ctx, const io::HfCheckpoint& checkpoint, const VerifyFormat& format,
                   VerifyReport& report);
// The last part of it, what generation computes: logits and those of an MTP module by absorbed
// decode in chunks, greedy tokens with and without speculation. weights, ranks: as a decoder takes
// them.
struct DecodeSubject {
  const Config& config;
  const Weights& weights;
  DecoderRanks ranks = {};
};
void verify_decode(Context& ctx, const DecodeSubject& subject, const VerifyFormat& format,
                   VerifyReport& report);
// Replays the optimizer steps of a train.safetensors.
void verify_train(Context& ctx, const io::HfCheckpoint& checkpoint, const VerifyFormat& format,
                  VerifyReport& report);

}  // namespace hadal::cli
