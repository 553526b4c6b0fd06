// The naive reference of tests/ref against Hugging Face's outputs and gradients.
//
//   B sequences   T tokens of each   D model width   V vocabulary   E experts   K choices
//
// The gradient tests compare the product with this reference, so it has to be right itself. Goldens
// are stored as f32 and good to 3e-7 relative L2; 1e-6 is the tolerance everywhere (tests/goldens).
// SPDX-License-Identifier: Apache-2.0
#include "io/hf_config.h"
#include "io/safetensors.h"
#include "tests/grad/harness.h"

namespace hadal::test {
namespace {

constexpr double kTolerance = 1e-6;
constexpr double kLambda = 0.3;

Array<double> load(const io::SafetensorsFile& file, const std::string& name) {
  return ref::from_tensor<double>(file.at(name).tensor());
}

// [B, T, W] -> [B*T, W]
Array<double> flat(Array<double> a) {
  a.shape = {a.shape[0] * a.shape[1], a.shape[2]};
  return a;
}

void replace(std::string& name, const std::string& from, const std::string& to) {
  const size_t at = name.find(from);
  if (at != std::string::npos) name.replace(at, from.size(), to);
}

// Hugging Face's name of a parameter; written apart from src/io, as a second opinion.
std::string hf_name(const Config& c, std::string name) {
  if (name == "embed") return "model.embed_tokens.weight";
  if (name == "norm") return "model.norm.weight";
  if (name == "head") return "lm_head.weight";
  if (name.rfind("mtp.", 0) == 0) {
    const size_t dot = name.find('.', 4);
    const int64_t layer = c.num_hidden_layers + std::stoll(name.substr(4, dot - 4));
    const std::string rest = name.substr(dot + 1);
    if (rest == "norm") return concat("model.layers.", layer, ".shared_head.norm.weight");
    if (rest.rfind("block.", 0) != 0) return concat("model.layers.", layer, ".", rest, ".weight");
    name = concat("layers.", layer, ".", rest.substr(6));
  }
  name += ".weight";
  const std::pair<const char*, const char*> renames[] = {
      {"ffn.gate.weight.weight", "ffn.gate.weight"},
      {"ffn.gate.bias.weight", "ffn.gate.e_score_correction_bias"},
      {"attn_norm", "input_layernorm"},
      {"ffn_norm", "post_attention_layernorm"},
      {"attn.wq_a", "self_attn.q_a_proj"},
      {"attn.q_norm", "self_attn.q_a_layernorm"},
      {"attn.wq_b", "self_attn.q_b_proj"},
      {"attn.wkv_a", "self_attn.kv_a_proj_with_mqa"},
      {"attn.kv_norm", "self_attn.kv_a_layernorm"},
      {"attn.wkv_b", "self_attn.kv_b_proj"},
      {"attn.wq", "self_attn.q_proj"},
      {"attn.wo", "self_attn.o_proj"},
      {".w1.", ".gate_proj."},
      {".w3.", ".up_proj."},
      {".w2.", ".down_proj."},
      {".ffn.", ".mlp."}};
  for (const auto& [from, to] : renames) replace(name, from, to);
  return "model." + name;
}

class RefGolden : public testing::TestWithParam<std::string> {
 protected:
  RefGolden()
      : dir_("tests/goldens/" + GetParam()),
        config_(io::read_hf_config(dir_ + "/config.json").config),
        golden_(dir_ + "/golden.safetensors") {
    const io::SafetensorsFile model(dir_ + "/model.safetensors");
    resize(config_, weights_);
    for_each_param(
        config_,
        [&](const ParamInfo& info, Array<double>& a) {
          a = load(model, hf_name(config_, info.name));
          EXPECT_EQ(a.shape, info.shape) << info.name;
        },
        weights_);
    const Array<double> ids = load(golden_, "input_ids");
    for (int64_t b = 0; b < ids.dim(0); ++b) {
      ref::Sequence s;
      for (int64_t t = 0; t < ids.dim(1); ++t) {
        s.ids.push_back(static_cast<int64_t>(ids(b, t)));
        s.targets.push_back(t + 1 < ids.dim(1) ? static_cast<int64_t>(ids(b, t + 1)) : -1);
      }
      sequences_.push_back(s);
    }
  }

  void expect_routing(int64_t layer, const ref::Routing<double>& r) {
    const Array<double> idx = load(golden_, concat("topk.", layer));
    for (int64_t t = 0; t < idx.dim(0); ++t)
      for (int64_t k = 0; k < idx.dim(1); ++k)
        ASSERT_EQ(r.choice[static_cast<size_t>(t)][static_cast<size_t>(k)],
                  static_cast<int64_t>(idx(t, k)))
            << "layer " << layer << " token " << t;
    const Array<double> load_of = load(golden_, concat("load.", layer));
    for (size_t e = 0; e < r.load.size(); ++e)
      EXPECT_EQ(r.load[e], static_cast<int64_t>(load_of.data[e]));
    expect_relative_l2(concat("gate.", layer), r.weight, load(golden_, concat("gate.", layer)),
                       kTolerance);
  }

  const std::string dir_;
  const Config config_;
  const io::SafetensorsFile golden_;
  Arrays weights_;
  std::vector<ref::Sequence> sequences_;
};

TEST_P(RefGolden, Outputs) {
  const auto m = ref::model_forward(config_, weights_, sequences_, 1);
  expect_relative_l2("logits", m.logits, flat(load(golden_, "logits")), kTolerance);
  for (size_t l = 0; l < m.hidden.size(); ++l)
    expect_relative_l2(concat("hidden.", l), m.hidden[l], flat(load(golden_, concat("hidden.", l))),
                       kTolerance);
  expect_relative_l2("mtp.hidden", m.mtp[0].hidden, flat(load(golden_, "mtp.hidden")), kTolerance);
  expect_relative_l2("mtp.logits", m.mtp[0].logits, flat(load(golden_, "mtp.logits")), kTolerance);
  const double loss = load(golden_, "loss")[0], mtp_loss = load(golden_, "mtp.loss")[0];
  const auto targets = [&](int64_t k) {
    return ref::num_targets(ref::positions_of(sequences_, k).targets);
  };
  EXPECT_NEAR(m.loss_sum / targets(0), loss, kTolerance * loss);
  EXPECT_NEAR(m.mtp[0].loss_sum / targets(1), mtp_loss, kTolerance * mtp_loss);
  for (size_t r = 0; r < m.routing.size(); ++r)
    expect_routing(config_.first_k_dense_replace + static_cast<int64_t>(r), m.routing[r]);
}

// "layers.3.attn", "layers.3.ffn", "norm": what is checked together.
std::string group_of(const std::string& name) {
  size_t end = name.find('.');
  for (int i = 0; i < 2 && end != std::string::npos; ++i) end = name.find('.', end + 1);
  return name.substr(0, end);
}

// Along one random direction of all tensors of a group at once:
// |<grad - golden, v>| <= sum of |grad - golden|_2 |v|_2 by Cauchy-Schwarz.
TEST_P(RefGolden, Gradients) {
  ComplexArrays w = as_complex(config_, weights_);
  std::map<std::string, std::vector<std::string>> groups;
  for_each_param(
      config_,
      [&](const ParamInfo& info, Array<Complex>&) {
        if (info.trained()) groups[group_of(info.name)].push_back(info.name);
      },
      w);
  for (const auto& [group, names] : groups) {
    double want = 0.0, scale = 0.0;
    const ComplexArrays before = w;
    for_each_param(
        config_,
        [&](const ParamInfo& info, Array<Complex>& a) {
          if (std::find(names.begin(), names.end(), info.name) == names.end()) return;
          const Array<double> g = load(golden_, "grad." + hf_name(config_, info.name));
          const Array<double> v = ref::random(info.name, info.shape, 0.0, 1.0);
          want += ref::dot(v, g);
          scale += ref::norm(v) * ref::norm(g);
          for (int64_t i = 0; i < a.size(); ++i) a[i] += Complex(0.0, ref::kComplexStep * v[i]);
        },
        w);
    const Complex f = ref::objective(config_, w, sequences_, 1, kLambda, 0.0);
    EXPECT_NEAR(f.imag() / ref::kComplexStep, want, kTolerance * scale) << group;
    w = before;
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, RefGolden, testing::Values("base", "odd"));

}  // namespace
}  // namespace hadal::test
