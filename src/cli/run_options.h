// Options of the subcommands that run a model: generate, chat, eval and serve.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "cli/loaded_model.h"
#include "cli/options.h"
#include "model/decoder.h"
#include "ops/sample.h"

namespace hadal::cli {

// --kv-cache: what the latent cache holds.
struct CacheOptions {
  std::string kv_cache = "auto";

  void add_to(CLI::App& app);
  void check() const;
  // auto is the compute type; an Error where a model that computes in act cannot have what was
  // asked for.
  CacheFormat format(DType act) const;
};

// --model, --dtype, --kv-cache, --chunk, --ranks, and those of the machine.
struct ModelOptions {
  MachineOptions machine;
  CacheOptions cache;
  std::string model, dtype = "auto";
  int64_t chunk = 256;
  int64_t ranks = 1;
  AttentionSplit attention = AttentionSplit::kHeads;  // among ranks

  void add_to(CLI::App& app);
  // An Error names the option that is wrong.
  void check() const;
};

// --temperature, --top-k, --top-p, --seed.
struct SamplingOptions {
  double temperature = 0.0, top_p = 1.0;
  int64_t top_k = 0;
  uint64_t seed = 0;

  void add_to(CLI::App& app);
  void check() const;
  ops::SampleRule rule() const;
};

// --ranks, of those that run a model.
void add_ranks_option(CLI::App& app, int64_t* ranks);
void check_ranks(int64_t ranks);

// --speculate.
struct SpeculateOptions {
  int64_t speculate = 0;

  void add_to(CLI::App& app);
  void check() const;
  void check(const Config& config) const;  // that the model can
};

// Room for one sequence of `context` tokens.
Decoder::Limits limits_of_one(const OpenedModel& model, const ModelOptions& options,
                              int64_t context, int64_t speculate);

}  // namespace hadal::cli
