// Checks of the gate and of the movement of tokens to experts' rows, then dispatch.
// SPDX-License-Identifier: Apache-2.0
#include "ops/routing.h"

#include "ops/checks.h"

namespace hadal::ops {
namespace {

void check_rule(const GateRule& rule, int64_t E) {
  const int64_t G = rule.n_group, K = rule.num_experts_per_tok;
  HADAL_CHECK(G >= 1 && E % G == 0, E, " experts cannot be split into n_group = ", G,
              " equal groups");
  HADAL_CHECK(rule.topk_group >= 1 && rule.topk_group <= G, "topk_group = ", rule.topk_group,
              " must be from 1 to n_group = ", G);
  HADAL_CHECK(K >= 1 && K <= rule.topk_group * (E / G), "num_experts_per_tok = ", K,
              " must be from 1 to the ", rule.topk_group * (E / G), " experts of the kept groups");
}

void check_score(const Tensor& t, const char* name) {
  HADAL_CHECK(t.dtype() == DType::kF32 || t.dtype() == DType::kF64, name,
              " must be f32 or f64, is ", t.str());
}

void check_sequences(const Packed& seq, int64_t T) {
  HADAL_CHECK_SHAPE(seq.offsets, seq.num_seqs + 1);
  check_dtype(seq.offsets, DType::kI32, "seq.offsets");
  HADAL_CHECK(seq.num_tokens <= T, "seq has ", seq.num_tokens, " tokens, but scores has ", T,
              " rows");
}

void check_choice_values(const Tensor& choice_value, const Tensor& row_of_choice,
                         const Tensor& row_value) {
  const auto [T, K] = HADAL_SHAPE(row_of_choice, 2);
  HADAL_CHECK_SHAPE(choice_value, T, K);
  HADAL_SHAPE(row_value, 1);
  check_dtype(row_of_choice, DType::kI32, "row_of_choice");
  check_score(choice_value, "choice_value");
  check_dtype(row_value, choice_value.dtype(), "row_value");
}

void check_stack(const ExpertLayout& layout, const PageStack& stack, const Tensor& page) {
  check_layout(layout);
  HADAL_SHAPE(stack.free, 1);
  HADAL_CHECK_SHAPE(stack.count, 1);
  HADAL_SHAPE(page, 1);
  check_dtype(stack.free, DType::kI32, "stack.free");
  check_dtype(stack.count, DType::kI32, "stack.count");
  check_dtype(page, DType::kI32, "page");
  if (stack.missing.empty()) return;
  HADAL_CHECK_SHAPE(stack.missing, 1);
  check_dtype(stack.missing, DType::kI64, "stack.missing");
}

}  // namespace

void gate_forward(Context& ctx, const GateRule& rule, In logits, In bias, Out scores, Out topk_idx,
                  Out topk_weight) {
  const auto [T, E] = HADAL_SHAPE(logits, 2);
  check_rule(rule, E);
  HADAL_CHECK_SHAPE(bias, E);
  HADAL_CHECK_SHAPE(scores, T, E);
  HADAL_CHECK_SHAPE(topk_idx, T, rule.num_experts_per_tok);
  HADAL_CHECK_SHAPE(topk_weight, T, rule.num_experts_per_tok);
  check_score(logits, "logits");
  check_dtype(bias, logits.dtype(), "bias");
  check_dtype(scores, logits.dtype(), "scores");
  check_dtype(topk_idx, DType::kI32, "topk_idx");
  check_dtype(topk_weight, logits.dtype(), "topk_weight");
  HADAL_DISPATCH(ctx, gate_forward, rule, logits, bias, scores, topk_idx, topk_weight);
}

void gate_backward(Context& ctx, const GateRule& rule, In scores, In topk_idx, In dtopk_weight,
                   Out dlogits) {
  const auto [T, E] = HADAL_SHAPE(scores, 2);
  HADAL_CHECK_SHAPE(topk_idx, T, rule.num_experts_per_tok);
  HADAL_CHECK_SHAPE(dtopk_weight, T, rule.num_experts_per_tok);
  HADAL_CHECK_SHAPE(dlogits, T, E);
  check_score(scores, "scores");
  check_dtype(topk_idx, DType::kI32, "topk_idx");
  check_dtype(dtopk_weight, scores.dtype(), "dtopk_weight");
  check_dtype(dlogits, scores.dtype(), "dlogits");
  HADAL_DISPATCH(ctx, gate_backward, rule, scores, topk_idx, dtopk_weight, dlogits);
}

void balance_loss_forward(Context& ctx, const GateRule& rule, const Packed& seq, In scores,
                          Out loss, Out fraction) {
  const auto [T, E] = HADAL_SHAPE(scores, 2);
  check_rule(rule, E);
  check_sequences(seq, T);
  HADAL_CHECK_SHAPE(loss, seq.num_seqs);
  HADAL_CHECK_SHAPE(fraction, seq.num_seqs, E);
  check_score(scores, "scores");
  check_dtype(loss, scores.dtype(), "loss");
  check_dtype(fraction, scores.dtype(), "fraction");
  HADAL_DISPATCH(ctx, balance_loss_forward, rule, seq, scores, loss, fraction);
}

void balance_loss_backward(Context& ctx, const GateRule& rule, const Packed& seq, double scale,
                           In scores, In fraction, Acc dlogits) {
  const auto [T, E] = HADAL_SHAPE(scores, 2);
  check_sequences(seq, T);
  HADAL_CHECK_SHAPE(fraction, seq.num_seqs, E);
  HADAL_CHECK_SHAPE(dlogits, T, E);
  check_score(scores, "scores");
  check_dtype(fraction, scores.dtype(), "fraction");
  check_dtype(dlogits, scores.dtype(), "dlogits");
  HADAL_DISPATCH(ctx, balance_loss_backward, rule, seq, scale, scores, fraction, dlogits);
}

void count_choices(Context& ctx, In topk_idx, Acc counts) {
  HADAL_SHAPE(topk_idx, 2);
  HADAL_SHAPE(counts, 1);
  check_dtype(topk_idx, DType::kI32, "topk_idx");
  check_dtype(counts, DType::kI64, "counts");
  HADAL_DISPATCH(ctx, count_choices, topk_idx, counts);
}

void bias_update(Context& ctx, In counts, double gamma, Acc bias) {
  const auto [E] = HADAL_SHAPE(bias, 1);
  HADAL_CHECK_SHAPE(counts, E);
  check_dtype(counts, DType::kI64, "counts");
  check_score(bias, "bias");
  HADAL_DISPATCH(ctx, bias_update, counts, gamma, bias);
}

void choices_here(Context& ctx, In topk_idx, int64_t first, int64_t count, Out choices) {
  const auto [T, K] = HADAL_SHAPE(topk_idx, 2);
  HADAL_CHECK_SHAPE(choices, T, K);
  check_dtype(topk_idx, DType::kI32, "topk_idx");
  check_dtype(choices, DType::kI32, "choices");
  HADAL_DISPATCH(ctx, choices_here, topk_idx, first, count, choices);
}

void expert_layout(Context& ctx, In topk_idx, const ExpertLayout& layout, Out row_of_choice) {
  const auto [T, K] = HADAL_SHAPE(topk_idx, 2);
  HADAL_CHECK_SHAPE(row_of_choice, T, K);
  check_layout(layout);
  check_dtype(topk_idx, DType::kI32, "topk_idx");
  check_dtype(row_of_choice, DType::kI32, "row_of_choice");
  HADAL_DISPATCH(ctx, expert_layout, topk_idx, layout, row_of_choice);
}

void scatter_rows(Context& ctx, In x, In row_of_choice, const PagedRows& rows) {
  const auto [T, D] = HADAL_SHAPE(x, 2);
  const auto [T_choice, K] = HADAL_SHAPE(row_of_choice, 2);
  HADAL_CHECK(T == T_choice, "x has ", T, " rows, but row_of_choice has ", T_choice);
  check_paged(rows, D, "rows");
  check_float(x, "x");
  check_dtype(row_of_choice, DType::kI32, "row_of_choice");
  HADAL_DISPATCH(ctx, scatter_rows, x, row_of_choice, rows);
}

void combine_rows(Context& ctx, const PagedRows& rows, In row_of_choice, Out y) {
  const auto [T, D] = HADAL_SHAPE(y, 2);
  const auto [T_choice, K] = HADAL_SHAPE(row_of_choice, 2);
  HADAL_CHECK(T == T_choice, "y has ", T, " rows, but row_of_choice has ", T_choice);
  check_paged(rows, D, "rows");
  check_float(y, "y");
  check_dtype(row_of_choice, DType::kI32, "row_of_choice");
  HADAL_DISPATCH(ctx, combine_rows, rows, row_of_choice, y);
}

void scatter_choices(Context& ctx, In choice_value, In row_of_choice, Out row_value) {
  check_choice_values(choice_value, row_of_choice, row_value);
  HADAL_DISPATCH(ctx, scatter_choices, choice_value, row_of_choice, row_value);
}

void gather_choices(Context& ctx, In row_value, In row_of_choice, Out choice_value) {
  check_choice_values(choice_value, row_of_choice, row_value);
  HADAL_DISPATCH(ctx, gather_choices, row_value, row_of_choice, choice_value);
}

void take_pages(Context& ctx, const ExpertLayout& layout, const PageStack& stack, Out page) {
  check_stack(layout, stack, page);
  HADAL_DISPATCH(ctx, take_pages, layout, stack, page);
}

void give_back_pages(Context& ctx, const ExpertLayout& layout, const PageStack& stack, In page) {
  check_stack(layout, stack, page);
  HADAL_DISPATCH(ctx, give_back_pages, layout, stack, page);
}

}  // namespace hadal::ops
