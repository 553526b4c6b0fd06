// Validation of a Config, and the constants of attention that follow from it.
//
// Checks run from single fields to what fields say together, so that the first message names the
// field to change. Sizes are bounded so that no product below can overflow.
// SPDX-License-Identifier: Apache-2.0
#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <numbers>
#include <string_view>

#include "core/check.h"

namespace hadal {

namespace {

constexpr int64_t kMaxSize = int64_t{1} << 24;  // width, count or rank
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxTokenId = (int64_t{1} << 31) - 1;  // token ids and positions are i32
constexpr int64_t kMaxElements = int64_t{1} << 40;       // of one parameter
constexpr int64_t kMaxParameters = int64_t{1} << 50;     // of the model

void check_range(std::string_view field, int64_t value, int64_t low, int64_t high) {
  HADAL_CHECK(value >= low && value <= high, "config: ", field, " is ", value, "; allowed: ", low,
              " to ", high);
}

// `limit` names what sets the upper bound: "num_hidden_layers".
void check_at_most(std::string_view field, int64_t value, int64_t low, int64_t high,
                   std::string_view limit) {
  HADAL_CHECK(value >= low && value <= high, "config: ", field, " is ", value, "; allowed: ", low,
              " to ", limit, " = ", high);
}

void check_positive(std::string_view field, double value) {
  HADAL_CHECK(std::isfinite(value) && value > 0.0, "config: ", field, " is ", value,
              "; allowed: finite and above 0");
}

void check_not_negative(std::string_view field, double value) {
  HADAL_CHECK(std::isfinite(value) && value >= 0.0, "config: ", field, " is ", value,
              "; allowed: finite and at least 0");
}

// Product of positive factors, held at kMaxParameters + 1 once it is larger.
int64_t capped_product(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (int64_t factor : factors) {
    if (factor > kMaxParameters / product) return kMaxParameters + 1;
    product *= factor;
  }
  return product;
}

int64_t check_elements(std::string_view what, std::initializer_list<int64_t> factors) {
  const int64_t count = capped_product(factors);
  HADAL_CHECK(count <= kMaxElements, "config: ", what,
              " has more than 2^40 elements; allowed: at most ", kMaxElements, " in one parameter");
  return count;
}

void check_sizes(const Config& c) {
  check_range("vocab_size", c.vocab_size, 1, kMaxTokenId);
  check_range("hidden_size", c.hidden_size, 1, kMaxSize);
  check_range("intermediate_size", c.intermediate_size, 1, kMaxSize);
  check_range("moe_intermediate_size", c.moe_intermediate_size, 1, kMaxSize);
  check_range("num_hidden_layers", c.num_hidden_layers, 1, kMaxLayers);
  check_range("num_attention_heads", c.num_attention_heads, 1, kMaxSize);
  check_range("q_lora_rank", c.q_lora_rank, 0, kMaxSize);
  check_range("kv_lora_rank", c.kv_lora_rank, 1, kMaxSize);
  check_range("qk_nope_head_dim", c.qk_nope_head_dim, 1, kMaxSize);
  check_range("qk_rope_head_dim", c.qk_rope_head_dim, 2, kMaxSize);
  HADAL_CHECK(c.qk_rope_head_dim % 2 == 0, "config: qk_rope_head_dim is ", c.qk_rope_head_dim,
              "; allowed: even numbers from 2 (rope turns pairs)");
  check_range("v_head_dim", c.v_head_dim, 1, kMaxSize);
  check_at_most("first_k_dense_replace", c.first_k_dense_replace, 0, c.num_hidden_layers,
                "num_hidden_layers");
  check_range("num_nextn_predict_layers", c.num_nextn_predict_layers, 0, kMaxLayers);
  check_range("max_position_embeddings", c.max_position_embeddings, 1, kMaxTokenId);
}

void check_routing(const Config& c) {
  check_range("n_routed_experts", c.n_routed_experts, 1, kMaxSize);
  check_range("n_shared_experts", c.n_shared_experts, 0, kMaxSize);
  check_at_most("n_group", c.n_group, 1, c.n_routed_experts, "n_routed_experts");
  HADAL_CHECK(c.n_routed_experts % c.n_group == 0, "config: n_group is ", c.n_group,
              "; allowed: divisors of n_routed_experts = ", c.n_routed_experts);
  const int64_t group_size = c.n_routed_experts / c.n_group;
  HADAL_CHECK(c.n_group == 1 || c.topk_method != TopkMethod::kNoauxTc || group_size >= 2,
              "config: n_group is ", c.n_group,
              ", which leaves groups of one expert; allowed: 1 to ",
              "n_routed_experts / 2 = ", c.n_routed_experts / 2,
              " (noaux_tc ranks groups by their two best experts)");
  check_at_most("topk_group", c.topk_group, 1, c.n_group, "n_group");
  check_at_most("num_experts_per_tok", c.num_experts_per_tok, 1, c.n_routed_experts,
                "n_routed_experts");
  check_at_most("num_experts_per_tok", c.num_experts_per_tok, 1, c.topk_group * group_size,
                "topk_group * (n_routed_experts / n_group)");
  check_positive("routed_scaling_factor", c.routed_scaling_factor);
}

void check_rope(const Config& c) {
  const RopeParameters& r = c.rope;
  HADAL_CHECK(r.rope_type == "default" || r.rope_type == "yarn", "config: rope_type is \"",
              r.rope_type, "\"; allowed: \"default\", \"yarn\"");
  HADAL_CHECK(std::isfinite(r.rope_theta) && r.rope_theta > 1.0, "config: rope_theta is ",
              r.rope_theta, "; allowed: finite and above 1");
  if (r.rope_type != "yarn") return;
  HADAL_CHECK(std::isfinite(r.factor) && r.factor >= 1.0, "config: factor of YaRN is ", r.factor,
              "; allowed: finite and at least 1");
  check_range("original_max_position_embeddings", r.original_max_position_embeddings, 1,
              kMaxTokenId);
  check_positive("beta_slow", r.beta_slow);
  HADAL_CHECK(std::isfinite(r.beta_fast) && r.beta_fast >= r.beta_slow, "config: beta_fast is ",
              r.beta_fast, "; allowed: finite and at least beta_slow = ", r.beta_slow);
  check_not_negative("mscale", r.mscale);
  check_not_negative("mscale_all_dim", r.mscale_all_dim);
  check_not_negative("attention_factor", r.attention_factor);
}

// Every parameter can be counted and indexed.
void check_totals(const Config& c) {
  const int64_t D = c.hidden_size, H = c.num_attention_heads;
  const int64_t embed = check_elements("vocab_size * hidden_size", {c.vocab_size, D});
  const int64_t Rq = c.q_lora_rank;
  int64_t attention = 0;
  if (Rq == 0) {
    attention +=
        check_elements("num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim) * hidden_size",
                       {H, c.qk_head_dim(), D});
  } else {
    attention += check_elements("q_lora_rank * hidden_size", {Rq, D});
    attention +=
        check_elements("num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim) * q_lora_rank",
                       {H, c.qk_head_dim(), Rq});
  }
  attention +=
      check_elements("(kv_lora_rank + qk_rope_head_dim) * hidden_size", {c.latent_dim(), D});
  attention +=
      check_elements("num_attention_heads * (qk_nope_head_dim + v_head_dim) * kv_lora_rank",
                     {H, c.qk_nope_head_dim + c.v_head_dim, c.kv_lora_rank});
  attention +=
      check_elements("num_attention_heads * v_head_dim * hidden_size", {H, c.v_head_dim, D});
  const int64_t dense =
      3 * check_elements("intermediate_size * hidden_size", {c.intermediate_size, D});
  const int64_t expert =
      3 * check_elements("moe_intermediate_size * hidden_size", {c.moe_intermediate_size, D});
  int64_t moe = check_elements("n_routed_experts * hidden_size", {c.n_routed_experts, D});
  if (c.n_shared_experts > 0)
    moe += 3 * check_elements("n_shared_experts * moe_intermediate_size * hidden_size",
                              {c.n_shared_experts, c.moe_intermediate_size, D});

  const int64_t layers = c.num_hidden_layers + c.num_nextn_predict_layers;
  const int64_t total[] = {capped_product({embed, 2}),
                           capped_product({attention, layers}),
                           capped_product({dense, layers}),
                           capped_product({moe, layers}),
                           capped_product({expert, c.n_routed_experts, layers}),
                           capped_product({D, D, 2, layers})};
  int64_t sum = 0;
  for (int64_t part : total) sum += part;
  HADAL_CHECK(sum <= kMaxParameters, "config: the model has more than 2^50 parameters; ",
              "lower hidden_size, num_hidden_layers or n_routed_experts");
}

// YaRN's magnitude: 0.1 * mscale * ln(factor) + 1.
double yarn_magnitude(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

}  // namespace

int64_t Config::num_moe_layers() const {
  return num_hidden_layers - std::min(first_k_dense_replace, num_hidden_layers) +
         num_nextn_predict_layers;
}

void Config::validate() const {
  check_sizes(*this);
  check_routing(*this);
  check_rope(*this);
  HADAL_CHECK(rms_norm_eps > 0.0 && rms_norm_eps < 1.0, "config: rms_norm_eps is ", rms_norm_eps,
              "; allowed: above 0 and below 1");
  check_not_negative("initializer_range", initializer_range);
  if (bos_token_id != -1)  // -1: the model has none
    check_at_most("bos_token_id", bos_token_id, 0, vocab_size - 1, "vocab_size - 1");
  for (int64_t id : eos_token_ids)
    check_at_most("eos_token_id", id, 0, vocab_size - 1, "vocab_size - 1");
  check_totals(*this);
}

std::vector<double> rope_inv_freq(const Config& config) {
  const RopeParameters& r = config.rope;
  const double dim = static_cast<double>(config.qk_rope_head_dim);
  std::vector<double> freq(static_cast<size_t>(config.qk_rope_head_dim / 2));
  for (size_t j = 0; j < freq.size(); ++j)
    freq[j] = std::pow(r.rope_theta, -2.0 * static_cast<double>(j) / dim);
  if (r.rope_type != "yarn") return freq;

  // Pairs that turn more than beta_fast times within the original length stay; those that turn less
  // than beta_slow times are slowed by `factor`; a ramp joins them.
  const auto pair_of = [&](double turns) {
    const double length = static_cast<double>(r.original_max_position_embeddings);
    return dim * std::log(length / (turns * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(r.rope_theta));
  };
  const double low = std::clamp(std::floor(pair_of(r.beta_fast)), 0.0, dim - 1.0);
  double high = std::clamp(std::ceil(pair_of(r.beta_slow)), 0.0, dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t j = 0; j < freq.size(); ++j) {
    const double ramp = std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
    freq[j] = freq[j] * (1.0 - ramp) + freq[j] / r.factor * ramp;
  }
  return freq;
}

double rope_magnitude(const Config& config) {
  const RopeParameters& r = config.rope;
  if (r.rope_type != "yarn") return 1.0;
  if (r.attention_factor != 0.0) return r.attention_factor;
  if (r.mscale != 0.0 && r.mscale_all_dim != 0.0)
    return yarn_magnitude(r.factor, r.mscale) / yarn_magnitude(r.factor, r.mscale_all_dim);
  return yarn_magnitude(r.factor, 1.0);
}

double softmax_scale(const Config& config) {
  const RopeParameters& r = config.rope;
  const double scale = 1.0 / std::sqrt(static_cast<double>(config.qk_head_dim()));
  if (r.rope_type != "yarn" || r.mscale_all_dim == 0.0) return scale;
  const double magnitude = yarn_magnitude(r.factor, r.mscale_all_dim);
  return scale * magnitude * magnitude;
}

}  // namespace hadal
