// Packed: the tokens of a micro-batch laid end to end, and where each sequence begins.
//
//   T tokens of the micro-batch   S sequences   G rows   Dr rope width of one head
//
// Attention never crosses from one sequence to another. The balance loss averages over rows: a row
// is a sequence, unless documents packed into it are kept apart; then each of them is a sequence.
// The host knows only the capacities.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/tensor.h"

namespace hadal {

struct Packed {
  int64_t num_tokens = 0;
  int64_t num_seqs = 0;
  int64_t max_len = 0;  // longest sequence, in tokens
  Tensor offsets;       // [S+1] i32   sequence s holds tokens offsets[s] .. offsets[s+1]-1
  Tensor positions;     // [T] i32     absolute position of each token in its sequence
  Tensor rope;          // [T, Dr]     cos of the Dr/2 pairs, then their sin (ops::rope_table)
  int64_t num_rows = 0;
  Tensor row_offsets;  // [G+1] i32   tokens of each row; empty: every sequence is a row

  // The same tokens with rows in the place of sequences.
  Packed by_rows() const {
    if (row_offsets.empty()) return *this;
    Packed rows = *this;
    rows.num_seqs = num_rows;
    rows.offsets = row_offsets;
    return rows;
  }
};

}  // namespace hadal
