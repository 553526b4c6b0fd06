// Search: every mesh, schedule, micro-batch size and recompute choice of a plan, less what cannot
// be or does not fit, and of the rest what nothing else beats.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/json.h"
#include "plan/step.h"

namespace hadal::plan {

struct SearchSpace {
  // Device counts to try; empty: the whole cluster alone. Each is whole nodes, or a part of one.
  std::vector<int> devices;
  int64_t max_micro_batch_sequences = 4;  // 1, 2, 4, ...
  int max_tensor_parallel = 8;            // 1, 2, 4, ..., within a node
  std::vector<int> interleaved_stages = {2, 4};
};

struct Candidate {
  Mesh mesh;
  ScheduleKind schedule = ScheduleKind::k1F1B;
  int stages_per_rank = 1;
  int64_t micro_batch_sequences = 1;
  Recompute recompute = Recompute::kNone;
  int devices = 0;
  double step_seconds = 0.0, memory_bytes = 0.0, host_bytes_per_node = 0.0;
  double bubble_share = 0.0, tokens_per_second_per_device = 0.0, mfu_causal = 0.0;
  double device_hours = 0.0, dollars = 0.0;
};

struct SearchResult {
  std::vector<Candidate> front;  // no other is as good in step time, memory and devices at once
  std::vector<Candidate> fit;    // all that fit, fastest first
  int64_t tried = 0;             // combinations whose numbers divide
  int64_t dropped_for_memory = 0;
};

// An Error if nothing fits, which names the least memory that any combination needs.
SearchResult search(const TrainPlan& plan, const SearchSpace& space);

std::string search_text(const TrainPlan& plan, const SearchResult& result, size_t max_rows);
io::Json search_json(const SearchResult& result);
std::string search_html(const TrainPlan& plan, const SearchResult& result);

}  // namespace hadal::plan
