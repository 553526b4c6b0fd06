// Serving planned: DeepSeek's published day, the EP limits, caches, refusals.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <fstream>

#include "plan/serve_report.h"
#include "tests/unit/expect_error.h"

namespace hadal::plan {
namespace {

using testing::TempDir;

constexpr const char* kRates = "configs/serving/h800_rates.json";
constexpr const char* kDay6 = "configs/serving/day6.json";
const Config kNoModel;  // DeepSeek-V3's sizes are in the rates
const ServeDevice kH800 = {.memory_bytes = 83.5e9, .dollars_per_hour = 2};

// The inference system overview of 28 February 2025; nothing is fitted to it.
TEST(ServePlan, IsWithinTenPercentOfDeepSeeksDay) {
  const ServePlan p =
      plan_serving(kNoModel, read_serve_rates(kRates), read_serve_load(kDay6), kH800);
  EXPECT_NEAR(p.prefill.input_per_node / 73700, 1.0, 0.10);
  EXPECT_NEAR(p.decode.output_per_node / 14800, 1.0, 0.10);
  EXPECT_NEAR(p.nodes() / 226.75, 1.0, 0.10);
  EXPECT_NEAR(p.dollars_per_day / 87072, 1.0, 0.10);
  EXPECT_NEAR(p.revenue_per_day / 562027, 1.0, 0.001);
}

// The rates alone, against the profiles DeepSeek published: perfectly balanced, 4K.
TEST(ServePlan, PredictsThePublishedProfiles) {
  const ServeRates rates = read_serve_rates(kRates);
  const LayerTime prefill = prefill_layer(
      kNoModel, rates, {.tokens = 8192, .context = 2048, .ep = 32, .compute_sms = 108});
  EXPECT_NEAR(8 * 8192 / (61 * std::max(prefill.compute(), prefill.exchange())) / 62713, 1.0, 0.05);
  // The one number of "other" kernels in decode comes from this profile.
  const LayerTime decode = decode_layer(
      kNoModel, rates, {.requests = 64, .context = 4096, .ep = 128, .experts_per_gpu = 2.25});
  EXPECT_NEAR(8 * 64 / (61 * std::max(decode.compute(), decode.exchange())) / 18598, 1.0, 0.01);
}

// ISCA'25, 2.3.2, to the digits printed.
TEST(EpLimit, IsAsPrinted) {
  const EpLimit ib = ep_limit(32, 9, 7000, 61, 50e9);
  EXPECT_NEAR(ib.exchange_seconds * 1e6, 120.96, 0.005);
  EXPECT_NEAR(ib.step_seconds * 1e3, 14.76, 0.005);
  EXPECT_EQ(std::floor(ib.tokens_per_second()), 67);
  const EpLimit nvlink = ep_limit(32, 9, 7000, 61, 900e9);
  EXPECT_NEAR(nvlink.exchange_seconds * 1e6, 6.72, 0.005);
  EXPECT_NEAR(nvlink.step_seconds * 1e3, 0.82, 0.005);
  EXPECT_NEAR(nvlink.tokens_per_second(), 1200, 20);
}

TEST(Caches, CompareKindsOfAttention) {
  const std::vector<CacheRow> rows = compare_caches(kNoModel, 70272e6, 1000);
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[3].kind, "MLA");
  EXPECT_EQ(rows[3].bytes_per_token, 70272);
  EXPECT_EQ(rows[3].longest_context, 1000000);
  EXPECT_EQ(rows[3].largest_batch, 1000);
  EXPECT_NEAR(rows[0].bytes_per_token / rows[3].bytes_per_token, 56.9, 0.05);
  EXPECT_EQ(rows[1].bytes_per_token, rows[0].bytes_per_token / 16);
  EXPECT_EQ(rows[2].bytes_per_token, rows[0].bytes_per_token / 128);
}

TEST(ServePlan, KeepsASpeedForUsersBySmallerBatches) {
  ServeLoad load = read_serve_load(kDay6);
  const ServeRates rates = read_serve_rates(kRates);
  const ServePlan free = plan_serving(kNoModel, rates, load, kH800);
  load.user_speed = 20;
  const ServePlan held = plan_serving(kNoModel, rates, load, kH800);
  EXPECT_LE(held.decode.step_seconds, 1.0 / 20);
  EXPECT_LT(held.decode.batch, free.decode.batch);
  EXPECT_LT(held.decode.output_per_node, free.decode.output_per_node);
  load.user_speed = 1000;
  EXPECT_THROW(plan_serving(kNoModel, rates, load, kH800), Error);
}

TEST(ServePlan, GainsFromRedundancy) {
  ServeLoad load = read_serve_load(kDay6);
  load.zipf_exponent = 0.8;
  const ServePlan p = plan_serving(kNoModel, read_serve_rates(kRates), load, kH800);
  EXPECT_LT(p.prefill.experts.redundant, 0.8 * p.prefill.experts.plain);
  EXPECT_GT(p.prefill.experts.dynamic, 0.999);
}

TEST(ServeLoad, TakesATrace) {
  const TempDir dir;
  const std::string path = dir / "trace.json";
  std::string rows;
  for (int i = 1; i <= 200; ++i)
    rows += concat(i == 1 ? "" : ",", "[", i, ",4000,", i % 2 == 0 ? 2000 : 0, ",1000]");
  std::ofstream(path) << R"({"requests": [)" << rows
                      << R"(], "prefill": {"ep": 32, "redundant": 32},)"
                      << R"( "decode": {"ep": 144, "redundant": 32}})";
  const ServeLoad load = read_serve_load(path);
  EXPECT_DOUBLE_EQ(load.input_tokens_per_day, 4000.0 * 86400);
  EXPECT_DOUBLE_EQ(load.cache_hit_rate, 0.25);
  EXPECT_DOUBLE_EQ(load.mean_kv_tokens, 4500);
  EXPECT_DOUBLE_EQ(load.length_cv, 0);
  const ServePlan p = plan_serving(kNoModel, read_serve_rates(kRates), load, kH800);
  EXPECT_EQ(p.prefill.units, 1);
  EXPECT_GT(p.prefill.ttft_mean, 0.0);
  EXPECT_LT(p.prefill.ttft_mean, p.prefill.batch_seconds);  // an idle unit serves at once
}

TEST(ServeLoad, RefusesWhatCannotBe) {
  const TempDir dir;
  const std::string path = dir / "load.json";
  const auto refuse = [&](const std::string& text, const std::string& message) {
    std::ofstream(path) << text;
    EXPECT_ERROR(read_serve_load(path), path + message);
  };
  refuse(R"({"input_tokens_per_day": 1e9, "output_tokens_per_day": 1e9, "cache_hit_rate": 1.5})",
         ": cache_hit_rate is 1.5; allowed: 0 to 0.999");
  refuse(R"({"requests": [[0, 10, 20, 5]]})",
         ": request 0 is [0,10,20,5]; it has to be [arrival, prompt, cached, output], in order of "
         "arrival, with fewer cached tokens than the prompt has");
  std::ofstream(path) << R"({"device": "X"})";
  EXPECT_ERROR(read_serve_rates(path), path + ": gemm_source is missing; add it");
  ServeLoad load = read_serve_load(kDay6);
  load.decode.redundant = 31;
  EXPECT_ERROR(plan_serving(kNoModel, read_serve_rates(kRates), load, kH800),
               "decode: 256 experts and 31 redundant ones do not divide over ep 144; choose "
               "redundant so that they do");
  load = read_serve_load(kDay6);
  EXPECT_ERROR(plan_serving(kNoModel, read_serve_rates(kRates), load,
                            {.memory_bytes = 20e9, .dollars_per_hour = 2}),
               "decode: 24.0846 GB of weights leave 0 GB of a GPU's 20 GB, and one request of 4989 "
               "tokens needs 0.350587 GB; take a larger ep or a device with more memory");
}

}  // namespace
}  // namespace hadal::plan
