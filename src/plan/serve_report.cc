// Tables and JSON of hadal plan serve.
// SPDX-License-Identifier: Apache-2.0
#include "plan/serve_report.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>

namespace hadal::plan {
namespace {

using Rows = std::vector<std::vector<std::string>>;

std::string against(double value, double published) {
  return published > 0 ? fmt::format("{:+.1f}%", 100 * (value / published - 1)) : "";
}
std::string printed(double published, const char* format) {
  return published > 0 ? fmt::format(fmt::runtime(format), published) : "";
}
std::string fixed(double x, int digits) { return fmt::format("{:.{}f}", x, digits); }

ServeTable main_table(const ServeReport& r) {
  const ServePlan& p = r.plan;
  const ServeLoad::Published& pub = r.load.published;
  ServeTable t{"speed, size and cost", {{"", "planned", "published", "difference"}}};
  const auto row = [&](const char* name, double value, double published, const char* format) {
    t.rows.push_back({name, fmt::format(fmt::runtime(format), value), printed(published, format),
                      against(value, published)});
  };
  row("input tokens/s of a prefill node", p.prefill.input_per_node, pub.input_per_node, "{:.0f}");
  row("output tokens/s of a decode node", p.decode.output_per_node, pub.output_per_node, "{:.0f}");
  row("prefill nodes", p.prefill.nodes, 0, "{:.1f}");
  row("decode nodes", p.decode.nodes, 0, "{:.1f}");
  row("nodes", p.nodes(), pub.nodes, "{:.1f}");
  row("dollars a day", p.dollars_per_day, pub.dollars_per_day, "{:.0f}");
  row("revenue a day, dollars", p.revenue_per_day, pub.revenue_per_day, "{:.0f}");
  row("dollars of a million input tokens", p.dollars_per_million_input, 0, "{:.4f}");
  row("dollars of a million output tokens", p.dollars_per_million_output, 0, "{:.4f}");
  return t;
}

ServeTable unit_table(const ServeReport& r) {
  const PrefillPlan& p = r.plan.prefill;
  const DecodePlan& d = r.plan.decode;
  const auto n = [](double x) { return fmt::format("{:.0f}", x); };
  const auto imbalance = [](double x) { return x > 0 ? fixed(x, 3) : std::string("-"); };
  const double per_node = static_cast<double>(r.device.devices_per_node);
  return {
      "units",
      {{"", "prefill", "decode"},
       {"GPUs of a unit", std::to_string(r.load.prefill.ep), std::to_string(r.load.decode.ep)},
       {"units", std::to_string(p.units), std::to_string(d.units)},
       {"batch of a GPU", n(r.load.prefill.batch_tokens) + " tokens", n(d.batch) + " requests"},
       {"batch that memory holds", "-", n(d.max_batch) + " requests"},
       {"weights of a GPU, GB", "-", fixed(d.weight_bytes / 1e9, 1)},
       {"time of a full batch or step, ms", fixed(p.batch_seconds * 1e3, 1),
        fixed(d.step_seconds * 1e3, 1)},
       {"TTFT mean / p99, s", fmt::format("{:.2f} / {:.2f}", p.ttft_mean, p.ttft_p99), "-"},
       {"TPOT, ms (tokens/s of a user)", "-",
        fmt::format("{:.1f} ({:.1f})", d.step_seconds * 1e3, 1 / d.step_seconds)},
       {"tokens/s of a GPU, at full speed", n(p.tokens_per_node / per_node) + " computed",
        n(d.tokens_per_node / per_node)},
       {"expert imbalance, no redundancy", imbalance(p.experts.plain), imbalance(d.experts.plain)},
       {"... with the redundant experts", imbalance(p.experts.redundant),
        imbalance(d.experts.redundant)},
       {"... chosen per batch", imbalance(p.experts.dynamic), imbalance(d.experts.dynamic)},
       {"token imbalance", imbalance(p.token_imbalance), "-"},
       {"attention imbalance", imbalance(p.attention_imbalance), imbalance(d.kv_imbalance)}}};
}

ServeTable layer_table(const ServeReport& r) {
  const LayerTime& p = r.plan.prefill.layer;
  const LayerTime& d = r.plan.decode.layer;
  ServeTable t{"one MoE layer and micro-batch, us", {{"", "prefill", "decode"}}};
  const auto row = [&](const char* name, double a, double b) {
    t.rows.push_back({name, fixed(a * 1e6, 0), fixed(b * 1e6, 0)});
  };
  row("attention products", p.attention_products, d.attention_products);
  row("attention", p.attention, d.attention);
  row("shared expert", p.shared, d.shared);
  row("routed experts", p.routed, d.routed);
  row("all other kernels", p.other, d.other);
  row("compute", p.compute(), d.compute());
  row("dispatch", p.dispatch, d.dispatch);
  row("combine", p.combine, d.combine);
  return t;
}

ServeTable cache_table(const ServeReport& r) {
  ServeTable t{fmt::format("caches in the {:.1f} GB that a decode GPU has free, BF16; batches of "
                           "{:.0f} tokens",
                           (r.device.memory_bytes - r.plan.decode.weight_bytes) / 1e9,
                           r.load.mean_kv_tokens),
               {{"attention", "bytes of a token", "longest context", "largest batch"}}};
  for (const CacheRow& c : r.caches)
    t.rows.push_back({c.kind, fixed(c.bytes_per_token, 0), fixed(c.longest_context, 0),
                      fixed(c.largest_batch, 0)});
  return t;
}

ServeTable limit_table(const ServeReport& r) {
  ServeTable t{"EP speed limit: exchanges alone (ISCA'25, 2.3.2), and this plan",
               {{"", "exchange, us", "TPOT, ms", "tokens/s"}}};
  for (const auto& [name, limit] : r.limits)
    t.rows.push_back({name, fixed(limit.exchange_seconds * 1e6, 2),
                      fixed(limit.step_seconds * 1e3, 2), fixed(limit.tokens_per_second(), 1)});
  const DecodePlan& d = r.plan.decode;
  t.rows.push_back({fmt::format("planned, {:.0f} requests in a micro-batch", d.batch / 2),
                    fixed(d.layer.exchange() * 1e6, 2), fixed(d.step_seconds * 1e3, 2),
                    fixed(1 / d.step_seconds, 1)});
  return t;
}

io::Json layer_json(const LayerTime& t) {
  return {{"attention_products", t.attention_products},
          {"attention", t.attention},
          {"shared", t.shared},
          {"routed", t.routed},
          {"other", t.other},
          {"dispatch", t.dispatch},
          {"combine", t.combine}};
}

io::Json balance_json(const ExpertBalance& b) {
  return {{"plain", b.plain}, {"redundant", b.redundant}, {"dynamic", b.dynamic}};
}

}  // namespace

ServeReport make_serve_report(const Config& config, ServeRates rates, ServeLoad load,
                              const ServeDevice& device) {
  ServeReport r{.rates = std::move(rates),
                .load = std::move(load),
                .device = device,
                .plan = {},
                .caches = {},
                .limits = {}};
  r.plan = plan_serving(config, r.rates, r.load, device);
  r.caches = compare_caches(config, device.memory_bytes - r.plan.decode.weight_bytes,
                            r.load.mean_kv_tokens);
  const double layers = static_cast<double>(config.num_hidden_layers);
  const double targets = static_cast<double>(config.num_experts_per_tok + config.n_shared_experts);
  r.limits = {{"as printed: 50 GB/s, hidden 7,000, 61 layers", ep_limit(32, 9, 7000, 61, 50e9)},
              {"as printed: 900 GB/s", ep_limit(32, 9, 7000, 61, 900e9)},
              {"this model, 50 GB/s",
               ep_limit(32, targets, static_cast<double>(config.hidden_size), layers, 50e9)}};
  return r;
}

std::vector<ServeTable> serve_tables(const ServeReport& r) {
  return {main_table(r), unit_table(r), layer_table(r), limit_table(r), cache_table(r)};
}

io::Json serve_json(const ServeReport& r) {
  const PrefillPlan& p = r.plan.prefill;
  const DecodePlan& d = r.plan.decode;
  io::Json caches = io::Json::array(), limits = caches;
  for (const CacheRow& c : r.caches)
    caches.push_back({{"kind", c.kind},
                      {"bytes_per_token", c.bytes_per_token},
                      {"longest_context", c.longest_context},
                      {"largest_batch", c.largest_batch}});
  for (const auto& [name, limit] : r.limits)
    limits.push_back({{"name", name},
                      {"exchange_seconds", limit.exchange_seconds},
                      {"step_seconds", limit.step_seconds},
                      {"tokens_per_second", limit.tokens_per_second()}});
  return {{"mean_prompt", r.plan.mean_prompt},
          {"mean_output", r.plan.mean_output},
          {"prefill",
           {{"layer", layer_json(p.layer)},
            {"experts", balance_json(p.experts)},
            {"attention_imbalance", p.attention_imbalance},
            {"token_imbalance", p.token_imbalance},
            {"computed_tokens_per_node", p.tokens_per_node},
            {"input_per_node", p.input_per_node},
            {"batch_seconds", p.batch_seconds},
            {"ttft_mean", p.ttft_mean},
            {"ttft_p99", p.ttft_p99},
            {"nodes", p.nodes},
            {"units", p.units}}},
          {"decode",
           {{"layer", layer_json(d.layer)},
            {"experts", balance_json(d.experts)},
            {"kv_imbalance", d.kv_imbalance},
            {"weight_bytes", d.weight_bytes},
            {"max_batch", d.max_batch},
            {"batch", d.batch},
            {"tpot", d.step_seconds},
            {"tokens_per_node", d.tokens_per_node},
            {"output_per_node", d.output_per_node},
            {"nodes", d.nodes},
            {"units", d.units}}},
          {"nodes", r.plan.nodes()},
          {"dollars_per_day", r.plan.dollars_per_day},
          {"revenue_per_day", r.plan.revenue_per_day},
          {"dollars_per_million_input", r.plan.dollars_per_million_input},
          {"dollars_per_million_output", r.plan.dollars_per_million_output},
          {"caches", caches},
          {"ep_limits", limits},
          {"sources", r.rates.sources},
          {"load_source", r.load.source}};
}

}  // namespace hadal::plan
