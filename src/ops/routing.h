// The gate and the movement of tokens to experts' rows (report, 2.1.2; training notes, section 7).
//
//   T tokens   S sequences   E experts   K choices of a token   D model width
//
// Scores, weights and logits are f32 (f64 for f64 models). Ties go to the smaller expert index.
// Sums over a token's choices run in the order of its choices. Deterministic.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/packed.h"
#include "ops/dispatch.h"
#include "ops/pages.h"

namespace hadal::ops {

enum class Scoring : uint8_t { kSigmoid, kSoftmax };
enum class GroupScore : uint8_t {
  kTopTwoSum,  // V3: sum of the two best biased scores of the group
  kMax,        // V2: the best score of the group
};

struct GateRule {
  int64_t n_group, topk_group, num_experts_per_tok;
  Scoring scoring;
  GroupScore group_score;
  bool norm_topk_prob;  // weights divided by their sum + 1e-20
  double routed_scaling_factor;
};

// logits [T,E], bias [E] -> scores [T,E] unbiased, topk_idx [T,K] i32 ascending, topk_weight [T,K].
// Choice by score + bias, groups outside the best topk_group at minus infinity; weights unbiased.
HADAL_OP(gate_forward, Context& ctx, const GateRule& rule, In logits, In bias, Out scores,
         Out topk_idx, Out topk_weight)
// dlogits [T,E] overwritten; nothing flows to the bias or through the choice.
HADAL_OP(gate_backward, Context& ctx, const GateRule& rule, In scores, In topk_idx, In dtopk_weight,
         Out dlogits)

// Sequence-wise balance loss (eq. 17-20): loss [S], without alpha; fraction [S,E] = f_i, from the
// top K of the unbiased, ungrouped scores. No gradient through f_i.
HADAL_OP(balance_loss_forward, Context& ctx, const GateRule& rule, const Packed& seq, In scores,
         Out loss, Out fraction)
// dlogits [T,E] += scale * d(sum of loss over sequences) / dlogits
HADAL_OP(balance_loss_backward, Context& ctx, const GateRule& rule, const Packed& seq, double scale,
         In scores, In fraction, Acc dlogits)

// counts [E] i64 += number of (token, choice) pairs of each expert. Exact.
HADAL_OP(count_choices, Context& ctx, In topk_idx, Acc counts)
// bias [E] += gamma * sign(mean(counts) - counts), sign(0) = 0; compared in exact integers.
HADAL_OP(bias_update, Context& ctx, In counts, double gamma, Acc bias)

// Choices of experts [first, first + count), counted from the first of them; -1 for others. [T,K]
HADAL_OP(choices_here, Context& ctx, In topk_idx, int64_t first, int64_t count, Out choices)
// Groups the T*K (token, choice) pairs by expert: fills the layout and row_of_choice [T,K] i32.
// Rows of an expert are in token order. In this and the next four, expert -1 and its row -1 are a
// choice that is left out; gather_choices makes it 0.
HADAL_OP(expert_layout, Context& ctx, In topk_idx, const ExpertLayout& layout, Out row_of_choice)
// rows[row_of_choice[t,k]] = x[t]                                         x [T,D]
HADAL_OP(scatter_rows, Context& ctx, In x, In row_of_choice, const PagedRows& rows)
// y[t] = sum_k rows[row_of_choice[t,k]]                                   y [T,D]
HADAL_OP(combine_rows, Context& ctx, const PagedRows& rows, In row_of_choice, Out y)
// row_value[row_of_choice[t,k]] = choice_value[t,k], and back             [T,K] <-> [P*kPageRows]
HADAL_OP(scatter_choices, Context& ctx, In choice_value, In row_of_choice, Out row_value)
HADAL_OP(gather_choices, Context& ctx, In row_value, In row_of_choice, Out choice_value)

// A pool's pages as a stack: `count` free ones at the front of `free`. With `missing` the slab has
// one page more, the last, which stands for every page that could not be given: its rows overwrite
// each other, and whoever finds missing above 0 does the work again with fewer rows.
struct PageStack {
  Tensor free;          // [pages] i32
  Tensor count;         // [1] i32
  Tensor missing = {};  // [1] i64   += pages that could not be given; empty: that is an error
};
// page [P] i32: takes as many pages as the layout uses.
HADAL_OP(take_pages, Context& ctx, const ExpertLayout& layout, const PageStack& stack, Out page)
HADAL_OP(give_back_pages, Context& ctx, const ExpertLayout& layout, const PageStack& stack, In page)

}  // namespace hadal::ops
