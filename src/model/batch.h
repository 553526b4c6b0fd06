// Batch: one micro-batch as the model reads it, the shifted inputs of each MTP depth included.
//
//   T tokens   S sequences   k MTP depth (1, 2, ...)   Tk its tokens   Dr rope width
//
// Depth k sees, at position i of a sequence of n tokens, the state of depth k-1 at i and the token
// at i+k, and predicts the target of position i+k; so it has n-k positions (report, 2.2). Sequences
// (documents that are kept apart) of k tokens or fewer take no part in depth k.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "core/context.h"
#include "core/packed.h"
#include "model/config.h"

namespace hadal {

// A sequence on the host: targets[i] is the token to predict at i, -1 for none. Documents packed
// into it see each other, unless `documents` tells where each begins (the first at 0): then every
// one of them is computed as if it were alone, positions from 0, and the balance loss still
// averages over the whole sequence.
struct Sequence {
  std::vector<int32_t> ids, targets;
  std::vector<int64_t> documents = {};  // ascending; empty: one

  int64_t num_documents() const {
    return documents.empty() ? 1 : static_cast<int64_t>(documents.size());
  }
  // [begin, end) of a document.
  int64_t begin_of(int64_t document) const {
    return documents.empty() ? 0 : documents[static_cast<size_t>(document)];
  }
  int64_t end_of(int64_t document) const {
    return document + 1 < num_documents() ? documents[static_cast<size_t>(document) + 1]
                                          : static_cast<int64_t>(ids.size());
  }
};

struct Batch {
  struct Depth {
    Packed seq;
    int64_t num_before = 0;   // tokens of depth k-1 (k = 1: of the main model)
    Tensor rows;              // [Tk] i32   rows of it
    Tensor ids;               // [Tk] i32
    Tensor targets;           // [Tk] i32
    int64_t num_targets = 0;  // targets that are not -1
  };
  Block memory;
  Packed seq;
  Tensor ids, targets;  // [T] i32  [T] i32
  int64_t num_targets = 0;
  std::vector<Depth> mtp;  // mtp[k-1] is depth k; seq.num_tokens may be 0

  Batch views() const;  // of the same tensors, which stay this batch's
};

// `num_mtp` depths; rope tables in the statistics type of `act`.
// In `memory` where that has just the right size: what an earlier batch of the same shape leaves.
Batch make_batch(Context& ctx, const Config& config, const std::vector<Sequence>& sequences,
                 int64_t num_mtp, DType act, Block memory = {});

// The tokens of a decode step: sequence s adds lengths[s] tokens after its first starts[s].
struct Step {
  Block memory;
  Packed seq;
  Tensor ids;                     // [T] i32
  std::vector<int32_t> host_ids;  // [T]   the same, as they were given
  std::vector<int64_t> ends;      // [S]       tokens of each sequence after the step
  std::vector<int64_t> lengths;   // [S]    tokens that each sequence adds
  // [G] tokens of the step on each rank, where these are this rank's alone; empty: all have all.
  std::vector<int64_t> of_ranks;
  Tensor inv_freq;  // [Dr/2] f64
};
Step make_step(Context& ctx, const Config& config, const std::vector<int32_t>& ids,
               const std::vector<int64_t>& starts, const std::vector<int64_t>& lengths, DType act);
// The same step, in the same memory, with other tokens at other places.
void move_step(Context& ctx, const Config& config, const std::vector<int32_t>& ids,
               const std::vector<int64_t>& starts, Step& step);

}  // namespace hadal
