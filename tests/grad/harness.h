// What the gradient tests share: a machine to run the product on, random models in the product's
// form and in the reference's, and the check of gradients against complex step.
//
// The shapes are tiny and awkward: odd widths and lengths, packed sequences of 1, 5 and 9 tokens.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdio>

#include "core/context.h"
#include "model/batch.h"
#include "model/params.h"
#include "tests/compare.h"
#include "tests/ref/complex_step.h"
#include "tests/ref/model.h"

namespace hadal::test {

using ref::Complex;
using Arrays = ModelParams<Array<double>>;
using ComplexArrays = ModelParams<Array<Complex>>;

// Threads, memory and a Context; tensors that it gives out live as long as it does.
class Machine {
 public:
  explicit Machine(int num_threads)
      : threads_(num_threads), ctx{Device{}, Stream{}, threads_, memory_} {}

 private:
  ThreadPool threads_;
  Pool memory_;
  std::vector<Block> blocks_;

 public:
  Context ctx;

  // All zero.
  Tensor tensor(DType dtype, Shape shape) {
    Tensor t;
    blocks_.push_back(memory_.take_tensor(dtype, shape, &t));
    if (t.num_bytes() > 0) std::memset(t.raw(), 0, static_cast<size_t>(t.num_bytes()));
    return t;
  }
  Tensor put(const Array<double>& a, DType dtype) {
    Tensor t = tensor(dtype, a.shape);
    for (int64_t i = 0; i < a.size(); ++i) store_element(t.raw(), dtype, i, a[i]);
    return t;
  }
  Tensor put(const std::vector<int32_t>& values, Shape shape) {
    Tensor t = tensor(DType::kI32, shape);
    std::copy(values.begin(), values.end(), t.data<int32_t>());
    return t;
  }
};

// 1 dense layer, 1 MoE layer of 8 experts in 4 groups, 2 MTP depths.
inline Config tiny_config() {
  Config c;
  c.vocab_size = 13;
  c.hidden_size = 10;
  c.intermediate_size = 11;
  c.moe_intermediate_size = 9;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 3;
  c.q_lora_rank = 6;
  c.kv_lora_rank = 5;
  c.qk_nope_head_dim = 5;
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 7;
  c.n_routed_experts = 8;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 3;
  c.n_group = 4;
  c.topk_group = 2;
  c.first_k_dense_replace = 1;
  c.num_nextn_predict_layers = 2;
  c.max_position_embeddings = 64;
  c.validate();
  return c;
}

inline RopeParameters tiny_yarn() {
  RopeParameters r;
  r.rope_type = "yarn";
  r.factor = 8.0;
  r.original_max_position_embeddings = 16;
  r.beta_fast = 4.0;
  r.mscale = 0.707;
  r.mscale_all_dim = 1.0;
  return r;
}

inline const ref::Lengths kLengths = {1, 5, 9};
inline constexpr int64_t kTokens = 15;

// Random tokens and targets, some of them missing.
inline std::vector<Sequence> random_sequences(const Config& c, const ref::Lengths& lengths,
                                              std::string_view name) {
  const Rng rng(7, stream_id(name));
  uint64_t counter = 0;
  std::vector<Sequence> sequences;
  const auto token = [&] {
    return static_cast<int32_t>(rng.u64(counter++) % static_cast<uint64_t>(c.vocab_size));
  };
  for (int64_t n : lengths) {
    Sequence s;
    for (int64_t i = 0; i < n; ++i) {
      s.ids.push_back(token());
      s.targets.push_back(counter % 7 == 3 ? -1 : token());
    }
    sequences.push_back(s);
  }
  return sequences;
}

inline std::vector<ref::Sequence> as_reference(const std::vector<Sequence>& sequences) {
  std::vector<ref::Sequence> result;
  for (const Sequence& s : sequences)
    result.push_back({{s.ids.begin(), s.ids.end()}, {s.targets.begin(), s.targets.end()}});
  return result;
}

// Gains near 1, matrices that keep the scale of what they multiply, router biases that matter.
inline Arrays random_weights(const Config& c) {
  Arrays tree;
  resize(c, tree);
  for_each_param(
      c,
      [](const ParamInfo& info, Array<double>& a) {
        const bool table = info.name == "embed" || info.name == "head";
        const bool matrix = info.shape.rank == 2;
        const double fan_in = matrix && !table ? static_cast<double>(info.shape[1]) : 1.0;
        const double mean = info.kind == ParamKind::kNorm ? 1.0 : 0.0;
        a = ref::random(info.name, info.shape, mean, (matrix ? 1.0 : 0.2) / std::sqrt(fan_in));
      },
      tree);
  return tree;
}

inline ComplexArrays as_complex(const Config& c, Arrays& tree) {
  ComplexArrays result;
  resize(c, result);
  for_each_param(
      c,
      [](const ParamInfo&, Array<Complex>& to, Array<double>& from) {
        to = ref::as<Complex>(from);
      },
      result, tree);
  return result;
}

// The product's weights and zero gradients: activations and matrices in `act`.
struct Product {
  hadal::Weights w;
  hadal::Grads grads;
};
inline Product make_product(Machine& machine, const Config& c, Arrays& tree, DType act) {
  Product p;
  resize(c, p.w);
  resize(c, p.grads);
  for_each_param(
      c,
      [&](const ParamInfo& info, Array<double>& from, Operand& w, Tensor& grad) {
        w = machine.put(from, info.kind == ParamKind::kBuffer ? stat_dtype(act) : act);
        grad = machine.tensor(stat_dtype(act), info.shape);
      },
      tree, p.w, p.grads);
  return p;
}

// Elements: every element of a gradient. Directions: two random directions of each tensor, for
// models that are too large for the former.
enum class Scope : uint8_t { kElements, kDirections };

// Compares gradients with complex step of f(), which reads the trees and inputs it is given, and
// keeps the worst error relative to the norm of its tensor; prints it at the end.
class GradientCheck {
 public:
  GradientCheck(std::string module, const Config& config, Scope scope)
      : module_(module), config_(config), scope_(scope) {}
  ~GradientCheck() {
    std::printf("[   worst  ] %s: %.2g (%s)\n", module_.c_str(), worst_, where_.c_str());
  }

  template <class F>
  void input(const std::string& name, const Tensor& got, Array<Complex>& at, const F& f) {
    const Array<double> g = ref::from_tensor<double>(got);
    if (scope_ == Scope::kElements)
      add(name, expect_close_to_norm(module_ + ": d" + name, g, ref::complex_step(at, f),
                                     kGradientTolerance));
    else
      for (const char* direction : {"first", "second"}) along(name, direction, g, at, f);
  }

  // Every trained parameter whose name begins with `prefix`; all others must not be written.
  template <class F>
  void params(const std::string& prefix, Grads& got, ComplexArrays& at, const F& f) {
    for_each_param(
        config_,
        [&](const ParamInfo& info, Tensor& grad, Array<Complex>& a) {
          if (info.trained() && info.name.rfind(prefix, 0) == 0)
            input(info.name, grad, a, f);
          else
            expect_close(module_ + ": d" + info.name, ref::from_tensor<double>(grad),
                         Array<double>(info.shape), 0.0);
        },
        got, at);
  }

 private:
  // |<got - want, v>| <= |got - want|_2 |v|_2 by Cauchy-Schwarz.
  template <class F>
  void along(const std::string& name, const std::string& direction, const Array<double>& g,
             Array<Complex>& at, const F& f) {
    const Array<double> v = ref::random(name + direction, g.shape, 0.0, 1.0);
    const double want = ref::complex_step_along(at, v, f), scale = ref::norm(g) * ref::norm(v);
    const double error = std::abs(ref::dot(v, g) - want);
    if (!(error <= kGradientTolerance * scale))
      ADD_FAILURE() << module_ << ": d" << name << " along its " << direction
                    << " direction: " << detail::numbers(ref::dot(v, g), want);
    add(name, scale > 0.0 ? error / scale : error);
  }

  void add(const std::string& name, double error) {
    if (error < worst_ && !where_.empty()) return;
    worst_ = error;
    where_ = name;
  }

  std::string module_;
  const Config& config_;
  Scope scope_;
  double worst_ = 0.0;
  std::string where_;
};

// Every gradient of two runs, bit for bit.
inline void expect_same_grads(const Config& c, Grads& got, Grads& want) {
  for_each_param(
      c,
      [](const ParamInfo& info, Tensor& a, Tensor& b) { expect_bits_equal("d" + info.name, a, b); },
      got, want);
}

}  // namespace hadal::test
