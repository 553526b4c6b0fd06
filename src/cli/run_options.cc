// Adding and checking of the options that run a model.
// SPDX-License-Identifier: Apache-2.0
#include "cli/run_options.h"

#include <algorithm>

#include "core/check.h"
#include "core/env.h"

namespace hadal::cli {

void CacheOptions::add_to(CLI::App& app) {
  app.add_option("--kv-cache", kv_cache,
                 "latent cache: auto (the compute type), bf16, or fp8 (656 bytes a token and layer "
                 "of DeepSeek-V3 for 1152)")
      ->capture_default_str();
}

void CacheOptions::check() const {
  HADAL_CHECK(kv_cache == "auto" || kv_cache == "bf16" || kv_cache == "fp8", "--kv-cache is ",
              kv_cache, "; allowed: auto, bf16, fp8");
}

CacheFormat CacheOptions::format(DType act) const {
  check();
  if (kv_cache == "fp8") return CacheFormat::kFp8;
  HADAL_CHECK(kv_cache == "auto" || act == DType::kBF16,
              "--kv-cache is bf16, but this model computes in ", dtype_name(act),
              " and keeps its cache in that; use --dtype bf16, or --kv-cache auto or fp8");
  return CacheFormat::kCompute;
}

void ModelOptions::add_to(CLI::App& app) {
  app.add_option("--model", model, "checkpoint, or output directory of a training run")->required();
  app.add_option("--dtype", dtype, "auto (as stored), f32 or bf16")->capture_default_str();
  cache.add_to(app);
  app.add_option("--chunk", chunk, "tokens of one step of a long text")->capture_default_str();
  add_ranks_option(app, &ranks);
  machine.add_to(app);
}

void ModelOptions::check() const {
  cache.check();
  HADAL_CHECK(chunk >= 1 && chunk <= 65536, "--chunk is ", chunk, "; allowed: 1 to 65536");
  check_ranks(ranks);
}

void add_ranks_option(CLI::App& app, int64_t* ranks) {
  app.add_option(
         "--ranks", *ranks,
         "processes of this host, each with its cores or a GPU, that share the model: heads, dense "
         "widths, experts and vocabulary are split among them")
      ->capture_default_str();
}

void check_ranks(int64_t ranks) {
  HADAL_CHECK(ranks >= 1 && ranks <= 64, "--ranks is ", ranks, "; allowed: 1 to 64");
  HADAL_CHECK(ranks == 1 || !env::place(),
              "--ranks starts its processes itself; start hadal once, without mpirun or srun");
}

void SamplingOptions::add_to(CLI::App& app) {
  app.add_option("--temperature", temperature, "0 is greedy")->capture_default_str();
  app.add_option("--top-k", top_k, "keep the k most probable tokens; 0 keeps all")
      ->capture_default_str();
  app.add_option("--top-p", top_p, "keep the most probable tokens up to this probability")
      ->capture_default_str();
  app.add_option("--seed", seed, "the same seed gives the same text")->capture_default_str();
}

void SamplingOptions::check() const {
  HADAL_CHECK(temperature >= 0.0 && temperature <= 100.0, "--temperature is ", temperature,
              "; allowed: 0 (greedy) to 100");
  HADAL_CHECK(top_k >= 0, "--top-k is ", top_k, "; give 0 (all) or more");
  HADAL_CHECK(top_p > 0.0 && top_p <= 1.0, "--top-p is ", top_p, "; allowed: above 0, at most 1");
}

ops::SampleRule SamplingOptions::rule() const {
  return {.temperature = temperature, .top_k = top_k, .top_p = top_p, .seed = seed};
}

void SpeculateOptions::add_to(CLI::App& app) {
  app.add_option("--speculate", speculate,
                 "tokens drafted by MTP in a round; the text stays the same")
      ->capture_default_str();
}

void SpeculateOptions::check() const {
  HADAL_CHECK(speculate >= 0 && speculate <= 16, "--speculate is ", speculate,
              "; allowed: 0 to 16");
}

void SpeculateOptions::check(const Config& config) const {
  HADAL_CHECK(speculate == 0 || config.num_nextn_predict_layers > 0,
              "--speculate needs a model with an MTP ", "module; this one has none");
}

Decoder::Limits limits_of_one(const OpenedModel& model, const ModelOptions& options,
                              int64_t context, int64_t speculate) {
  const int64_t step = std::max(std::min(options.chunk, context), speculate + 1);
  return {.max_seqs = 1,
          .max_tokens = context,
          .max_step_tokens = step,
          .num_mtp = speculate > 0 ? model.config().num_nextn_predict_layers : 0,
          .num_pages = 0,
          .cache = options.cache.format(model.act)};
}

}  // namespace hadal::cli
