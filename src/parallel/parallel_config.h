// ParallelConfig: how a run is split over ranks, as its config says, and what each rank holds.
// Pure.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/params.h"
#include "parallel/mesh.h"
#include "parallel/schedule.h"
#include "parallel/stages.h"

namespace hadal {

// How tokens reach the ranks of their experts: as messages (ExpertExchange), or through windows in
// the memory of a host's GPUs (WindowExchange).
enum class ExchangeKind : uint8_t { kMessages, kWindows };
const char* exchange_name(ExchangeKind kind);  // "messages", "windows"
ExchangeKind parse_exchange(const std::string& name);

struct ParallelConfig {
  Mesh mesh;
  ScheduleKind schedule = ScheduleKind::k1F1B;
  int stages_per_rank = 2;           // of interleaved alone
  std::vector<int64_t> layers = {};  // of each stage; empty: as even as can be
  int ranks_per_node = 0;            // ranks that count as one node; 0: all
  ExchangeKind exchange = ExchangeKind::kMessages;
  // Pairs of a schedule run side by side, with their transfers; gradients of a layer are summed,
  // and masters gathered, beside the work.
  bool overlap = true;
  // GPUs record micro-batches, or all of a pipeline rank's step, and launch them (train/
  // recorded_step.h).
  bool record = true;
  // SMs of a GPU for the transfers of experts' tokens: left to them by the work of a pair, and what
  // puts rows into windows; 0 with windows: the copy engine, which takes none.
  int comm_sms = 20;
  // SMs of a GPU for each link of a pipeline, whose messages travel beside the work; 0: they travel
  // in its stream.
  int link_sms = 0;
  // Rows that a rank's experts have room for, as a multiple of an even share; a step that needs
  // more is done again with smaller micro-batches. 0: room for every token of all ranks.
  double row_capacity = 0.0;
  double heartbeat_seconds = 20.0;  // of silence until a rank counts as hung
  double timeout_seconds = 600.0;   // without progress, likewise
};

// Whether a rank may get more rows than it has room for.
bool limits_rows(const ParallelConfig& parallel);

ScheduleShape schedule_shape(const ParallelConfig& parallel, int64_t num_microbatches);
int num_stages(const ParallelConfig& parallel);
std::vector<StageRange> stage_ranges(const ParallelConfig& parallel, const Config& model);

// The stages of a pipeline rank, ascending; under DualPipe it has one in each direction.
struct LocalStage {
  int stage = 0;
  StageRange range;
};
std::vector<LocalStage> stages_of(const ParallelConfig& parallel, const Config& model, int pp);
// Which pipeline ranks hold a stage, ascending.
std::vector<int> holders_of(const ParallelConfig& parallel, int stage);
// Whether a stage has a parameter; of experts, whether one of its ranks does.
bool contains(const StageRange& range, const ParamInfo& info, const Config& model);
// Pages of the row pool of a rank: what the MoE layers of its chunks save while most are live, if
// every token of max_tokens that can choose this rank's experts does, or as many rows come as the
// capacity says.
int64_t row_pool_pages(const ParallelConfig& parallel, const Config& model, int pp,
                       int64_t max_tokens, int64_t num_microbatches);

// Throws an Error that names the number that does not fit. batch_sequences of a step are cut into
// micro-batches of micro_batch_sequences on each data-parallel rank.
void check_parallel(const ParallelConfig& parallel, const Config& model, int64_t batch_sequences,
                    int64_t micro_batch_sequences);

}  // namespace hadal
