// Rates of the kernels that serving runs, and the time of one layer made of them.
//
//   T tokens of a GPU (prefill) or requests of a GPU (decode) in one micro-batch
//
// Products are looked up by (N, K). Below the fewest rows measured the time stays (weights are read
// all the same), between rows it is interpolated in the logarithm of both, above the most the rate
// stays. A shape that was not measured gets the rate of the measured one with the nearest N * K.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace hadal::plan {

struct ServeRates {
  std::string device;
  std::vector<std::string> sources;
  struct Product {
    int64_t m, n, k;
    double flops;
  };
  std::vector<Product> gemm, grouped;  // of all 132 multiprocessors
  int sms = 132;
  double memory_bandwidth = 0.0;  // of products that read weights
  double attention_prefill_flops = 0.0;
  double attention_decode_flops = 0.0, attention_decode_bandwidth = 0.0;
  double prefill_other = 0.0;  // seconds of a token and layer: all that is neither of the above
  double decode_other = 0.0;   // seconds of a layer and micro-batch
  struct Exchange {
    int64_t gpus;
    double dispatch, combine;
  };
  std::vector<Exchange> normal;       // bytes/s, as DeepEP counts
  std::vector<Exchange> low_latency;  // seconds for 128 tokens
};
ServeRates read_serve_rates(const std::string& path);

double product_seconds(const std::vector<ServeRates::Product>& table, double m, int64_t n,
                       int64_t k);

// Parts of one MoE layer and micro-batch, in seconds.
struct LayerTime {
  double attention_products = 0.0, attention = 0.0, shared = 0.0, routed = 0.0, other = 0.0;
  double dispatch = 0.0, combine = 0.0;
  double compute() const { return attention_products + attention + shared + routed + other; }
  double exchange() const { return dispatch + combine; }
};

struct PrefillLayer {
  double tokens = 8192;           // T, computed
  double cached_per_token = 0.0;  // latents of the prefix up-projected for each
  double context = 2048;          // mean keys of a computed token
  double attention_imbalance = 1.0, token_imbalance = 1.0, expert_imbalance = 1.0;
  int64_t ep = 32;
  int compute_sms = 132;
};
LayerTime prefill_layer(const Config& config, const ServeRates& rates, const PrefillLayer& layer);

struct DecodeLayer {
  double requests = 64;  // T
  double context = 4096;
  double kv_imbalance = 1.0, expert_imbalance = 1.0;
  int64_t ep = 144;
  double experts_per_gpu = 2;
};
LayerTime decode_layer(const Config& config, const ServeRates& rates, const DecodeLayer& layer);

}  // namespace hadal::plan
