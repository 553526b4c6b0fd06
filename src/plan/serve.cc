// Serving planned.
// SPDX-License-Identifier: Apache-2.0
#include "plan/serve.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>

#include "core/check.h"
#include "core/rng.h"
#include "model/bytes.h"
#include "parallel/placement.h"

namespace hadal::plan {
namespace {

constexpr double kDay = 86400.0;
constexpr int kTrials = 16;           // of drawn batches
constexpr int kTtftRequests = 20000;  // of a drawn trace

// Weibull with a mean of 1: exponential where the coefficient of variation is 1, constant at 0.
class Lengths {
 public:
  Lengths(double cv, uint64_t stream) : rng_(0, stream) {
    if (cv == 0) return;
    const auto variation = [](double inverse) {
      return std::exp(std::lgamma(1 + 2 * inverse) - 2 * std::lgamma(1 + inverse)) - 1;
    };
    double low = 1e-4, high = 100.0;  // of the inverse shape
    for (int i = 0; i < 100; ++i) {
      inverse_shape_ = (low + high) / 2;
      (variation(inverse_shape_) < cv * cv ? low : high) = inverse_shape_;
    }
    scale_ = std::exp(-std::lgamma(1 + inverse_shape_));
  }
  double draw() {
    return inverse_shape_ == 0 ? 1.0
                               : scale_ * std::pow(-std::log(1.0 - uniform()), inverse_shape_);
  }
  double uniform() { return rng_.uniform(at_++); }

 private:
  Rng rng_;
  double inverse_shape_ = 0.0, scale_ = 1.0;
  uint64_t at_ = 0;
};

std::vector<double> expert_loads(const Config& c, const ServeLoad& load) {
  if (!load.expert_loads.empty()) {
    HADAL_CHECK(static_cast<int64_t>(load.expert_loads.size()) == c.n_routed_experts,
                "expert_loads has ", load.expert_loads.size(), " numbers; the model has ",
                c.n_routed_experts, " routed experts");
    return load.expert_loads;
  }
  std::vector<double> loads(static_cast<size_t>(c.n_routed_experts));
  for (size_t i = 0; i < loads.size(); ++i)
    loads[i] = std::pow(static_cast<double>(i + 1), -load.zipf_exponent);
  const Rng rng(0, stream_id("plan.serve.experts"));  // popular experts lie anywhere
  for (size_t i = loads.size(); i > 1; --i) std::swap(loads[i - 1], loads[rng.u64(i) % i]);
  return loads;
}

ExpertBalance balance(const Config& c, const ServeLoad& load, const ServeUnit& unit,
                      const ServeDevice& device, const char* phase) {
  const std::vector<double> loads = expert_loads(c, load);
  const int64_t E = c.n_routed_experts;
  HADAL_CHECK(unit.ep >= 1 && (E + unit.redundant) % unit.ep == 0, phase, ": ", E, " experts and ",
              unit.redundant, " redundant ones do not divide over ep ", unit.ep,
              "; choose redundant so that they do");
  const placement::Layout layout{
      .num_replicas = E + unit.redundant,
      .num_groups = c.n_group,
      .num_nodes = std::max<int64_t>(1, unit.ep / device.devices_per_node),
      .num_gpus = unit.ep};
  ExpertBalance b;
  const placement::Placement placed = placement::balanced(loads, layout);
  b.redundant = placement::imbalance(placement::gpu_loads(placed, loads));
  b.plain = E % unit.ep == 0
                ? placement::imbalance(placement::gpu_loads(placement::in_order(E, unit.ep), loads))
                : 0.0;
  b.dynamic = 0.0;
  if (const int64_t active = layout.slots_per_gpu(); active >= 9 && (2 * E) % unit.ep == 0) {
    placement::Layout twice = layout;
    twice.num_replicas = std::max(2 * E, layout.num_replicas);
    const placement::Placement hosted = placement::global(loads, twice);
    b.dynamic = placement::imbalance(placement::activate(hosted, loads, active).tokens_of_gpu);
  }
  return b;
}

// Attention work and tokens of the busiest GPU over their means, when whole requests are given out
// by work and every GPU takes about as many tokens.
struct PrefillImbalance {
  double work = 0.0, tokens = 0.0;
};
PrefillImbalance prefill_imbalance(const ServeLoad& load, double mean_prompt) {
  const size_t G = static_cast<size_t>(load.prefill.ep);
  Lengths lengths(load.length_cv, stream_id("plan.serve.prefill"));
  PrefillImbalance mean;
  for (int trial = 0; trial < kTrials; ++trial) {
    const double budget = load.prefill.batch_tokens * static_cast<double>(G);
    std::vector<std::pair<double, double>> requests;  // work, tokens
    for (double tokens = 0.0; tokens < budget;) {
      const double prompt = mean_prompt * lengths.draw();
      const double fresh = std::min((1 - load.cache_hit_rate) * prompt, load.prefill.batch_tokens);
      requests.push_back({fresh * (prompt - fresh / 2), fresh});
      tokens += fresh;
    }
    std::sort(requests.begin(), requests.end(), std::greater<>());
    std::vector<double> work(G, 0.0), tokens(G, 0.0);
    for (const auto& [w, t] : requests) {
      size_t best = G;
      for (size_t g = 0; g < G; ++g)
        if (tokens[g] + t <= load.prefill.batch_tokens * 1.05 &&
            (best == G || work[g] < work[best]))
          best = g;
      if (best == G)
        best = static_cast<size_t>(std::min_element(tokens.begin(), tokens.end()) - tokens.begin());
      work[best] += w, tokens[best] += t;
    }
    mean.work += placement::imbalance(work) / kTrials;
    mean.tokens += placement::imbalance(tokens) / kTrials;
  }
  return mean;
}

// Cached tokens of the fullest GPU over the mean: each arriving request goes to the GPU with the
// fewest among those with the fewest requests.
double decode_imbalance(const ServeLoad& load, double batch) {
  const size_t G = static_cast<size_t>(load.decode.ep);
  const int64_t per_gpu = std::max<int64_t>(1, std::llround(batch));
  Lengths lengths(load.length_cv, stream_id("plan.serve.decode"));
  std::vector<double> tokens(G, 0.0);
  for (int64_t round = 0; round < per_gpu; ++round) {
    std::vector<size_t> order(G);
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return tokens[a] < tokens[b]; });
    for (const size_t g : order) tokens[g] += lengths.draw();
  }
  return placement::imbalance(tokens);
}

// Both micro-batches of a layer: compute of one over the exchange of the other.
double pair_seconds(const LayerTime& layer) {
  return 2 * std::max(layer.compute(), layer.exchange());
}

struct Ttft {
  double mean = 0.0, p99 = 0.0;
};

// First come, first served over `units`; a unit takes what fits its batch as soon as it is free.
Ttft time_to_first_token(const std::vector<ServeRequest>& requests, int64_t units,
                         double batch_tokens, double seconds_per_token, double transfer_per_token) {
  std::priority_queue<double, std::vector<double>, std::greater<>> free_at;
  for (int64_t u = 0; u < units; ++u) free_at.push(0.0);
  std::vector<double> waits;
  for (size_t next = 0; next < requests.size();) {
    const double begin = std::max(free_at.top(), requests[next].arrival);
    free_at.pop();
    double tokens = 0.0;
    size_t end = next;
    while (end < requests.size() && requests[end].arrival <= begin) {
      const double fresh = requests[end].prompt - requests[end].cached;
      if (end > next && tokens + fresh > batch_tokens) break;
      tokens += fresh;
      ++end;
    }
    // A batch that is not full still takes a tenth of a full one: weights are read and small
    // kernels launched all the same.
    const double done = begin + std::max(tokens, 0.1 * batch_tokens) * seconds_per_token;
    for (; next < end; ++next)
      waits.push_back(done - requests[next].arrival + requests[next].prompt * transfer_per_token);
    free_at.push(done);
  }
  Ttft t;
  if (waits.empty()) return t;
  t.mean = std::accumulate(waits.begin(), waits.end(), 0.0) / static_cast<double>(waits.size());
  const size_t rank = waits.size() * 99 / 100;
  std::nth_element(waits.begin(), waits.begin() + static_cast<ptrdiff_t>(rank), waits.end());
  t.p99 = waits[rank];
  return t;
}

// Poisson arrivals.
std::vector<ServeRequest> draw_trace(const ServeLoad& load, double mean_prompt,
                                     double fresh_per_second) {
  Lengths lengths(load.length_cv, stream_id("plan.serve.trace"));
  const double rate = fresh_per_second / (mean_prompt * (1 - load.cache_hit_rate));
  std::vector<ServeRequest> requests;
  double now = 0.0;
  for (int i = 0; i < kTtftRequests; ++i) {
    now -= std::log(1.0 - lengths.uniform()) / rate;
    const double prompt = mean_prompt * lengths.draw();
    requests.push_back({now, prompt, prompt * load.cache_hit_rate, 0.0});
  }
  return requests;
}

// Units that run on average for the work of `needed` of them.
double mean_units(const ServeLoad& load, double needed) {
  return load.requests.empty() ? std::max(1.0, needed + 0.5) : std::ceil(needed - 1e-9);
}

PrefillPlan plan_prefill(const Config& c, const ServeRates& r, const ServeLoad& load,
                         const ServeDevice& device, double mean_prompt) {
  PrefillPlan p;
  const double hit = load.cache_hit_rate, layers = static_cast<double>(c.num_hidden_layers);
  p.experts = balance(c, load, load.prefill, device, "prefill");
  const PrefillImbalance drawn = prefill_imbalance(load, mean_prompt);
  p.attention_imbalance = drawn.work, p.token_imbalance = drawn.tokens;
  // Long prompts hold more of the tokens: a token's prompt is (1 + cv^2) times the mean.
  p.mean_context = mean_prompt * (1 + load.length_cv * load.length_cv) * (hit + (1 - hit) / 2);
  p.layer = prefill_layer(c, r,
                          {.tokens = load.prefill.batch_tokens / 2,
                           .cached_per_token = hit / (1 - hit),
                           .context = p.mean_context,
                           .attention_imbalance = p.attention_imbalance,
                           .token_imbalance = p.token_imbalance,
                           .expert_imbalance = p.experts.redundant,
                           .ep = load.prefill.ep,
                           .compute_sms = load.prefill.compute_sms});
  p.layer_seconds = pair_seconds(p.layer) / 2;
  p.batch_seconds = pair_seconds(p.layer) * layers;
  const double per_gpu = load.prefill.batch_tokens / p.batch_seconds;
  p.tokens_per_node = per_gpu * static_cast<double>(device.devices_per_node);
  const double input_per_second = load.input_tokens_per_day / kDay;
  const double unit_nodes =
      static_cast<double>(load.prefill.ep) / static_cast<double>(device.devices_per_node);
  const double needed = input_per_second * (1 - hit) / (p.tokens_per_node * unit_nodes);
  p.nodes = mean_units(load, needed) * unit_nodes;
  p.units = static_cast<int64_t>(std::ceil(needed - 1e-9));
  p.input_per_node = input_per_second / p.nodes;
  const double per_unit = per_gpu * static_cast<double>(load.prefill.ep);
  const std::vector<ServeRequest> trace =
      load.requests.empty() ? draw_trace(load, mean_prompt, input_per_second * (1 - hit))
                            : load.requests;
  const Ttft t = time_to_first_token(
      trace, static_cast<int64_t>(std::ceil(mean_units(load, needed))),
      load.prefill.batch_tokens * static_cast<double>(load.prefill.ep), 1 / per_unit,
      static_cast<double>(cache_bytes_per_token(c, DType::kBF16, CacheFormat::kCompute, 0)) /
          device.nic_bandwidth);
  p.ttft_mean = t.mean, p.ttft_p99 = t.p99;
  return p;
}

DecodePlan plan_decode(const Config& c, const ServeRates& r, const ServeLoad& load,
                       const ServeDevice& device) {
  DecodePlan d;
  d.experts = balance(c, load, load.decode, device, "decode");
  const double slots = static_cast<double>(c.n_routed_experts + load.decode.redundant) /
                       static_cast<double>(load.decode.ep);
  d.weight_bytes = serving_weight_bytes(c, slots);
  d.cache_bytes_per_token =
      static_cast<double>(cache_bytes_per_token(c, DType::kBF16, CacheFormat::kCompute, 0));
  const double of_request = d.cache_bytes_per_token * load.mean_kv_tokens;
  const double free_bytes = device.memory_bytes - d.weight_bytes;
  HADAL_CHECK(free_bytes >= of_request, "decode: ", d.weight_bytes / 1e9, " GB of weights leave ",
              std::max(0.0, free_bytes) / 1e9, " GB of a GPU's ", device.memory_bytes / 1e9,
              " GB, and one request of ", load.mean_kv_tokens, " tokens needs ", of_request / 1e9,
              " GB; take a larger ep or a device with more memory");
  // The fullest GPU has to hold its requests.
  d.max_batch = std::floor(free_bytes / of_request);
  while (d.max_batch > 1 &&
         d.max_batch * decode_imbalance(load, d.max_batch) > free_bytes / of_request)
    --d.max_batch;
  const auto step = [&](double batch) {
    d.kv_imbalance = decode_imbalance(load, batch);
    d.layer = decode_layer(c, r,
                           {.requests = batch / 2,
                            .context = load.mean_kv_tokens,
                            .kv_imbalance = d.kv_imbalance,
                            .expert_imbalance = d.experts.redundant,
                            .ep = load.decode.ep,
                            .experts_per_gpu = slots});
    d.layer_seconds = pair_seconds(d.layer) / 2;
    return pair_seconds(d.layer) * static_cast<double>(c.num_hidden_layers);
  };
  d.batch = d.max_batch;
  d.step_seconds = step(d.batch);
  if (load.user_speed > 0 && d.step_seconds > 1 / load.user_speed) {
    double low = 0.0, high = d.batch;  // step(low) <= 1 / user_speed < step(high)
    while (high - low > 1) {
      const double middle = std::floor((low + high) / 2);
      (step(middle) <= 1 / load.user_speed ? low : high) = middle;
    }
    HADAL_CHECK(low >= 1, "decode: a step of one request a GPU takes ", step(1) * 1e3,
                " ms; user_speed ", load.user_speed, " tokens/s asks for less: lower it");
    d.batch = low;
    d.step_seconds = step(low);
  }
  const double per_gpu = d.batch / d.step_seconds;
  d.tokens_per_node = per_gpu * static_cast<double>(device.devices_per_node);
  const double output_per_second = load.output_tokens_per_day / kDay;
  const double unit_nodes =
      static_cast<double>(load.decode.ep) / static_cast<double>(device.devices_per_node);
  const double needed = output_per_second / (d.tokens_per_node * unit_nodes);
  d.nodes = mean_units(load, needed) * unit_nodes;
  d.units = static_cast<int64_t>(std::ceil(needed - 1e-9));
  d.output_per_node = output_per_second / d.nodes;
  return d;
}

}  // namespace

double serving_weight_bytes(const Config& c, double slots) {
  const double D = static_cast<double>(c.hidden_size);
  const ParamCounts n = count_params(c);
  const double embedding = static_cast<double>(c.vocab_size) * D * (c.tie_word_embeddings ? 1 : 2);
  const double expert = 3 * D * static_cast<double>(c.moe_intermediate_size);
  const double moe_layers = static_cast<double>(c.num_hidden_layers - c.first_k_dense_replace);
  const double routed = moe_layers * static_cast<double>(c.n_routed_experts) * expert;
  const double quantised =
      static_cast<double>(n.main) - embedding - routed + moe_layers * slots * expert;
  return quantised * (1 + 4.0 / (128 * 128)) + 2 * embedding;
}

EpLimit ep_limit(double tokens, double targets, double hidden, double layers, double bandwidth) {
  HADAL_CHECK(tokens > 0 && targets > 0 && hidden > 0 && layers > 0 && bandwidth > 0,
              "the EP limit needs tokens, targets, hidden, layers and bandwidth above 0");
  EpLimit limit;
  limit.exchange_seconds = (1 + 2) * tokens * targets * hidden / bandwidth;
  limit.step_seconds = 2 * limit.exchange_seconds * layers;
  return limit;
}

std::vector<CacheRow> compare_caches(const Config& c, double free_bytes, double context) {
  const double layers = static_cast<double>(c.num_hidden_layers);
  const double head = static_cast<double>(c.qk_nope_head_dim + c.v_head_dim);
  std::vector<CacheRow> rows;
  const auto add = [&](std::string kind, double elements) {
    const double bytes = 2 * elements * layers;
    rows.push_back({std::move(kind), bytes, std::floor(free_bytes / bytes),
                    std::floor(free_bytes / (bytes * context))});
  };
  add("MHA", head * static_cast<double>(c.num_attention_heads));
  if (c.num_attention_heads > 8) add("GQA, 8 groups", head * 8);
  add("MQA", head);
  add("MLA", static_cast<double>(c.latent_dim()));
  return rows;
}

ServePlan plan_serving(const Config& c, const ServeRates& r, const ServeLoad& load,
                       const ServeDevice& device) {
  ServePlan plan;
  // An output token attends to its prompt and to the output before it, of which long outputs hold
  // more: mean_kv = prompt + output (1 + cv^2) / 2.
  const double ratio = load.input_tokens_per_day / load.output_tokens_per_day;
  const double spread = (1 + load.length_cv * load.length_cv) / 2;
  plan.mean_output = load.mean_kv_tokens / (ratio + spread);
  plan.mean_prompt = ratio * plan.mean_output;
  plan.prefill = plan_prefill(c, r, load, device, plan.mean_prompt);
  plan.decode = plan_decode(c, r, load, device);
  const double node_day =
      static_cast<double>(device.devices_per_node) * device.dollars_per_hour * 24;
  plan.dollars_per_day = plan.nodes() * node_day;
  plan.dollars_per_million_input =
      plan.prefill.nodes * node_day / (load.input_tokens_per_day / 1e6);
  plan.dollars_per_million_output =
      plan.decode.nodes * node_day / (load.output_tokens_per_day / 1e6);
  plan.revenue_per_day =
      load.input_tokens_per_day / 1e6 *
          (load.cache_hit_rate * load.hit_dollars + (1 - load.cache_hit_rate) * load.miss_dollars) +
      load.output_tokens_per_day / 1e6 * load.output_dollars;
  return plan;
}

}  // namespace hadal::plan
