// Reading of a serving load: rates, or a trace of requests.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/json.h"
#include "plan/serve.h"

namespace hadal::plan {
namespace {

double within(const io::JsonObject& o, const char* key, double low, double high) {
  const double value = o.number(key);
  HADAL_CHECK(value >= low && value <= high, o.where(), ": ", key, " is ", value,
              "; allowed: ", low, " to ", high);
  return value;
}

ServeUnit read_unit(const io::JsonObject& root, const char* key) {
  const io::JsonObject o = root.object(key);
  ServeUnit unit{.ep = o.integer("ep"),
                 .redundant = o.integer("redundant", 0),
                 .batch_tokens = o.number("batch_tokens", 16384),
                 .compute_sms = static_cast<int>(o.integer("compute_sms", 132))};
  o.check_no_unknown();
  HADAL_CHECK(unit.ep >= 1 && unit.ep <= 65536, o.where(), ": ep is ", unit.ep,
              "; allowed: 1 to 65536");
  HADAL_CHECK(unit.redundant >= 0, o.where(), ": redundant is ", unit.redundant,
              "; allowed: from 0");
  HADAL_CHECK(unit.batch_tokens >= 2 && unit.compute_sms >= 1 && unit.compute_sms <= 132, o.where(),
              ": batch_tokens and compute_sms are ", unit.batch_tokens, " and ", unit.compute_sms,
              "; allowed: from 2, and 1 to 132");
  return unit;
}

void read_trace(const io::JsonObject& root, ServeLoad& load) {
  root.know("requests");
  double prompt = 0, cached = 0, output = 0, attended = 0, square = 0;
  for (const io::Json& row : root.json()["requests"]) {
    bool is_good = row.is_array() && row.size() == 4;
    for (size_t i = 0; is_good && i < 4; ++i)
      is_good = row[i].is_number() && row[i].get<double>() >= 0;
    is_good = is_good && row[1].get<double>() > row[2].get<double>() &&
              (load.requests.empty() || row[0].get<double>() >= load.requests.back().arrival);
    HADAL_CHECK(is_good, root.where(), ": request ", load.requests.size(), " is ", row.dump(),
                "; it has to be [arrival, prompt, cached, output], in order of arrival, with ",
                "fewer cached tokens than the prompt has");
    const ServeRequest q{row[0].get<double>(), row[1].get<double>(), row[2].get<double>(),
                         row[3].get<double>()};
    load.requests.push_back(q);
    prompt += q.prompt, cached += q.cached, output += q.output;
    attended += q.output * (q.prompt + q.output / 2);
    square += q.prompt * q.prompt;
  }
  HADAL_CHECK(load.requests.size() >= 2 && load.requests.back().arrival > 0 && output > 0,
              root.where(), ": requests needs two at least, over some time, with output");
  const double n = static_cast<double>(load.requests.size());
  const double days = load.requests.back().arrival / 86400.0;
  load.input_tokens_per_day = prompt / days;
  load.output_tokens_per_day = output / days;
  load.cache_hit_rate = cached / prompt;
  load.mean_kv_tokens = attended / output;
  load.length_cv = std::sqrt(std::max(0.0, square / n / (prompt / n * prompt / n) - 1));
}

}  // namespace

ServeLoad read_serve_load(const std::string& path) {
  const io::JsonObject root = io::JsonObject::read(path);
  ServeLoad load;
  load.source = root.string("source", "");
  if (root.has("requests")) {
    read_trace(root, load);
  } else {
    load.input_tokens_per_day = within(root, "input_tokens_per_day", 1, 1e18);
    load.output_tokens_per_day = within(root, "output_tokens_per_day", 1, 1e18);
    load.cache_hit_rate = within(root, "cache_hit_rate", 0, 0.999);
    load.mean_kv_tokens = within(root, "mean_kv_tokens", 1, 1e9);
    load.length_cv = within(root, "length_cv", 0, 10);
  }
  if (root.has("expert_loads")) load.expert_loads = root.numbers("expert_loads");
  if (root.has("zipf_exponent")) load.zipf_exponent = within(root, "zipf_exponent", 0, 4);
  if (root.has("user_speed")) load.user_speed = within(root, "user_speed", 0.01, 1e6);
  if (root.has("dollars_per_million")) {
    const io::JsonObject prices = root.object("dollars_per_million");
    load.hit_dollars = prices.number("hit");
    load.miss_dollars = prices.number("miss");
    load.output_dollars = prices.number("output");
    prices.check_no_unknown();
  }
  load.prefill = read_unit(root, "prefill");
  load.decode = read_unit(root, "decode");
  if (root.has("published")) {
    const io::JsonObject p = root.object("published");
    load.published = {.input_per_node = p.number("input_per_node"),
                      .output_per_node = p.number("output_per_node"),
                      .nodes = p.number("nodes"),
                      .dollars_per_day = p.number("dollars_per_day"),
                      .revenue_per_day = p.number("revenue_per_day")};
    p.check_no_unknown();
  }
  root.check_no_unknown();
  return load;
}

}  // namespace hadal::plan
