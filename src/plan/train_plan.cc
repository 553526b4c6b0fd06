// TrainPlan: reading and checking.
// SPDX-License-Identifier: Apache-2.0
#include "plan/train_plan.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/hf_config.h"
#include "io/json.h"
#include "plan/runtime_mesh.h"

namespace hadal::plan {
namespace {

int small(const io::JsonObject& o, const char* key, int64_t fallback) {
  const int64_t value = o.integer(key, fallback);
  HADAL_CHECK(value >= 1 && value <= 1 << 20, o.where(), ": ", key, " is ", value,
              "; allowed: 1 to ", 1 << 20);
  return static_cast<int>(value);
}

int64_t count(const io::JsonObject& o, const char* key) {
  const int64_t value = o.integer(key);
  HADAL_CHECK(value >= 1 && value <= int64_t{1} << 32, o.where(), ": ", key, " is ", value,
              "; allowed: 1 to ", int64_t{1} << 32);
  return value;
}

double number(const io::JsonObject& o, const char* key, double fallback, double low, double high) {
  const double value = o.number(key, fallback);
  HADAL_CHECK(value >= low && value <= high, o.where(), ": ", key, " is ", value,
              "; allowed: ", low, " to ", high);
  return value;
}

Mesh read_mesh(const io::JsonObject& o) {
  const Mesh mesh{.pp = small(o, "pp", 1),
                  .dp = small(o, "dp", 1),
                  .ep = small(o, "ep", 1),
                  .tp = small(o, "tp", 1)};
  o.check_no_unknown();
  return mesh;
}

Fitted read_fitted(const io::JsonObject& o) {
  Fitted f;
  f.overlap_stretch = number(o, "overlap_stretch", 1.0, 0.1, 10.0);
  f.deferred_weight_stretch = number(o, "deferred_weight_stretch", 1.0, 0.1, 10.0);
  f.chunk_jitter = number(o, "chunk_jitter", 0.0, 0.0, 1.0);
  f.why = o.string("why", "");
  HADAL_CHECK(f.num_fitted() == 0 || !f.why.empty(), o.where(),
              ": why is missing; say what the numbers were fitted to");
  o.check_no_unknown();
  return f;
}

template <class Choice>
Choice choose(const io::JsonObject& o, const char* key, Choice fallback,
              std::initializer_list<Choice> all, const char* (*name_of)(Choice)) {
  if (!o.has(key)) return fallback;
  const std::string name = o.string(key);
  std::string list;
  for (const Choice choice : all) {
    if (name == name_of(choice)) return choice;
    list += concat(list.empty() ? "" : ", ", name_of(choice));
  }
  HADAL_FAIL(o.where(), ": ", key, " is \"", name, "\"; allowed: ", list);
}

Config read_model(const io::JsonObject& o, const std::filesystem::path& folder) {
  if (!o.json().at("model").is_string()) return io::model_from_json(o.object("model"));
  const std::string path = (folder / o.string("model")).string();
  const io::JsonObject model = io::JsonObject::read(path);
  if (model.json().contains("model")) return io::model_from_json(model.object("model"));
  return io::read_hf_config(path).config;
}

}  // namespace

int Fitted::num_fitted() const {
  return (overlap_stretch != 1.0) + (deferred_weight_stretch != 1.0) + (chunk_jitter != 0.0);
}

const char* recipe_name(Recipe recipe) {
  switch (recipe) {
    case Recipe::kFp8:
      return "fp8";
    case Recipe::kBf16:
      return "bf16";
    case Recipe::kF32:
      return "f32";
  }
  HADAL_UNREACHABLE("recipe");
}

const char* recompute_name(Recompute choice) {
  switch (choice) {
    case Recompute::kNone:
      return "none";
    case Recompute::kUpProjections:
      return "up_projections";
    case Recompute::kFull:
      return "full";
  }
  HADAL_UNREACHABLE("recompute");
}

DType activation_dtype(Recipe recipe) {
  return recipe == Recipe::kF32 ? DType::kF32 : DType::kBF16;
}

DeviceKind device_of(Recipe recipe) {
  return recipe == Recipe::kF32 ? DeviceKind::kCpu : DeviceKind::kCuda;
}

TrainPlan read_train_plan(const std::string& path, const std::vector<std::string>& assignments,
                          Rates rates) {
  io::Json root = io::read_json(path);
  for (const std::string& assignment : assignments) io::set_by_path(root, assignment);
  const io::JsonObject o(root, path);
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  HADAL_CHECK(o.has("model"), path, ": model is missing; add it");
  TrainPlan p;
  p.name = o.string("name");
  p.model = read_model(o, folder);
  p.cluster = read_cluster((folder / o.string("cluster")).string());
  if (rates == Rates::kWith) p.rates = RateTable::read(p.cluster.rate_files);
  p.rates.scale(p.cluster.flops_scale, p.cluster.bytes_scale);
  p.mesh = read_mesh(o.object("mesh"));
  p.schedule = parse_schedule(o.string("schedule"));
  p.stages_per_rank = small(o, "stages_per_rank", 2);
  p.batch_sequences = count(o, "batch_sequences");
  p.sequence_length = count(o, "sequence_length");
  p.micro_batch_sequences = count(o, "micro_batch_sequences");
  p.recipe =
      choose(o, "recipe", p.recipe, {Recipe::kFp8, Recipe::kBf16, Recipe::kF32}, &recipe_name);
  p.recompute =
      choose(o, "recompute", p.recompute,
             {Recompute::kNone, Recompute::kUpProjections, Recompute::kFull}, &recompute_name);
  p.row_imbalance = number(o, "row_imbalance", 1.0, 1.0, 1e6);
  p.tokens = number(o, "tokens", 0.0, 0.0, 1e18);
  if (o.has("fitted")) p.fitted = read_fitted(o.object("fitted"));
  o.check_no_unknown();
  return p;
}

bool has_whole_backwards(ScheduleKind kind) {
  return kind == ScheduleKind::k1F1B || kind == ScheduleKind::kInterleaved;
}

void check_train_plan(const TrainPlan& p) {
  const ScheduleShape shape = p.schedule_shape();
  HADAL_CHECK(!p.is_runtime() || p.recompute == Recompute::kUpProjections, "recompute is \"",
              recompute_name(p.recompute), "\"; a run of hadal train has \"up_projections\"");
  HADAL_CHECK(!p.is_runtime() || has_whole_backwards(p.schedule), "schedule is \"",
              schedule_name(p.schedule), "\"; runs of hadal train in f32 are planned with 1f1b or ",
              "interleaved, plan bf16 or fp8 with the others");
  HADAL_CHECK(!p.is_runtime() || p.mesh.tp == 1, "mesh: tp is ", p.mesh.tp,
              "; runs of hadal train in f32 are planned with tp 1, plan bf16 or fp8 with others");
  // NOTE: both ends of DualPipe hold the same stages, so its stages are as many as its ranks.
  const int64_t stages = p.schedule == ScheduleKind::kDualPipe ? 1 : stages_per_rank(shape);
  check_mesh(p.mesh, {.num_ranks = p.cluster.num_devices(),
                      .num_layers = p.model.num_hidden_layers,
                      .num_experts = p.model.n_routed_experts,
                      .num_heads = p.model.num_attention_heads,
                      .num_stages_per_rank = stages,
                      .batch_sequences = p.batch_sequences});
  const int64_t per_rank = p.batch_sequences / p.mesh.dp;
  HADAL_CHECK(per_rank % p.micro_batch_sequences == 0,
              "micro_batch_sequences = ", p.micro_batch_sequences, " does not divide the ",
              per_rank, " sequences of a data-parallel rank");
  check_schedule(shape);
  if (p.is_runtime())
    check_parallel(parallel_of(p), p.model, p.batch_sequences, p.micro_batch_sequences);
}

}  // namespace hadal::plan
