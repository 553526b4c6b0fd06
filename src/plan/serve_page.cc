// Report page of hadal plan serve.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <span>

#include "plan/html.h"
#include "plan/serve_report.h"

namespace hadal::plan {
namespace {

struct Bar {
  const char* name;
  double seconds;
  const char* fill;
};

// One row per phase: compute above, exchange below, of one layer and
// micro-batch.
Svg draw_layers(const ServeReport& r) {
  const double left = 90, width = 640;
  Svg svg(left + width + 20, 176);
  double y = 10;
  for (const auto& [name, layer] :
       {std::pair{"prefill", r.plan.prefill.layer}, std::pair{"decode", r.plan.decode.layer}}) {
    const double scale = width / std::max(layer.compute(), layer.exchange());
    const Bar compute[] = {{"attention products", layer.attention_products, "b"},
                           {"attention", layer.attention, "w"},
                           {"shared", layer.shared, "bi"},
                           {"routed", layer.routed, "f"},
                           {"other", layer.other, "mem6"}};
    const Bar exchange[] = {{"dispatch", layer.dispatch, "comm"},
                            {"combine", layer.combine, "comm2"}};
    svg.text(left - 8, y + 28, name, "end");
    const auto bars = [&](std::span<const Bar> all, double top) {
      double x = left;
      for (const Bar& bar : all) {
        const double w = bar.seconds * scale;
        svg.rect(x, top, w, 24, bar.fill,
                 fmt::format("{}: {:.0f} us", bar.name, bar.seconds * 1e6));
        if (w > 70) svg.text(x + w / 2, top + 16, bar.name, "middle", "in");
        x += w;
      }
      svg.text(std::min(x + 6, left + width - 50), top + 38,
               fmt::format("{:.0f} us", (x - left) / scale * 1e6), "start", "small");
    };
    bars(compute, y);
    bars(exchange, y + 42);
    y += 86;
  }
  return svg;
}

}  // namespace

std::string serve_page(const ServeReport& r) {
  Html html("Serving planned on " + r.rates.device);
  html.paragraph(
      fmt::format("{:.0f} billion tokens in and {:.0f} billion out a day, {:.1f}% of the "
                  "input cached, {:.0f} "
                  "cached tokens behind an output token. {}",
                  r.load.input_tokens_per_day / 1e9, r.load.output_tokens_per_day / 1e9,
                  100 * r.load.cache_hit_rate, r.load.mean_kv_tokens, r.load.source));
  for (const ServeTable& table : serve_tables(r)) {
    html.heading(table.title);
    html.table(table.rows);

    if (table.title.starts_with("one MoE layer"))
      html.picture(draw_layers(r),
                   "Compute above, exchange below: two "
                   "micro-batches alternate, so the longer of "
                   "the two sets the pace.");
  }
  html.heading("Rates");
  html.list(r.rates.sources);
  return html.page();
}

}  // namespace hadal::plan
