// Single operations of a plan: buffers of each kind of call.
//
//   T tokens   S sequences   D, W widths   H heads   E experts   K choices   R routed rows
// SPDX-License-Identifier: Apache-2.0
#include "cli/op_calls.h"

#include <algorithm>
#include <memory>

#include "core/check.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "model/batch.h"
#include "model/gate.h"
#include "ops/activation.h"
#include "ops/attention.h"
#include "ops/copy.h"
#include "ops/gemm.h"
#include "ops/loss.h"
#include "ops/norm.h"
#include "ops/optim.h"
#include "ops/rope.h"
#include "ops/routing.h"
#include "parallel/expert_exchange.h"

namespace hadal::cli {
namespace {

using plan::OpShape;

constexpr DType kStat = DType::kF32;

class Maker {
 public:
  Maker(Context& ctx, const plan::TrainPlan& p, const plan::OpUse& use, Team* team)
      : ctx_(ctx), plan_(p), act_(plan::activation_dtype(p.recipe)), s_(use.shape), team_(team) {
    call_.use = use;
  }

  OpCall make() {
    const std::string& op = call_.use.op;
    for (const auto& [name, make] : kMakers)
      if (op == name) {
        (this->*make)();
        return std::move(call_);
      }
    HADAL_FAIL("internal error: hadal bench rates cannot run ", op);
  }

 private:
  // Small random numbers, made once and repeated.
  Tensor filled(DType dtype, const Shape& shape) {
    constexpr int64_t kPattern = 1 << 16;
    Tensor t = zeros(dtype, shape);
    HostWrite to(ctx_, t);
    const Rng rng(1, stream_id("bench rates"));
    const Tensor& host = to.tensor();
    const int64_t n = t.num_elements();
    std::vector<double> pattern;
    for (int64_t i = 0; i < std::min(n, kPattern); ++i)
      pattern.push_back(rng.uniform(static_cast<uint64_t>(i)) - 0.5);
    for (int64_t i = 0; i < n; ++i)
      store_element(host.raw(), dtype, i, pattern[static_cast<size_t>(i % kPattern)]);
    to.finish();
    return t;
  }
  Tensor zeros(DType dtype, const Shape& shape) {
    Tensor t;
    call_.memory.push_back(ctx_.memory.take_tensor(dtype, shape, &t));
    ops::fill(ctx_, 0.0, t);
    return t;
  }
  Tensor ints(const std::vector<int32_t>& values, const Shape& shape) {
    Tensor t;
    call_.memory.push_back(ctx_.memory.take_tensor(DType::kI32, shape, &t));
    upload(ctx_, values, t);
    return t;
  }
  // An activation that has just been written, and where one goes that has just been freed.
  Tensor input(DType dtype, const Shape& shape) {
    call_.recent.push_back(filled(dtype, shape));
    return call_.recent.back();
  }
  Tensor input(const Shape& shape) { return input(act_, shape); }
  Tensor output(const Shape& shape) {
    const Tensor t = zeros(act_, shape);
    if (!is_kept()) call_.recent.push_back(t);
    return t;
  }
  // Whether the result is one that a step keeps for its backward: its block lay idle for a step.
  bool is_kept() const {
    const Config& c = plan_.model;
    const std::string& op = call_.use.op;
    if (op == "grouped_gemm_nt") return s_[1] == c.moe_intermediate_size;
    if (op == "gemm_nt" && s_[2] == c.hidden_size)
      return s_[1] == c.q_lora_rank || s_[1] == c.latent_dim() || s_[1] == c.intermediate_size ||
             s_[1] == c.shared_intermediate_size();
    if (op == "gemm_nt")
      return s_[1] == c.hidden_size && s_[2] == c.num_attention_heads * c.v_head_dim;
    return op == "mla_attention_forward" || op == "add";
  }
  Operand weight(DType dtype, const Shape& shape) { return Operand(filled(dtype, shape)); }

  // NOTE: what `fn` holds outlives this Maker: the context by reference, all else by value.
  template <class Fn>
  void run(Fn fn) {
    call_.run = std::move(fn);
  }

  // Products; the router's and the head's logits are f32.
  void gemm_nt() {
    const Tensor x = input({s_[0], s_[2]}), y = output({s_[0], s_[1]});
    const Operand w = weight(act_, {s_[1], s_[2]});
    run([=, &ctx = ctx_] { ops::gemm_nt(ctx, x, w, Tensor(y)); });
  }
  void gemm_nt_f32() {
    const bool is_router = s_[1] == plan_.model.n_routed_experts;
    const Tensor x = input({s_[0], s_[2]}), y = zeros(kStat, {s_[0], s_[1]});
    const Operand w = weight(is_router ? kStat : act_, {s_[1], s_[2]});
    run([=, &ctx = ctx_] { ops::gemm_nt(ctx, x, w, Tensor(y)); });
  }
  void gemm_nn() {
    const Tensor x = input({s_[0], s_[2]}), y = output({s_[0], s_[1]});
    const Operand w = weight(act_, {s_[2], s_[1]});
    run([=, &ctx = ctx_] { ops::gemm_nn(ctx, x, w, Tensor(y)); });
  }
  void gemm_nn_acc() {
    const Tensor x = input({s_[0], s_[2]}), y = input({s_[0], s_[1]});
    const Operand w = weight(act_, {s_[2], s_[1]});
    run([=, &ctx = ctx_] { ops::gemm_nn_acc(ctx, x, w, Acc(Tensor(y))); });
  }
  void gemm_nn_acc_f32() {
    const Tensor x = input(kStat, {s_[0], s_[2]}), y = input({s_[0], s_[1]});
    const Operand w = weight(kStat, {s_[2], s_[1]});
    run([=, &ctx = ctx_] { ops::gemm_nn_acc(ctx, x, w, Acc(Tensor(y))); });
  }
  void gemm_tn_acc() { gemm_tn(act_); }
  void gemm_tn_acc_f32() { gemm_tn(kStat); }
  void gemm_tn(DType left) {
    const Tensor a = input(left, {s_[0], s_[1]}), b = input({s_[0], s_[2]});
    const Tensor w = zeros(kStat, {s_[1], s_[2]});
    run([=, &ctx = ctx_] { ops::gemm_tn_acc(ctx, a, b, Acc(Tensor(w))); });
  }

  // Even choices of K of E experts for R / K tokens, and the layout that the exchange makes of
  // them.
  struct Routed {
    Tensor topk_idx, row_of_choice;  // [T, K]
    ops::ExpertLayout layout;
    int64_t pages;
  };
  Routed routed(int64_t R, int64_t E) {
    const int64_t K = plan_.model.num_experts_per_tok, T = R / K;
    std::vector<int32_t> choice;
    for (int64_t t = 0; t < T; ++t) {
      std::vector<int32_t> of_token;
      const auto first = static_cast<int64_t>(Rng(2, 0).u64(static_cast<uint64_t>(t)) >> 33);
      for (int64_t k = 0; k < K; ++k)
        of_token.push_back(static_cast<int32_t>((first + k * std::max<int64_t>(1, E / K)) % E));
      std::sort(of_token.begin(), of_token.end());
      choice.insert(choice.end(), of_token.begin(), of_token.end());
    }
    Routed r;
    r.topk_idx = ints(choice, {T, K});
    r.row_of_choice = ints(std::vector<int32_t>(choice.size()), {T, K});
    r.layout = {ints(std::vector<int32_t>(static_cast<size_t>(E)), {E}),
                ints(std::vector<int32_t>(static_cast<size_t>(E + 1)), {E + 1})};
    r.pages = ops::max_pages(R, E);
    ops::expert_layout(ctx_, r.topk_idx, r.layout, r.row_of_choice);
    return r;
  }
  ops::PagedRows paged_input(const Routed& r, int64_t width) {
    return {.slab = input({r.pages, ops::kPageRows, width}), .page = Tensor()};
  }
  ops::PagedRows paged_output(const Routed& r, int64_t width) {
    return {.slab = output({r.pages, ops::kPageRows, width}), .page = Tensor()};
  }
  // Matrices of experts lie one after the other, as in a model's store.
  static Tensor matrix_of(const Tensor& all, int64_t e) {
    return all.view({all.dim(0) * all.dim(1), all.dim(2)}).rows(e * all.dim(1), all.dim(1));
  }
  std::vector<Operand> expert_weights(int64_t E, const Shape& shape) {
    const Tensor all = filled(act_, {E, shape[0], shape[1]});
    std::vector<Operand> w;
    for (int64_t e = 0; e < E; ++e) w.push_back(Operand(matrix_of(all, e)));
    return w;
  }
  void grouped_gemm_nt() {
    const Routed r = routed(s_[0], s_[3]);
    const ops::PagedRows x = paged_input(r, s_[2]), y = paged_output(r, s_[1]);
    const std::vector<Operand> w = expert_weights(s_[3], {s_[1], s_[2]});
    run([=, &ctx = ctx_] { ops::grouped_gemm_nt(ctx, r.layout, x, w, y); });
  }
  void grouped_gemm_nn() {
    const Routed r = routed(s_[0], s_[3]);
    const ops::PagedRows x = paged_input(r, s_[2]), y = paged_output(r, s_[1]);
    const std::vector<Operand> w = expert_weights(s_[3], {s_[2], s_[1]});
    run([=, &ctx = ctx_] { ops::grouped_gemm_nn(ctx, r.layout, x, w, y); });
  }
  void grouped_gemm_nn_acc() {
    const Routed r = routed(s_[0], s_[3]);
    const ops::PagedRows x = paged_input(r, s_[2]), y = paged_input(r, s_[1]);
    const std::vector<Operand> w = expert_weights(s_[3], {s_[2], s_[1]});
    run([=, &ctx = ctx_] { ops::grouped_gemm_nn_acc(ctx, r.layout, x, w, y); });
  }
  void grouped_gemm_tn_acc() {
    const Routed r = routed(s_[0], s_[3]);
    const ops::PagedRows a = paged_input(r, s_[1]), b = paged_input(r, s_[2]);
    std::vector<Tensor> dw;
    const Tensor all = zeros(kStat, {s_[3], s_[1], s_[2]});
    for (int64_t e = 0; e < s_[3]; ++e) dw.push_back(matrix_of(all, e));
    run([=, &ctx = ctx_] { ops::grouped_gemm_tn_acc(ctx, r.layout, a, b, dw); });
  }

  // S sequences of T tokens each.
  Packed sequences(int64_t S, int64_t T) {
    Packed seq;
    seq.num_tokens = S * T;
    seq.max_len = T;
    seq.num_seqs = S;
    std::vector<int32_t> offsets, positions;
    for (int64_t i = 0; i <= S; ++i) offsets.push_back(static_cast<int32_t>(i * T));
    for (int64_t i = 0; i < S * T; ++i) positions.push_back(static_cast<int32_t>(i % T));
    seq.offsets = ints(offsets, {S + 1});
    seq.positions = ints(positions, {S * T});
    return seq;
  }
  struct Attention {
    Packed seq;
    Tensor q, kv, k_pe, out, lse;
    double scale;
  };
  Attention attention() {
    const Config& c = plan_.model;
    const int64_t T = s_[0] * s_[1], H = s_[2], Dr = c.qk_rope_head_dim, Dv = s_[4];
    const int64_t Dn = s_[3] - Dr;
    return {.seq = sequences(s_[0], s_[1]),
            .q = input({T, H, Dn + Dr}),
            .kv = input({T, H, Dn + Dv}),
            .k_pe = input({T, Dr}),
            .out = output({T, H, Dv}),
            .lse = zeros(kStat, {H, T}),
            .scale = softmax_scale(c)};
  }
  static void attend(Context& ctx, const Attention& a) {
    ops::mla_attention_forward(ctx, a.seq, a.scale, a.q, a.kv, a.k_pe, Tensor(a.out),
                               Tensor(a.lse));
  }
  void mla_attention_forward() {
    const Attention a = attention();
    run([=, &ctx = ctx_] { attend(ctx, a); });
  }
  void mla_attention_backward() {
    const Attention a = attention();
    attend(ctx_, a);
    const Tensor dout = input(a.out.shape());
    const ops::MlaAttentionGrads grads{
        .dq = output(a.q.shape()), .dkv = output(a.kv.shape()), .dk_pe = output(a.k_pe.shape())};
    run([=, &ctx = ctx_] {
      ops::mla_attention_backward(
          ctx, a.seq, a.scale, {.q = a.q, .kv = a.kv, .k_pe = a.k_pe, .out = a.out, .lse = a.lse},
          dout, grads);
    });
  }

  struct Norm {
    Tensor x, gain, y, rstd;
  };
  Norm norm() {
    Norm n{.x = input({s_[0], s_[1]}),
           .gain = filled(kStat, {s_[1]}),
           .y = output({s_[0], s_[1]}),
           .rstd = zeros(kStat, {s_[0]})};
    ops::rmsnorm_forward(ctx_, n.x, n.gain, 1e-6, n.y, n.rstd);
    return n;
  }
  void rmsnorm_forward() {
    const Norm n = norm();
    run([=, &ctx = ctx_] {
      ops::rmsnorm_forward(ctx, n.x, n.gain, 1e-6, Tensor(n.y), Tensor(n.rstd));
    });
  }
  void rmsnorm_recompute() {
    const Norm n = norm();
    run([=, &ctx = ctx_] { ops::rmsnorm_recompute(ctx, n.x, n.gain, n.rstd, Tensor(n.y)); });
  }
  void rmsnorm_backward() {
    const Norm n = norm();
    const Tensor dy = input({s_[0], s_[1]}), dgain = zeros(kStat, {s_[1]});
    run([=, &ctx = ctx_] {
      ops::rmsnorm_backward(ctx, n.x, n.gain, n.rstd, dy, Tensor(n.y), Tensor(dgain));
    });
  }

  void rope_table() {
    const Packed seq = sequences(1, s_[0]);
    std::vector<double> inv_freq(static_cast<size_t>(s_[1] / 2), 0.01);
    const Tensor freq = zeros(DType::kF64, {s_[1] / 2}), table = zeros(kStat, {s_[0], s_[1]});
    upload(ctx_, inv_freq, freq);
    run([=, &ctx = ctx_] { ops::rope_table(ctx, seq.positions, freq, 1.0, Tensor(table)); });
  }
  // The rotated part of each head lies behind the rest of it.
  void rope_apply() {
    const int64_t rest = s_[1] > 1 ? plan_.model.qk_nope_head_dim : 0;
    const Tensor x = input({s_[0], s_[1], rest + s_[2]}).cols(rest, s_[2]);
    const Tensor table = filled(kStat, {s_[0], s_[2]});
    run([=, &ctx = ctx_] {
      ops::rope_apply(ctx, ops::RopeLayout::kInterleaved, ops::RopeDirection::kForward, table,
                      Acc(Tensor(x)));
    });
  }

  void swiglu_forward() {
    const Tensor gate_up = input({s_[0], 2 * s_[1]}), y = output({s_[0], s_[1]});
    run([=, &ctx = ctx_] { ops::swiglu_forward(ctx, gate_up, Tensor(y)); });
  }
  void swiglu_backward() {
    const Tensor gate_up = input({s_[0], 2 * s_[1]}), dy = input({s_[0], s_[1]});
    const Tensor dgate_up = output({s_[0], 2 * s_[1]}), y = output({s_[0], s_[1]});
    run([=, &ctx = ctx_] { ops::swiglu_backward(ctx, gate_up, dy, Tensor(dgate_up), Tensor(y)); });
  }
  void grouped_swiglu_forward() {
    const Routed r = routed(s_[0], s_[2]);
    const ops::PagedRows gate_up = paged_input(r, 2 * s_[1]), y = paged_output(r, s_[1]);
    const Tensor row_weight = filled(kStat, {r.pages * ops::kPageRows});
    run([=, &ctx = ctx_] { ops::grouped_swiglu_forward(ctx, r.layout, gate_up, row_weight, y); });
  }
  void grouped_swiglu_backward() {
    const Routed r = routed(s_[0], s_[2]);
    const ops::PagedRows gate_up = paged_input(r, 2 * s_[1]), dy = paged_input(r, s_[1]);
    const ops::PagedRows dgate_up = paged_output(r, 2 * s_[1]), y = paged_output(r, s_[1]);
    const Tensor row_weight = filled(kStat, {r.pages * ops::kPageRows});
    const Tensor drow_weight = zeros(kStat, {r.pages * ops::kPageRows});
    run([=, &ctx = ctx_] {
      ops::grouped_swiglu_backward(ctx, r.layout, gate_up, row_weight, dy, dgate_up, y,
                                   Tensor(drow_weight));
    });
  }

  struct Gate {
    ops::GateRule rule;
    Tensor logits, bias, scores, idx, weight;
  };
  Gate gate() { return gate(s_[0], s_[1]); }
  Gate gate(int64_t T, int64_t E) {
    const int64_t K = plan_.model.num_experts_per_tok;
    Gate g{.rule = gate::rule(plan_.model),
           .logits = input(kStat, {T, E}),
           .bias = zeros(kStat, {E}),
           .scores = zeros(kStat, {T, E}),
           .idx = ints(std::vector<int32_t>(static_cast<size_t>(T * K)), {T, K}),
           .weight = zeros(kStat, {T, K})};
    choose(ctx_, g);
    return g;
  }
  static void choose(Context& ctx, const Gate& g) {
    ops::gate_forward(ctx, g.rule, g.logits, g.bias, Tensor(g.scores), Tensor(g.idx),
                      Tensor(g.weight));
  }
  void gate_forward() {
    const Gate g = gate();
    run([=, &ctx = ctx_] { choose(ctx, g); });
  }
  void gate_backward() {
    const Gate g = gate();
    run([=, &ctx = ctx_] {
      ops::gate_backward(ctx, g.rule, g.scores, g.idx, g.weight, Tensor(g.logits));
    });
  }
  struct Balance {
    Gate gate;
    Packed seq;
    Tensor loss, fraction;
  };
  Balance balance() {
    Balance b{.gate = gate(),
              .seq = sequences(s_[2], s_[0] / s_[2]),
              .loss = zeros(kStat, {s_[2]}),
              .fraction = zeros(kStat, {s_[2], s_[1]})};
    ops::balance_loss_forward(ctx_, b.gate.rule, b.seq, b.gate.scores, b.loss, b.fraction);
    return b;
  }
  void balance_loss_forward() {
    const Balance b = balance();
    run([=, &ctx = ctx_] {
      ops::balance_loss_forward(ctx, b.gate.rule, b.seq, b.gate.scores, Tensor(b.loss),
                                Tensor(b.fraction));
    });
  }
  void balance_loss_backward() {
    const Balance b = balance();
    run([=, &ctx = ctx_] {
      ops::balance_loss_backward(ctx, b.gate.rule, b.seq, 1e-6, b.gate.scores, b.fraction,
                                 Acc(Tensor(b.gate.logits)));
    });
  }

  void expert_layout() {
    const Routed r = routed(s_[0], s_[1]);
    run([=, &ctx = ctx_] {
      ops::expert_layout(ctx, r.topk_idx, r.layout, Tensor(r.row_of_choice));
    });
  }
  void scatter_choices() {
    const Routed r = routed(s_[0], s_[1]);
    const Tensor choice = filled(kStat, r.topk_idx.shape());
    const Tensor row = zeros(kStat, {r.pages * ops::kPageRows});
    run([=, &ctx = ctx_] { ops::scatter_choices(ctx, choice, r.row_of_choice, Tensor(row)); });
  }
  void gather_choices() {
    const Routed r = routed(s_[0], s_[1]);
    const Tensor choice = zeros(kStat, r.topk_idx.shape());
    const Tensor row = filled(kStat, {r.pages * ops::kPageRows});
    run([=, &ctx = ctx_] { ops::gather_choices(ctx, row, r.row_of_choice, Tensor(choice)); });
  }
  void count_choices() {
    const Routed r = routed(s_[0], s_[1]);
    const Tensor counts = zeros(DType::kI64, {s_[1]});
    run([=, &ctx = ctx_] { ops::count_choices(ctx, r.topk_idx, Acc(Tensor(counts))); });
  }
  void scatter_rows() {
    const Routed r = routed(s_[0], plan_.model.n_routed_experts);
    const Tensor x = input({s_[0] / s_[2], s_[1]});
    const ops::PagedRows rows = paged_output(r, s_[1]);
    run([=, &ctx = ctx_] { ops::scatter_rows(ctx, x, r.row_of_choice, rows); });
  }
  void combine_rows() {
    const Routed r = routed(s_[0], plan_.model.n_routed_experts);
    const ops::PagedRows rows = paged_input(r, s_[1]);
    const Tensor y = output({s_[0] / s_[2], s_[1]});
    run([=, &ctx = ctx_] { ops::combine_rows(ctx, rows, r.row_of_choice, Tensor(y)); });
  }

  Tensor ids(int64_t T, int64_t below) {
    std::vector<int32_t> values;
    for (int64_t t = 0; t < T; ++t) values.push_back(static_cast<int32_t>(t * 31 % below));
    return ints(values, {T});
  }
  struct Loss {
    Tensor logits, targets, lse, loss;
  };
  Loss loss() {
    Loss l{.logits = input(kStat, {s_[0], s_[1]}),
           .targets = ids(s_[0], s_[1]),
           .lse = zeros(kStat, {s_[0]}),
           .loss = zeros(kStat, {s_[0]})};
    ops::cross_entropy_forward(ctx_, l.logits, l.targets, l.lse, l.loss);
    return l;
  }
  void cross_entropy_forward() {
    const Loss l = loss();
    run([=, &ctx = ctx_] {
      ops::cross_entropy_forward(ctx, l.logits, l.targets, Tensor(l.lse), Tensor(l.loss));
    });
  }
  // In the place of the logits where their type is that of activations.
  void cross_entropy_backward() {
    const Loss l = loss();
    const Tensor to = act_ == kStat ? l.logits : output({s_[0], s_[1]});
    run([=, &ctx = ctx_] {
      ops::cross_entropy_backward(ctx, l.logits, l.targets, l.lse, 1e-6, Tensor(to));
    });
  }

  void embed_forward() {
    const Tensor table = filled(act_, {plan_.model.vocab_size, s_[1]});
    const Tensor id = ids(s_[0], plan_.model.vocab_size), x = output({s_[0], s_[1]});
    run([=, &ctx = ctx_] { ops::embed_forward(ctx, table, id, Tensor(x)); });
  }
  // Into the gradient of the table, or, where it has a row for each token, of the states.
  void embed_backward_acc() {
    const bool is_table = s_[2] == plan_.model.vocab_size;
    const Tensor dx = input({s_[0], s_[1]}), id = ids(s_[0], s_[2]);
    const Tensor to = zeros(is_table ? kStat : act_, {s_[2], s_[1]});
    run([=, &ctx = ctx_] { ops::embed_backward_acc(ctx, dx, id, Acc(Tensor(to))); });
  }

  void add() {
    const Tensor a = input({s_[0]}), b = input({s_[0]}), c = output({s_[0]});
    run([=, &ctx = ctx_] { ops::add(ctx, a, b, Tensor(c)); });
  }
  void add_acc() {
    const Tensor x = input({s_[0]}), y = input({s_[0]});
    run([=, &ctx = ctx_] { ops::add_acc(ctx, x, Acc(Tensor(y))); });
  }
  void cast() {
    const Tensor x = input({s_[0]}), y = output({s_[0]});
    run([=, &ctx = ctx_] { ops::cast(ctx, x, Tensor(y)); });
  }
  void cast_f32() {
    const Tensor x = filled(kStat, {s_[0]}), y = output({s_[0]});
    run([=, &ctx = ctx_] { ops::cast(ctx, x, Tensor(y)); });
  }
  void fill_f32() {
    const Tensor x = zeros(kStat, {s_[0]});
    run([=, &ctx = ctx_] { ops::fill(ctx, 0.0, Tensor(x)); });
  }
  void sum_acc() {
    const Tensor x = input(kStat, {s_[0]}), total = zeros(DType::kF64, {1});
    run([=, &ctx = ctx_] { ops::sum_acc(ctx, x, Acc(Tensor(total))); });
  }
  void sum_squares_acc() {
    const Tensor x = filled(kStat, {s_[0]}), total = zeros(DType::kF64, {1});
    run([=, &ctx = ctx_] { ops::sum_squares_acc(ctx, x, Acc(Tensor(total))); });
  }
  void adamw() {
    const Tensor grad = filled(kStat, {s_[0]}), param = filled(kStat, {s_[0]});
    const Tensor m = zeros(kStat, {s_[0]}), v = zeros(kStat, {s_[0]});
    const ops::AdamW rule{.lr = 1e-5,
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-8,
                          .weight_decay = 0.1,
                          .step = 10,
                          .grad_scale = 1.0};
    run([=, &ctx = ctx_] {
      ops::adamw(ctx, rule, grad, Acc(Tensor(param)), Acc(Tensor(m)), Acc(Tensor(v)));
    });
  }

  // Trips of tokens that the gate sends to experts by random logits: evenly.
  struct Trips {
    Tensor x, y;  // [T, D]  [T, D]
    Gate gate;
    Tensor dweight;  // [T, K]
    std::unique_ptr<RowPool> pool;
    std::unique_ptr<ExpertExchange> exchange;
    RowLease lease;
    Ticket ticket;
    ops::PagedRows rows;  // [pages, 128, D]
    Tensor drow_weight;   // [pages * 128]
  };
  std::shared_ptr<Trips> trips() {
    const int64_t T = s_[0], D = s_[1], K = s_[2], E = s_[3], local = E / s_[4];
    auto t = std::make_shared<Trips>();
    t->x = input({T, D});
    t->y = output({T, D});
    t->gate = gate(T, E);
    t->dweight = zeros(kStat, {T, K});
    // Of this ticket, and of one that is made while it lives.
    t->pool = std::make_unique<RowPool>(ctx_, plan_.model, act_,
                                        2 * ops::max_pages(s_[4] * T * std::min(K, local), local));
    t->exchange = std::make_unique<ExpertExchange>(
        ExpertExchange::Groups{
            .inner = team_->in_node(), .outer = team_->across_nodes(), .num_experts = E},
        *t->pool);
    t->ticket = t->exchange->dispatch_start(ctx_, t->x, t->gate.idx, t->gate.weight);
    t->exchange->dispatch_finish(ctx_, t->ticket, &t->lease);
    t->rows = {.slab = input({t->ticket.num_pages, ops::kPageRows, D}), .page = Tensor()};
    t->drow_weight = filled(kStat, {t->ticket.num_pages * ops::kPageRows});
    return t;
  }
  void exchange_dispatch() {
    run([t = trips(), &ctx = ctx_] {
      RowLease rows;
      Ticket ticket = t->exchange->dispatch_start(ctx, t->x, t->gate.idx, t->gate.weight);
      t->exchange->dispatch_finish(ctx, ticket, &rows);
    });
  }
  void exchange_combine() {
    run([t = trips(), &ctx = ctx_] {
      t->exchange->combine_start(ctx, t->ticket, t->rows);
      t->exchange->combine_finish(ctx, t->ticket, t->rows, Tensor(t->y));
    });
  }
  void exchange_combine_backward() {
    run([t = trips(), &ctx = ctx_] {
      t->exchange->combine_backward_start(ctx, t->ticket, t->x, t->rows);
      t->exchange->combine_backward_finish(ctx, t->ticket, t->rows);
    });
  }
  void exchange_dispatch_backward() {
    run([t = trips(), &ctx = ctx_] {
      t->exchange->dispatch_backward_start(ctx, t->ticket, t->rows, t->drow_weight);
      t->exchange->dispatch_backward_finish(ctx, t->ticket, t->rows, t->drow_weight, Tensor(t->y),
                                            Tensor(t->dweight));
    });
  }

  // Of the groups that sum gradients, one of so many ranks.
  Comm& gradient_group(int64_t ranks) {
    return team_->dense().size() == ranks ? team_->dense()
                                          : team_->summing(ParamStore::Region::kExperts);
  }
  // A flat tensor of all ranks' shares, and this rank's.
  struct Shared {
    Comm& group;
    Tensor all, share;
  };
  Shared shared() {
    Comm& group = gradient_group(s_[1]);
    const int64_t n = (s_[0] + s_[1] - 1) / s_[1];
    const Tensor all = filled(kStat, {n * s_[1]});
    return {.group = group, .all = all, .share = all.rows(n * group.rank(), n)};
  }
  void reduce_scatter() {
    const Shared f = shared();
    run([=, &ctx = ctx_] { f.group.reduce_scatter(ctx, f.all, Tensor(f.share)); });
  }
  void all_gather() {
    const Shared f = shared();
    run([=, &ctx = ctx_] { f.group.all_gather(ctx, f.share, Tensor(f.all)); });
  }
  void all_reduce() {
    const Tensor x = zeros(kStat, {s_[0]});
    Comm* group = team_->embed();
    if (group != nullptr) run([=, &ctx = ctx_] { group->all_reduce(ctx, Acc(Tensor(x))); });
  }
  void all_reduce_f64() {
    const Tensor x = zeros(DType::kF64, {s_[0]});
    run([=, &ctx = ctx_, &world = team_->world()] { world.all_reduce(ctx, Acc(Tensor(x))); });
  }
  // From the first stage to the second.
  void transfer() {
    const Tensor x = filled(act_, {s_[0]});
    Comm& line = team_->pipeline();
    if (line.rank() == 0) run([=, &line, &ctx = ctx_] { line.send(ctx, x, 1); });
    if (line.rank() == 1) run([=, &line, &ctx = ctx_] { line.recv(ctx, Tensor(x), 0); });
  }

  struct Named {
    const char* name;
    void (Maker::*make)();
  };
  static constexpr Named kMakers[] = {
      {"gemm_nt", &Maker::gemm_nt},
      {"gemm_nt_f32", &Maker::gemm_nt_f32},
      {"gemm_nn", &Maker::gemm_nn},
      {"gemm_nn_acc", &Maker::gemm_nn_acc},
      {"gemm_nn_acc_f32", &Maker::gemm_nn_acc_f32},
      {"gemm_tn_acc", &Maker::gemm_tn_acc},
      {"gemm_tn_acc_f32", &Maker::gemm_tn_acc_f32},
      {"grouped_gemm_nt", &Maker::grouped_gemm_nt},
      {"grouped_gemm_nn", &Maker::grouped_gemm_nn},
      {"grouped_gemm_nn_acc", &Maker::grouped_gemm_nn_acc},
      {"grouped_gemm_tn_acc", &Maker::grouped_gemm_tn_acc},
      {"mla_attention_forward", &Maker::mla_attention_forward},
      {"mla_attention_backward", &Maker::mla_attention_backward},
      {"rmsnorm_forward", &Maker::rmsnorm_forward},
      {"rmsnorm_recompute", &Maker::rmsnorm_recompute},
      {"rmsnorm_backward", &Maker::rmsnorm_backward},
      {"rope_table", &Maker::rope_table},
      {"rope_apply", &Maker::rope_apply},
      {"swiglu_forward", &Maker::swiglu_forward},
      {"swiglu_backward", &Maker::swiglu_backward},
      {"grouped_swiglu_forward", &Maker::grouped_swiglu_forward},
      {"grouped_swiglu_backward", &Maker::grouped_swiglu_backward},
      {"gate_forward", &Maker::gate_forward},
      {"gate_backward", &Maker::gate_backward},
      {"balance_loss_forward", &Maker::balance_loss_forward},
      {"balance_loss_backward", &Maker::balance_loss_backward},
      {"expert_layout", &Maker::expert_layout},
      {"scatter_choices", &Maker::scatter_choices},
      {"gather_choices", &Maker::gather_choices},
      {"count_choices", &Maker::count_choices},
      {"scatter_rows", &Maker::scatter_rows},
      {"combine_rows", &Maker::combine_rows},
      {"cross_entropy_forward", &Maker::cross_entropy_forward},
      {"cross_entropy_backward", &Maker::cross_entropy_backward},
      {"embed_forward", &Maker::embed_forward},
      {"embed_backward_acc", &Maker::embed_backward_acc},
      {"add", &Maker::add},
      {"add_acc", &Maker::add_acc},
      {"cast", &Maker::cast},
      {"cast_f32", &Maker::cast_f32},
      {"fill_f32", &Maker::fill_f32},
      {"sum_acc", &Maker::sum_acc},
      {"sum_squares_acc", &Maker::sum_squares_acc},
      {"adamw", &Maker::adamw},
      {"exchange_dispatch", &Maker::exchange_dispatch},
      {"exchange_combine", &Maker::exchange_combine},
      {"exchange_combine_backward", &Maker::exchange_combine_backward},
      {"exchange_dispatch_backward", &Maker::exchange_dispatch_backward},
      {"reduce_scatter", &Maker::reduce_scatter},
      {"all_gather", &Maker::all_gather},
      {"all_reduce", &Maker::all_reduce},
      {"all_reduce_f64", &Maker::all_reduce_f64},
      {"transfer", &Maker::transfer},
  };

  Context& ctx_;
  const plan::TrainPlan& plan_;
  const DType act_;
  const OpShape s_;
  Team* team_;
  OpCall call_;
};

}  // namespace

OpCall make_op_call(Context& ctx, const plan::TrainPlan& plan, const plan::OpUse& use, Team* team) {
  return Maker(ctx, plan, use, team).make();
}

}  // namespace hadal::cli
