// Serving planned: prefill and decode units for a load, their speed, size and cost.
//
// A prefill unit runs two micro-batches at a time, the exchange of one under the compute of the
// other; a decode unit likewise (DeepSeek's inference system overview). All GPUs of a unit wait for
// the slowest in every layer, so imbalance of experts, of tokens and of attention between them
// counts in full, and the fullest GPU's memory bounds the batch of all. Lengths of prompts and
// outputs follow a Weibull distribution with a given coefficient of variation.
//
// Units are whole. A load given as rates is a mean over a day in which it moves, and is met with as
// many units as the hour needs: on average half a unit more than its work fills. A trace is met
// with a fixed number of units.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "plan/serve_rates.h"

namespace hadal::plan {

struct ServeRequest {
  double arrival = 0.0;                             // seconds
  double prompt = 0.0, cached = 0.0, output = 0.0;  // tokens
};

struct ServeUnit {
  int64_t ep = 32;
  int64_t redundant = 32;
  double batch_tokens = 16384;  // prefill: of a GPU, in both micro-batches
  int compute_sms = 132;
};

struct ServeLoad {
  double input_tokens_per_day = 0.0, output_tokens_per_day = 0.0;
  double cache_hit_rate = 0.0;
  double mean_kv_tokens = 0.0;       // cached tokens that an output token attends to
  double length_cv = 1.0;            // standard deviation over mean
  double user_speed = 0.0;           // tokens/s that a user is to get at least; 0: as memory allows
  double zipf_exponent = 0.0;        // expert i of a layer gets 1/i^s of the tokens
  std::vector<double> expert_loads;  // recorded, instead of Zipf
  double hit_dollars = 0.0, miss_dollars = 0.0, output_dollars = 0.0;  // for a million tokens
  ServeUnit prefill, decode;
  std::vector<ServeRequest> requests;  // a trace, instead of the rates
  struct Published {
    double input_per_node = 0.0, output_per_node = 0.0, nodes = 0.0;
    double dollars_per_day = 0.0, revenue_per_day = 0.0;
  } published;
  std::string source;
};
// A trace ("requests": [[arrival, prompt, cached, output], ...]) sets the rates and lengths.
ServeLoad read_serve_load(const std::string& path);

struct ServeDevice {
  double memory_bytes = 0.0;  // for the run
  double dollars_per_hour = 0.0;
  int64_t devices_per_node = 8;
  double nic_bandwidth = 40e9;
};

struct ExpertBalance {     // largest load of a GPU over the mean
  double plain = 1.0;      // experts in order
  double redundant = 1.0;  // as placed
  double dynamic = 1.0;    // 16 hosted, 9 active (prefill); 0 where the unit has no such layout
};

struct PrefillPlan {
  LayerTime layer;
  double layer_seconds = 0.0;  // of one micro-batch
  ExpertBalance experts;
  double attention_imbalance = 1.0, token_imbalance = 1.0, mean_context = 0.0;
  double tokens_per_node = 0.0;  // computed tokens/s at full speed
  double input_per_node = 0.0;   // hits included, of the mean number of nodes
  double batch_seconds = 0.0;
  double ttft_mean = 0.0, ttft_p99 = 0.0;
  double nodes = 0.0;  // on average
  int64_t units = 0;   // that run the mean load
};

struct DecodePlan {
  LayerTime layer;
  double layer_seconds = 0.0;
  ExpertBalance experts;
  double kv_imbalance = 1.0;
  double weight_bytes = 0.0, cache_bytes_per_token = 0.0;
  double max_batch = 0.0;  // mean requests of a GPU where memory holds those of the fullest
  double batch = 0.0;
  double step_seconds = 0.0;                            // TPOT
  double tokens_per_node = 0.0, output_per_node = 0.0;  // at full speed, of the mean nodes
  double nodes = 0.0;
  int64_t units = 0;
};

struct ServePlan {
  double mean_prompt = 0.0, mean_output = 0.0;
  PrefillPlan prefill;
  DecodePlan decode;
  double nodes() const { return prefill.nodes + decode.nodes; }
  double dollars_per_day = 0.0, revenue_per_day = 0.0;
  double dollars_per_million_input = 0.0, dollars_per_million_output = 0.0;
};

// Throws an Error that says what does not fit.
ServePlan plan_serving(const Config& config, const ServeRates& rates, const ServeLoad& load,
                       const ServeDevice& device);

// Weights of one GPU: attention, shared and dense parts on each, `slots` routed experts a layer;
// block FP8, embedding and head in BF16.
double serving_weight_bytes(const Config& config, double slots);

// The ISCA'25 paper's limit (2.3.2): nothing but the two exchanges of a layer, both micro-batches.
struct EpLimit {
  double exchange_seconds = 0.0;  // dispatch and combine of one micro-batch
  double step_seconds = 0.0;      // TPOT
  double tokens_per_second() const { return 1.0 / step_seconds; }
};
EpLimit ep_limit(double tokens, double targets, double hidden, double layers, double bandwidth);

// Caches of other kinds of attention with this config's heads, BF16.
struct CacheRow {
  std::string kind;
  double bytes_per_token = 0.0;
  double longest_context = 0.0;  // one request in `free_bytes`
  double largest_batch = 0.0;    // requests of `context` tokens
};
std::vector<CacheRow> compare_caches(const Config& config, double free_bytes, double context);

}  // namespace hadal::plan
