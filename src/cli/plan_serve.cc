// hadal plan serve: prefill and decode units for a load.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "cli/model_config.h"
#include "cli/plan.h"
#include "core/check.h"
#include "io/atomic.h"
#include "plan/cluster.h"
#include "plan/serve_report.h"

namespace hadal::cli {
namespace {

struct Options {
  std::string config = "configs/deepseek_v3.json";
  std::string cluster = "configs/clusters/h800_2048.json";
  std::string rates = "configs/serving/h800_rates.json";
  std::string load = "configs/serving/day6.json";
  std::string html;
  bool json = false;
};

void run(const Options& o) {
  const plan::Cluster c = plan::read_cluster(o.cluster);
  const plan::ServeReport report = plan::make_serve_report(
      read_model_config(o.config), plan::read_serve_rates(o.rates), plan::read_serve_load(o.load),
      {.memory_bytes = c.device.memory_bytes - c.device.reserved_bytes,
       .dollars_per_hour = c.device.dollars_per_hour,
       .devices_per_node = c.devices_per_node,
       .nic_bandwidth = c.scale_out.nics_per_node > 0 ? c.scale_out.effective_bandwidth
                                                      : c.device.memory_bandwidth});
  if (!o.html.empty()) io::write_file_atomic(o.html, plan::serve_page(report));
  if (o.json) {
    fmt::print("{}", io::to_text(plan::serve_json(report)));
    return;
  }
  for (const plan::ServeTable& table : plan::serve_tables(report)) {
    fmt::print("{}\n", table.title);
    for (const auto& row : table.rows) {
      fmt::print("  {:<48}", row[0]);
      for (size_t i = 1; i < row.size(); ++i) fmt::print("{:>18}", row[i]);
      fmt::print("\n");
    }
    fmt::print("\n");
  }
  if (!report.load.source.empty()) fmt::print("{}\n", report.load.source);
  if (!o.html.empty()) fmt::print("report: {}\n", o.html);
}

}  // namespace

void add_plan_serve_command(CLI::App& plan) {
  auto o = std::make_shared<Options>();
  auto* c = plan.add_subcommand("serve", "prefill and decode units for a load: speed, size, cost");
  c->add_option("--config", o->config, "config.json of the model")->capture_default_str();
  c->add_option("--cluster", o->cluster, "cluster file: memory, price, GPUs of a node")
      ->capture_default_str();
  c->add_option("--rates", o->rates, "kernel rates")->capture_default_str();
  c->add_option("--load", o->load, "load: rates of a day, or a trace")->capture_default_str();
  c->add_option("--html", o->html, "write a report page");
  c->add_flag("--json", o->json, "print JSON");
  c->footer(
      "Example: hadal plan serve --load configs/serving/day6.json --html "
      "serve.html");
  c->callback([o] { run(*o); });
}

}  // namespace hadal::cli
