// The report of a run: one self-contained HTML page of its curves, its speed and its experts' load.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "io/json.h"

namespace hadal::train {

// What the page shows of OUTPUT/run.json and OUTPUT/metrics.jsonl, at most `max_points` a curve.
io::Json report_data(const std::string& output, int64_t max_points);

// Writes OUTPUT/report.html.
void write_report(const std::string& output);

}  // namespace hadal::train
