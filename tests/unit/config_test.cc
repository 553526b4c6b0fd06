// Config: impossible architectures name field, value and range; constants of rope and softmax.
// SPDX-License-Identifier: Apache-2.0
#include "model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/unit/expect_error.h"

namespace hadal {
namespace {

void expect_invalid(const std::function<void(Config&)>& change, const std::string& message) {
  Config config;
  change(config);
  EXPECT_ERROR(config.validate(), message);
}

TEST(Config, DeepSeekV3IsValid) {
  Config config;
  config.validate();
  EXPECT_EQ(config.num_moe_layers(), 59);
  config.first_k_dense_replace = config.num_hidden_layers;
  config.num_nextn_predict_layers = 0;
  config.validate();
  EXPECT_EQ(config.num_moe_layers(), 0);
}

TEST(Config, SizesHaveRanges) {
  expect_invalid([](Config& c) { c.vocab_size = 0; },
                 "config: vocab_size is 0; allowed: 1 to 2147483647");
  expect_invalid([](Config& c) { c.hidden_size = -7168; },
                 "config: hidden_size is -7168; allowed: 1 to 16777216");
  expect_invalid([](Config& c) { c.intermediate_size = 0; },
                 "config: intermediate_size is 0; allowed: 1 to 16777216");
  expect_invalid([](Config& c) { c.moe_intermediate_size = 0; },
                 "config: moe_intermediate_size is 0; allowed: 1 to 16777216");
  expect_invalid([](Config& c) { c.num_hidden_layers = -1; },
                 "config: num_hidden_layers is -1; allowed: 1 to 4096");
  expect_invalid([](Config& c) { c.num_attention_heads = 0; },
                 "config: num_attention_heads is 0; allowed: 1 to 16777216");
  expect_invalid([](Config& c) { c.q_lora_rank = -1; },
                 "config: q_lora_rank is -1; allowed: 0 to 16777216");
  expect_invalid([](Config& c) { c.kv_lora_rank = 0; },
                 "config: kv_lora_rank is 0; allowed: 1 to 16777216");
  expect_invalid([](Config& c) { c.qk_nope_head_dim = 0; },
                 "config: qk_nope_head_dim is 0; allowed: 1 to 16777216");
  expect_invalid([](Config& c) { c.v_head_dim = 0; },
                 "config: v_head_dim is 0; allowed: 1 to 16777216");
  expect_invalid([](Config& c) { c.max_position_embeddings = 0; },
                 "config: max_position_embeddings is 0; allowed: 1 to 2147483647");
  expect_invalid([](Config& c) { c.num_nextn_predict_layers = -1; },
                 "config: num_nextn_predict_layers is -1; allowed: 0 to 4096");
  expect_invalid([](Config& c) { c.first_k_dense_replace = 62; },
                 "config: first_k_dense_replace is 62; allowed: 0 to num_hidden_layers = 61");
  expect_invalid([](Config& c) { c.qk_rope_head_dim = 63; },
                 "config: qk_rope_head_dim is 63; allowed: even numbers from 2 (rope turns pairs)");
  expect_invalid([](Config& c) { c.qk_rope_head_dim = 0; },
                 "config: qk_rope_head_dim is 0; allowed: 2 to 16777216");
}

TEST(Config, Routing) {
  expect_invalid([](Config& c) { c.n_routed_experts = 0; },
                 "config: n_routed_experts is 0; allowed: 1 to 16777216");
  expect_invalid([](Config& c) { c.n_shared_experts = -1; },
                 "config: n_shared_experts is -1; allowed: 0 to 16777216");
  expect_invalid([](Config& c) { c.n_group = 7; },
                 "config: n_group is 7; allowed: divisors of n_routed_experts = 256");
  expect_invalid([](Config& c) { c.n_group = 0; },
                 "config: n_group is 0; allowed: 1 to n_routed_experts = 256");
  expect_invalid([](Config& c) { c.n_group = 256; },
                 "config: n_group is 256, which leaves groups of one expert; allowed: 1 to "
                 "n_routed_experts / 2 = 128 (noaux_tc ranks groups by their two best experts)");
  expect_invalid([](Config& c) { c.topk_group = 9; },
                 "config: topk_group is 9; allowed: 1 to n_group = 8");
  expect_invalid([](Config& c) { c.num_experts_per_tok = 257; },
                 "config: num_experts_per_tok is 257; allowed: 1 to n_routed_experts = 256");
  expect_invalid([](Config& c) { c.num_experts_per_tok = 0; },
                 "config: num_experts_per_tok is 0; allowed: 1 to n_routed_experts = 256");
  expect_invalid([](Config& c) { c.num_experts_per_tok = 129; },
                 "config: num_experts_per_tok is 129; allowed: 1 to "
                 "topk_group * (n_routed_experts / n_group) = 128");
  expect_invalid([](Config& c) { c.routed_scaling_factor = 0.0; },
                 "config: routed_scaling_factor is 0; allowed: finite and above 0");
}

TEST(Config, NumbersAndTokens) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  expect_invalid([](Config& c) { c.rms_norm_eps = 0.0; },
                 "config: rms_norm_eps is 0; allowed: above 0 and below 1");
  expect_invalid([](Config& c) { c.rms_norm_eps = -1e-6; },
                 "config: rms_norm_eps is -1e-06; allowed: above 0 and below 1");
  expect_invalid([](Config& c) { c.rms_norm_eps = kNan; },
                 "config: rms_norm_eps is nan; allowed: above 0 and below 1");
  expect_invalid([](Config& c) { c.initializer_range = -1.0; },
                 "config: initializer_range is -1; allowed: finite and at least 0");
  expect_invalid([](Config& c) { c.bos_token_id = 129280; },
                 "config: bos_token_id is 129280; allowed: 0 to vocab_size - 1 = 129279");
  expect_invalid(
      [](Config& c) {
        c.eos_token_ids = {1, -2};
      },
      "config: eos_token_id is -2; allowed: 0 to vocab_size - 1 = 129279");
  Config none;
  none.bos_token_id = -1;
  none.eos_token_ids.clear();
  none.validate();
}

TEST(Config, Rope) {
  expect_invalid([](Config& c) { c.rope.rope_type = "linear"; },
                 "config: rope_type is \"linear\"; allowed: \"default\", \"yarn\"");
  expect_invalid([](Config& c) { c.rope.rope_theta = 1.0; },
                 "config: rope_theta is 1; allowed: finite and above 1");
  const auto yarn = [](const std::function<void(RopeParameters&)>& change, const char* message) {
    expect_invalid(
        [&](Config& c) {
          c.rope.rope_type = "yarn";
          change(c.rope);
        },
        message);
  };
  yarn([](RopeParameters& r) { r.factor = 0.5; },
       "config: factor of YaRN is 0.5; allowed: finite and at least 1");
  yarn([](RopeParameters& r) { r.original_max_position_embeddings = 0; },
       "config: original_max_position_embeddings is 0; allowed: 1 to 2147483647");
  yarn([](RopeParameters& r) { r.beta_slow = 0.0; },
       "config: beta_slow is 0; allowed: finite and above 0");
  yarn([](RopeParameters& r) { r.beta_fast = 0.5; },
       "config: beta_fast is 0.5; allowed: finite and at least beta_slow = 1");
  yarn([](RopeParameters& r) { r.mscale = -1.0; },
       "config: mscale is -1; allowed: finite and at least 0");
  yarn([](RopeParameters& r) { r.mscale_all_dim = -1.0; },
       "config: mscale_all_dim is -1; allowed: finite and at least 0");
  yarn([](RopeParameters& r) { r.attention_factor = -1.0; },
       "config: attention_factor is -1; allowed: finite and at least 0");
}

TEST(Config, AbsurdSizesAreCaughtBeforeTheyOverflow) {
  expect_invalid([](Config& c) { c.hidden_size = int64_t{1} << 62; },
                 "config: hidden_size is 4611686018427387904; allowed: 1 to 16777216");
  expect_invalid([](Config& c) { c.vocab_size = (int64_t{1} << 31) - 1; },
                 "config: vocab_size * hidden_size has more than 2^40 elements; allowed: at most "
                 "1099511627776 in one parameter");
  expect_invalid(
      [](Config& c) {
        c.num_attention_heads = c.qk_nope_head_dim = c.q_lora_rank = int64_t{1} << 24;
      },
      "config: num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim) * q_lora_rank has more "
      "than 2^40 elements; allowed: at most 1099511627776 in one parameter");
  expect_invalid(
      [](Config& c) {
        c.n_routed_experts = int64_t{1} << 24;
        c.moe_intermediate_size = int64_t{1} << 20;
      },
      "config: the model has more than 2^50 parameters; lower hidden_size, num_hidden_layers or "
      "n_routed_experts");
}

const Config kPlain;

Config v3_with_yarn() {
  Config config;
  config.rope = {.rope_type = "yarn",
                 .rope_theta = 10000.0,
                 .factor = 40.0,
                 .original_max_position_embeddings = 4096,
                 .beta_fast = 32.0,
                 .beta_slow = 1.0,
                 .mscale = 1.0,
                 .mscale_all_dim = 1.0,
                 .attention_factor = 0.0};
  return config;
}

TEST(Rope, PlainFrequencies) {
  const std::vector<double> freq = rope_inv_freq(kPlain);
  ASSERT_EQ(freq.size(), 32u);
  for (size_t j = 0; j < 32; ++j)
    EXPECT_DOUBLE_EQ(freq[j], std::pow(10000.0, -static_cast<double>(j) / 32.0));
}

TEST(Rope, YarnOfDeepSeekV3) {
  const std::vector<double> plain = rope_inv_freq(kPlain);
  const std::vector<double> freq = rope_inv_freq(v3_with_yarn());
  for (size_t j = 0; j <= 10; ++j) EXPECT_EQ(freq[j], plain[j]) << j;
  for (size_t j = 11; j < 23; ++j) {  // the ramp from pair 10 to pair 23
    const double ramp = (static_cast<double>(j) - 10.0) / 13.0;
    EXPECT_DOUBLE_EQ(freq[j], plain[j] * (1.0 - ramp) + plain[j] / 40.0 * ramp) << j;
  }
  for (size_t j = 23; j < 32; ++j) EXPECT_EQ(freq[j], plain[j] / 40.0) << j;
}

// low = high = 0: the first pair stays, a ramp of 0.001 slows all others.
TEST(Rope, YarnWithoutRamp) {
  Config config = v3_with_yarn();
  config.rope.original_max_position_embeddings = 4;
  const std::vector<double> plain = rope_inv_freq(kPlain), freq = rope_inv_freq(config);
  EXPECT_EQ(freq[0], plain[0]);
  for (size_t j = 1; j < 32; ++j) EXPECT_EQ(freq[j], plain[j] / 40.0) << j;
}

TEST(Rope, SoftmaxScale) {
  EXPECT_NEAR(softmax_scale(kPlain), 0.0721688, 5e-8);
  EXPECT_NEAR(softmax_scale(v3_with_yarn()), 0.1352338, 5e-8);
  Config config = v3_with_yarn();
  config.rope.mscale_all_dim = 0.0;
  EXPECT_EQ(softmax_scale(config), softmax_scale(kPlain));
}

TEST(Rope, Magnitude) {
  Config config = v3_with_yarn();
  const double ln = std::log(40.0);
  EXPECT_EQ(rope_magnitude(kPlain), 1.0);
  EXPECT_EQ(rope_magnitude(config), 1.0);
  config.rope.mscale = 0.707;
  EXPECT_DOUBLE_EQ(rope_magnitude(config), (0.0707 * ln + 1.0) / (0.1 * ln + 1.0));
  config.rope.mscale_all_dim = 0.0;
  EXPECT_DOUBLE_EQ(rope_magnitude(config), 0.1 * ln + 1.0);
  config.rope.mscale = 0.0;
  config.rope.mscale_all_dim = 1.0;
  EXPECT_DOUBLE_EQ(rope_magnitude(config), 0.1 * ln + 1.0);
  config.rope.attention_factor = 0.8;
  EXPECT_EQ(rope_magnitude(config), 0.8);
  config.rope.attention_factor = 0.0;
  config.rope.factor = 1.0;
  EXPECT_EQ(rope_magnitude(config), 1.0);
}

}  // namespace
}  // namespace hadal
