// A planned training step as text, as JSON, and as a report page.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "io/json.h"
#include "plan/step.h"

namespace hadal::plan {

std::string train_text(const TrainPlan& plan, const TrainResult& result);
io::Json train_json(const TrainPlan& plan, const TrainResult& result);
std::string train_html(const TrainPlan& plan, const TrainResult& result);

// What the plan takes for granted, one sentence each.
std::vector<std::string> assumptions_of(const TrainPlan& plan);
// Rows of rates that an answer rests on: operation, shape, rate, uses, source. The first is a
// header.
std::vector<std::vector<std::string>> basis_rows(const Basis& basis);

}  // namespace hadal::plan
