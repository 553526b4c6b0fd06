// op_rates PLAN.json [NAME]: times each operation of a plan on this CPU, one thread, and prints
// rows of rates (configs/rates) as JSON. NAME says in each row's source where and when.
//
// Each operation runs alone, on buffers that change from call to call so that no cache holds them,
// and the median of its calls counts, in CPU time of the thread: other processes of the machine
// then take no part in it. Nothing of a training step is timed here.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/rng.h"
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
#include "plan/host_ops.h"

namespace hadal {
namespace {

using plan::OpShape;
using plan::OpUse;

constexpr double kCacheBytes = 64e6;  // buffers of one operation add up to this or more
constexpr int kMaxSets = 48;
constexpr double kSecondsPerOp = 0.25;

double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Tensors with small random numbers, alive until the next operation.
class Buffers {
 public:
  explicit Buffers(Context& ctx) : ctx_(ctx) {}
  Tensor f32(Shape shape) {
    Tensor t = take(DType::kF32, shape);
    float* x = t.data<float>();
    const uint64_t begin = count_;
    for (int64_t i = 0; i < t.num_elements(); ++i)
      x[i] = static_cast<float>(
          static_cast<double>((begin + static_cast<uint64_t>(i)) * 2654435761u % 2048u) / 2048.0 -
          0.5);
    return t;
  }
  Tensor i32(const std::vector<int32_t>& values, Shape shape) {
    Tensor t = take(DType::kI32, shape);
    std::copy(values.begin(), values.end(), t.data<int32_t>());
    return t;
  }
  double bytes() const { return bytes_; }

 private:
  Tensor take(DType dtype, const Shape& shape) {
    Tensor t;
    blocks_.push_back(ctx_.memory.take_tensor(dtype, shape, &t));
    std::memset(t.raw(), 0, static_cast<size_t>(t.num_bytes()));
    bytes_ += static_cast<double>(t.num_bytes());
    count_ += static_cast<uint64_t>(t.num_elements()) + 977;
    return t;
  }
  Context& ctx_;
  std::vector<Block> blocks_;
  double bytes_ = 0.0;
  uint64_t count_ = 0;
};

using Call = std::function<void()>;

// Even choices of K of E experts for T tokens, and the layout that the exchange makes of them.
struct Routed {
  Routed(Context& ctx, Buffers& b, int64_t rows, int64_t E, int64_t K) {
    std::vector<int32_t> choice;
    for (int64_t i = 0; i < rows; ++i) choice.push_back(static_cast<int32_t>((i * 7 + i / K) % E));
    const int64_t T = rows / K;
    layout = {b.i32(std::vector<int32_t>(static_cast<size_t>(E)), {E}),
              b.i32(std::vector<int32_t>(static_cast<size_t>(E + 1)), {E + 1})};
    row_of_choice = b.i32(std::vector<int32_t>(static_cast<size_t>(rows)), {T, K});
    ops::expert_layout(ctx, b.i32(choice, {T, K}), layout, row_of_choice);
    pages = ops::max_pages(rows, E);
  }
  ops::PagedRows paged(Buffers& b, int64_t width) const {
    return {.slab = b.f32({pages, ops::kPageRows, width}), .page = Tensor()};
  }
  ops::ExpertLayout layout;
  Tensor row_of_choice;
  int64_t pages = 0;
};

class Maker {
 public:
  Maker(Context& ctx, const plan::TrainPlan& p) : ctx_(ctx), plan_(p) {}

  Call make(Buffers& b, const OpUse& use) {
    const OpShape& s = use.shape;
    if (use.op.starts_with("host_gemm")) return product(b, use.op, s);
    if (use.op.starts_with("host_grouped")) return grouped(b, use.op, s);
    if (use.op.starts_with("host_attention")) return attention(b, use.op, s);
    if (use.op.starts_with("host_norm")) return norm(b, use.op, s);
    if (use.op.starts_with("host_gate")) return gate(b, use.op, s);
    if (s.size() == 1) return flat(b, use.op, s[0]);
    return rows(b, use.op, s);
  }

 private:
  Call product(Buffers& b, const std::string& op, const OpShape& s) {
    if (op == "host_gemm_tn") {
      const Tensor x = b.f32({s[0], s[1]}), y = b.f32({s[0], s[2]});
      Tensor w = b.f32({s[1], s[2]});
      return [=, this]() mutable { ops::gemm_tn_acc(ctx_, x, y, w); };
    }
    const bool is_nt = op == "host_gemm_nt";
    const Tensor x = b.f32({s[0], s[2]});
    const Operand w(is_nt ? b.f32({s[1], s[2]}) : b.f32({s[2], s[1]}));
    Tensor y = b.f32({s[0], s[1]});
    return
        [=, this]() mutable { is_nt ? ops::gemm_nt(ctx_, x, w, y) : ops::gemm_nn(ctx_, x, w, y); };
  }

  Call grouped(Buffers& b, const std::string& op, const OpShape& s) {
    const int64_t N = s[1], K = s[2], E = s[3];
    const Routed r(ctx_, b, s[0], E, plan_.model.num_experts_per_tok);
    const ops::PagedRows x = r.paged(b, op == "host_grouped_tn" ? N : K);
    const ops::PagedRows y = r.paged(b, op == "host_grouped_tn" ? K : N);
    std::vector<Operand> w;
    std::vector<Tensor> dw;
    for (int64_t e = 0; e < E; ++e) {
      if (op == "host_grouped_tn")
        dw.push_back(b.f32({N, K}));
      else
        w.emplace_back(op == "host_grouped_nt" ? b.f32({N, K}) : b.f32({K, N}));
    }
    if (op == "host_grouped_nt")
      return [=, this] { ops::grouped_gemm_nt(ctx_, r.layout, x, w, y); };
    if (op == "host_grouped_nn")
      return [=, this] { ops::grouped_gemm_nn(ctx_, r.layout, x, w, y); };
    return [=, this] { ops::grouped_gemm_tn_acc(ctx_, r.layout, x, y, dw); };
  }

  // One sequence.
  Call attention(Buffers& b, const std::string& op, const OpShape& s) {
    const Config& c = plan_.model;
    const int64_t T = s[0], H = s[1], Dr = c.qk_rope_head_dim, Dv = s[3], Dn = s[2] - Dr;
    Packed seq;
    seq.num_tokens = seq.max_len = T;
    seq.num_seqs = 1;
    seq.offsets = b.i32({0, static_cast<int32_t>(T)}, {2});
    std::vector<int32_t> positions;
    for (int64_t t = 0; t < T; ++t) positions.push_back(static_cast<int32_t>(t));
    seq.positions = b.i32(positions, {T});
    const Tensor q = b.f32({T, H, Dn + Dr}), kv = b.f32({T, H, Dn + Dv}), k_pe = b.f32({T, Dr});
    Tensor out = b.f32({T, H, Dv}), lse = b.f32({H, T});
    const double scale = softmax_scale(c);
    if (op == "host_attention_forward")
      return [=, this]() mutable {
        ops::mla_attention_forward(ctx_, seq, scale, q, kv, k_pe, out, lse);
      };
    ops::mla_attention_forward(ctx_, seq, scale, q, kv, k_pe, out, lse);
    const Tensor dout = b.f32({T, H, Dv});
    const ops::MlaAttentionGrads grads{
        .dq = b.f32({T, H, Dn + Dr}), .dkv = b.f32({T, H, Dn + Dv}), .dk_pe = b.f32({T, Dr})};
    return [=, this] {
      ops::mla_attention_backward(
          ctx_, seq, scale, {.q = q, .kv = kv, .k_pe = k_pe, .out = out, .lse = lse}, dout, grads);
    };
  }

  Call norm(Buffers& b, const std::string& op, const OpShape& s) {
    const Tensor x = b.f32({s[0], s[1]}), gain = b.f32({s[1]});
    Tensor y = b.f32({s[0], s[1]}), rstd = b.f32({s[0]});
    ops::rmsnorm_forward(ctx_, x, gain, 1e-6, y, rstd);
    if (op == "host_norm_forward")
      return [=, this]() mutable { ops::rmsnorm_forward(ctx_, x, gain, 1e-6, y, rstd); };
    if (op == "host_norm_recompute")
      return [=, this]() mutable { ops::rmsnorm_recompute(ctx_, x, gain, rstd, y); };
    Tensor dx = b.f32({s[0], s[1]}), dgain = b.f32({s[1]});
    return [=, this]() mutable { ops::rmsnorm_backward(ctx_, x, gain, rstd, y, dx, dgain); };
  }

  Call gate(Buffers& b, const std::string& op, const OpShape& s) {
    const Config& c = plan_.model;
    const int64_t T = s[0], E = s[1], K = c.num_experts_per_tok;
    const ops::GateRule rule = gate::rule(c);
    const Tensor logits = b.f32({T, E}), bias = b.f32({E});
    Tensor scores = b.f32({T, E}), weight = b.f32({T, K});
    Tensor idx = b.i32(std::vector<int32_t>(static_cast<size_t>(T * K)), {T, K});
    ops::gate_forward(ctx_, rule, logits, bias, scores, idx, weight);
    if (op == "host_gate_forward")
      return
          [=, this]() mutable { ops::gate_forward(ctx_, rule, logits, bias, scores, idx, weight); };
    Tensor dlogits = b.f32({T, E});
    return [=, this]() mutable { ops::gate_backward(ctx_, rule, scores, idx, weight, dlogits); };
  }

  Call flat(Buffers& b, const std::string& op, int64_t n) {
    const Tensor x = b.f32({n});
    if (op == "host_fill") {
      Tensor y = x;
      return [=, this]() mutable { ops::fill(ctx_, 0.0, y); };
    }
    if (op == "host_sum_squares") {
      Tensor total = f64_;
      if (total.empty()) f64_memory_ = ctx_.memory.take_tensor(DType::kF64, {1}, &f64_);
      total = f64_;
      ops::fill(ctx_, 0.0, total);
      return [=, this]() mutable { ops::sum_squares_acc(ctx_, x, total); };
    }
    Tensor y = b.f32({n});
    if (op == "host_add") return [=, this]() mutable { ops::add_acc(ctx_, x, y); };
    if (op == "host_copy") return [=, this]() mutable { ops::cast(ctx_, x, y); };
    HADAL_CHECK(op == "host_adamw", "op_rates cannot run ", op);
    Tensor m = b.f32({n}), v = b.f32({n});
    ops::fill(ctx_, 0.01, v);
    const ops::AdamW rule{.lr = 1e-5,
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-8,
                          .weight_decay = 0.1,
                          .step = 10,
                          .grad_scale = 1.0};
    return [=, this]() mutable { ops::adamw(ctx_, rule, x, y, m, v); };
  }

  Call rows(Buffers& b, const std::string& op, const OpShape& s) {
    if (op == "host_rope") {
      Tensor x = b.f32({s[0], s[1], s[2]});
      const Tensor table = b.f32({s[0], s[2]});
      return [=, this]() mutable {
        ops::rope_apply(ctx_, ops::RopeLayout::kInterleaved, ops::RopeDirection::kForward, table,
                        x);
      };
    }
    const int64_t T = s[0], W = s[1];
    if (op == "host_swiglu_forward" || op == "host_swiglu_backward") {
      const Tensor gate_up = b.f32({T, 2 * W});
      Tensor y = b.f32({T, W});
      if (op == "host_swiglu_forward")
        return [=, this]() mutable { ops::swiglu_forward(ctx_, gate_up, y); };
      const Tensor dy = b.f32({T, W});
      Tensor dgate_up = b.f32({T, 2 * W});
      return [=, this]() mutable { ops::swiglu_backward(ctx_, gate_up, dy, dgate_up, y); };
    }
    if (op == "host_scatter_rows" || op == "host_combine_rows") {
      const int64_t K = plan_.model.num_experts_per_tok;
      const Routed r(ctx_, b, T, plan_.model.n_routed_experts, K);
      const ops::PagedRows paged = r.paged(b, W);
      Tensor x = b.f32({T / K, W});
      if (op == "host_scatter_rows")
        return [=, this] { ops::scatter_rows(ctx_, x, r.row_of_choice, paged); };
      return [=, this]() mutable { ops::combine_rows(ctx_, paged, r.row_of_choice, x); };
    }
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < T; ++t) ids.push_back(static_cast<int32_t>(t * 31 % W));
    const Tensor targets = b.i32(ids, {T});
    Tensor logits = b.f32({T, W}), lse = b.f32({T}), loss = b.f32({T});
    if (op == "host_cross_entropy_forward")
      return [=, this]() mutable { ops::cross_entropy_forward(ctx_, logits, targets, lse, loss); };
    HADAL_CHECK(op == "host_cross_entropy_backward", "op_rates cannot run ", op);
    ops::cross_entropy_forward(ctx_, logits, targets, lse, loss);
    Tensor dlogits = b.f32({T, W});
    return [=, this]() mutable {
      ops::cross_entropy_backward(ctx_, logits, targets, lse, 1e-3, dlogits);
    };
  }

  Context& ctx_;
  const plan::TrainPlan& plan_;
  Tensor f64_;
  Block f64_memory_;
};

// Median seconds of a call over sets of buffers in turn.
double time_of(Context& ctx, const plan::TrainPlan& p, const OpUse& use) {
  Maker maker(ctx, p);
  Buffers buffers(ctx);
  std::vector<Call> sets;
  while (sets.empty() ||
         (buffers.bytes() < kCacheBytes && sets.size() < static_cast<size_t>(kMaxSets)))
    sets.push_back(maker.make(buffers, use));
  for (const Call& call : sets) call();
  std::vector<double> seconds;
  const double begin = thread_seconds();
  for (size_t i = 0; seconds.size() < 5 || thread_seconds() - begin < kSecondsPerOp; ++i) {
    const double start = thread_seconds();
    sets[i % sets.size()]();
    seconds.push_back(thread_seconds() - start);
  }
  std::nth_element(seconds.begin(),
                   seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2),
                   seconds.end());
  return seconds[seconds.size() / 2];
}

void run(const std::string& path, const std::string& name) {
  // The rates that are to be measured are not there yet.
  const plan::TrainPlan p = plan::read_train_plan(path, {}, plan::Rates::kWithout);
  HADAL_CHECK(p.recipe == plan::Recipe::kF32, path, ": op_rates times plans of recipe f32");
  ThreadPool threads(1);
  Pool memory;
  Context ctx{.device = {}, .stream = {}, .threads = threads, .memory = memory};
  std::string rows;
  for (const OpUse& use : plan::host::all_ops(p)) {
    const nlohmann::json row = {
        {"op", use.op}, {"shape", use.shape}, {"seconds", time_of(ctx, p, use)}, {"source", name}};
    rows += concat(rows.empty() ? "" : ",\n", "    ", row.dump());
  }
  fmt::print(
      "{{\n  \"about\": \"bench/op_rates {}, one thread, f32\",\n  \"rows\": [\n{}\n  ]\n}}\n",
      path, rows);
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  if (argc != 3) {
    fmt::print(stderr, "usage: op_rates PLAN.json WHERE-AND-WHEN\n");
    return 2;
  }
  try {
    hadal::run(argv[1], argv[2]);
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "op_rates: {}\n", error.what());
    return 1;
  }
}
