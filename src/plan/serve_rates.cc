// Times of serving's kernels.
// SPDX-License-Identifier: Apache-2.0
#include "plan/serve_rates.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/json.h"

namespace hadal::plan {
namespace {

using Rows = std::vector<std::vector<double>>;

Rows rows_of(const io::JsonObject& root, const char* key, size_t width) {
  root.know(key);
  HADAL_CHECK(root.has(key) && root.json()[key].is_array() && !root.json()[key].empty(),
              root.where(), ": ", key, " is missing; add rows of ", width, " numbers");
  Rows rows;
  for (const io::Json& row : root.json()[key]) {
    std::vector<double> numbers;
    for (const io::Json& x : row)
      if (x.is_number() && x.get<double>() > 0) numbers.push_back(x.get<double>());
    HADAL_CHECK(numbers.size() == width && row.size() == width, root.where(), ": a row of ", key,
                " is ", row.dump(), "; it has to be ", width, " numbers above 0");
    rows.push_back(numbers);
  }
  return rows;
}

std::vector<ServeRates::Product> products_of(const io::JsonObject& root, const char* key) {
  std::vector<ServeRates::Product> products;
  for (const auto& r : rows_of(root, key, 4))
    products.push_back({static_cast<int64_t>(r[0]), static_cast<int64_t>(r[1]),
                        static_cast<int64_t>(r[2]), r[3] * 1e12});
  return products;
}

std::vector<ServeRates::Exchange> exchanges_of(const io::JsonObject& root, const char* key,
                                               double unit) {
  std::vector<ServeRates::Exchange> rows;
  for (const auto& r : rows_of(root, key, 3))
    rows.push_back({static_cast<int64_t>(r[0]), r[1] * unit, r[2] * unit});
  return rows;
}

double positive(const io::JsonObject& root, const char* key) {
  const double value = root.number(key);
  HADAL_CHECK(value > 0 && std::isfinite(value), root.where(), ": ", key, " is ", value,
              "; allowed: more than 0");
  return value;
}

// The row with the nearest number of GPUs, by ratio.
const ServeRates::Exchange& nearest(const std::vector<ServeRates::Exchange>& rows, int64_t gpus) {
  return *std::min_element(rows.begin(), rows.end(), [&](const auto& a, const auto& b) {
    const auto far = [&](const ServeRates::Exchange& e) {
      return std::abs(std::log(static_cast<double>(e.gpus) / static_cast<double>(gpus)));
    };
    return far(a) < far(b);
  });
}

// Products of attention that every token goes through, kv_b aside: N, K.
std::vector<std::array<int64_t, 2>> attention_products(const Config& c) {
  const int64_t H = c.num_attention_heads, D = c.hidden_size;
  std::vector<std::array<int64_t, 2>> shapes;
  if (c.q_lora_rank > 0) {
    shapes.push_back({c.q_lora_rank + c.latent_dim(), D});
    shapes.push_back({H * c.qk_head_dim(), c.q_lora_rank});
  } else {
    shapes.push_back({H * c.qk_head_dim() + c.latent_dim(), D});
  }
  shapes.push_back({D, H * c.v_head_dim});
  return shapes;
}

}  // namespace

ServeRates read_serve_rates(const std::string& path) {
  const io::JsonObject root = io::JsonObject::read(path);
  ServeRates r;
  r.device = root.string("device");
  for (const char* key :
       {"gemm_source", "grouped_source", "memory_source", "attention_prefill_source",
        "attention_decode_source", "prefill_other_source", "decode_other_source", "dispatch_source",
        "low_latency_source"})
    r.sources.push_back(root.string(key));
  r.gemm = products_of(root, "gemm");
  r.grouped = products_of(root, "grouped");
  r.memory_bandwidth = positive(root, "memory_bytes_per_second");
  r.attention_prefill_flops = positive(root, "attention_prefill_flops");
  r.attention_decode_flops = positive(root, "attention_decode_flops");
  r.attention_decode_bandwidth = positive(root, "attention_decode_bytes_per_second");
  r.prefill_other = positive(root, "prefill_other_seconds_per_token_layer");
  r.decode_other = positive(root, "decode_other_seconds_per_layer");
  r.normal = exchanges_of(root, "dispatch", 1e9);
  r.low_latency = exchanges_of(root, "low_latency", 1e-6);
  root.check_no_unknown();
  return r;
}

double product_seconds(const std::vector<ServeRates::Product>& table, double m, int64_t n,
                       int64_t k) {
  const double size = static_cast<double>(n) * static_cast<double>(k);
  const auto far = [&](const ServeRates::Product& p) {
    const bool is_same = p.n == n && p.k == k;
    return is_same ? -1.0
                   : std::abs(std::log(static_cast<double>(p.n) * static_cast<double>(p.k) / size));
  };
  const ServeRates::Product& like = *std::min_element(
      table.begin(), table.end(), [&](const auto& a, const auto& b) { return far(a) < far(b); });
  std::vector<ServeRates::Product> rows;
  for (const ServeRates::Product& p : table)
    if (p.n == like.n && p.k == like.k) rows.push_back(p);
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.m < b.m; });
  const auto seconds = [&](const ServeRates::Product& p) {
    return 2 * static_cast<double>(p.m) * size / p.flops;
  };
  const auto rows_of_m = [](const ServeRates::Product& p) { return static_cast<double>(p.m); };
  if (m <= rows_of_m(rows.front())) return seconds(rows.front());
  if (m >= rows_of_m(rows.back())) return 2 * m * size / rows.back().flops;
  size_t i = 1;
  while (m > rows_of_m(rows[i])) ++i;
  const double at =
      std::log(m / rows_of_m(rows[i - 1])) / std::log(rows_of_m(rows[i]) / rows_of_m(rows[i - 1]));
  return std::exp((1 - at) * std::log(seconds(rows[i - 1])) + at * std::log(seconds(rows[i])));
}

LayerTime prefill_layer(const Config& c, const ServeRates& r, const PrefillLayer& l) {
  const double sms = static_cast<double>(l.compute_sms) / r.sms;
  const int64_t H = c.num_attention_heads, D = c.hidden_size, F = c.moe_intermediate_size;
  const double experts = static_cast<double>(c.num_experts_per_tok);
  const double own = l.tokens * l.token_imbalance;  // of the GPU with the most
  LayerTime t;
  for (const auto& [n, k] : attention_products(c))
    t.attention_products += product_seconds(r.gemm, own, n, k) / sms;
  t.attention_products += product_seconds(r.gemm, own * (1 + l.cached_per_token),
                                          H * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank) /
                          sms;
  t.attention = 2 * l.tokens * l.context *
                static_cast<double>(H * (c.qk_head_dim() + c.v_head_dim)) /
                r.attention_prefill_flops / sms * l.attention_imbalance;
  const int64_t S = c.shared_intermediate_size();
  if (S > 0)
    t.shared = (product_seconds(r.gemm, own, 2 * S, D) + product_seconds(r.gemm, own, D, S)) / sms;
  const double rows = l.tokens * experts * l.expert_imbalance;
  t.routed =
      (product_seconds(r.grouped, rows, 2 * F, D) + product_seconds(r.grouped, rows, D, F)) / sms;
  t.other = r.prefill_other * own;
  // Bytes as DeepEP counts them: once for each node of a token, its own included.
  const ServeRates::Exchange& e = nearest(r.normal, l.ep);
  const double nodes =
      std::min({static_cast<double>(l.ep) / 8, static_cast<double>(c.topk_group), experts});
  const double elements =
      l.tokens * nodes * static_cast<double>(D) * std::max(l.token_imbalance, l.expert_imbalance);
  t.dispatch = elements * (1 + 4.0 / 128) / e.dispatch;
  t.combine = elements * 2 / e.combine;
  return t;
}

LayerTime decode_layer(const Config& c, const ServeRates& r, const DecodeLayer& l) {
  const int64_t H = c.num_attention_heads, D = c.hidden_size, F = c.moe_intermediate_size;
  const double latent = static_cast<double>(c.latent_dim());
  LayerTime t;
  for (const auto& [n, k] : attention_products(c))
    t.attention_products += product_seconds(r.gemm, l.requests, n, k);
  // Absorbed: both halves of wkv_b, one small product a head, BF16 and bound by reading them.
  t.attention_products += 2.0 * static_cast<double>(H * (c.qk_nope_head_dim + c.v_head_dim)) *
                          static_cast<double>(c.kv_lora_rank) / r.memory_bandwidth;
  const double keys = l.requests * l.context * l.kv_imbalance;
  t.attention =
      std::max(2 * keys * static_cast<double>(H) * (latent + static_cast<double>(c.kv_lora_rank)) /
                   r.attention_decode_flops,
               keys * latent * 2 / r.attention_decode_bandwidth);
  const int64_t S = c.shared_intermediate_size();
  if (S > 0)
    t.shared =
        product_seconds(r.gemm, l.requests, 2 * S, D) + product_seconds(r.gemm, l.requests, D, S);
  // Few rows: the weights of the GPU's experts have to be read.
  const double rows = l.requests * static_cast<double>(c.num_experts_per_tok) * l.expert_imbalance;
  for (const auto& [n, k] : {std::pair{2 * F, D}, std::pair{D, F}}) {
    const double size = static_cast<double>(n) * static_cast<double>(k);
    double flops = 0.0;  // of the fewest rows measured
    int64_t fewest = 0;
    for (const ServeRates::Product& p : r.grouped)
      if (p.n == n && p.k == k && (fewest == 0 || p.m < fewest)) fewest = p.m, flops = p.flops;
    if (fewest == 0) flops = r.grouped.front().flops;
    t.routed += std::max(2 * rows * size / flops, l.experts_per_gpu * size / r.memory_bandwidth);
  }
  t.other = r.decode_other;
  const ServeRates::Exchange& e = nearest(r.low_latency, l.ep);
  t.dispatch = e.dispatch * l.requests / 128 * l.expert_imbalance;
  t.combine = e.combine * l.requests / 128 * l.expert_imbalance;
  return t;
}

}  // namespace hadal::plan
