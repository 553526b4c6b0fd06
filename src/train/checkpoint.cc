// Checkpoints of a training run: writing in one step, reading back bit for bit.
// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/check.h"
#include "core/transfer.h"
#include "io/atomic.h"
#include "io/hf.h"
#include "train/optimizer_state.h"

namespace hadal::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizerFiles[] = {"tokenizer.json", "tokenizer_config.json"};

std::string checkpoints_dir(const std::string& output) { return output + "/checkpoints"; }

std::string step_name(int64_t step) { return fmt::format("step_{:08}", step); }

int64_t count_of(const io::JsonObject& saved, const char* key) {
  const int64_t value = saved.integer(key);
  HADAL_CHECK(value >= 0, saved.where(), ": ", key, " is ", value,
              "; it cannot be negative: resume from another checkpoint");
  return value;
}

void point_latest(const std::string& dir, const std::string& name) {
  const std::string link = dir + "/latest", temporary = dir + "/.latest.tmp";
  unlink(temporary.c_str());
  HADAL_CHECK(symlink(name.c_str(), temporary.c_str()) == 0, "cannot write ", temporary, ": ",
              io::errno_text());
  HADAL_CHECK(rename(temporary.c_str(), link.c_str()) == 0, "cannot write ", link, ": ",
              io::errno_text());
  io::fsync_dir(dir);
}

// Steps of the complete checkpoints, ascending.
std::vector<int64_t> steps_in(const std::string& dir) {
  std::vector<int64_t> steps;
  for (const auto& entry : fs::directory_iterator(dir)) {
    const std::string name = entry.path().filename();
    if (name.rfind("step_", 0) != 0) continue;
    const int64_t of_name = std::atoll(name.c_str() + std::strlen("step_"));
    if (name == step_name(of_name)) steps.push_back(of_name);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

// Removes all but the newest `keep` checkpoints up to `step`. One of a later step was written by a
// process that was killed before it pointed there; it is replaced when that step comes again.
void remove_old(const std::string& dir, int64_t keep, int64_t step) {
  if (keep == 0) return;
  std::vector<int64_t> steps = steps_in(dir);
  std::erase_if(steps, [&](int64_t s) { return s > step; });
  for (size_t i = 0; i + static_cast<size_t>(keep) < steps.size(); ++i)
    fs::remove_all(dir + "/" + step_name(steps[i]));
}

constexpr io::SaveFormat kFormat{.dtype = DType::kF32, .quantization = {}};

// What this rank writes of the weights: each parameter is written by the first that holds it.
io::CheckpointPart part_of(Learner& learner) {
  Team& team = learner.team();
  Context& ctx = learner.context();
  const bool dense = team.dense().rank() == 0, experts = team.experts().rank() == 0;
  const bool has_mtp = team.stages().back().range.num_mtp > 0;
  // Which ranks write at all.
  Tensor writers;
  const int num_ranks = team.mesh().num_ranks();
  const Block memory = ctx.memory.take_tensor(DType::kI64, {num_ranks}, &writers);
  std::vector<int64_t> flags(static_cast<size_t>(num_ranks));
  flags[static_cast<size_t>(team.rank())] = dense || experts ? 1 : 0;
  upload(ctx, flags, writers);
  team.world().all_reduce(ctx, writers);
  flags = download<int64_t>(ctx, writers);
  const auto me = flags.begin() + team.rank();
  return {.index = static_cast<size_t>(std::accumulate(flags.begin(), me, int64_t{0})),
          .count = static_cast<size_t>(std::accumulate(flags.begin(), flags.end(), int64_t{0})),
          .saves =
              [&team, dense, experts](const ParamInfo& info) {
                if (info.name == "embed" && team.embed_is_copy()) return false;
                return info.expert >= 0 ? experts : dense;
              },
          .saves_copies = dense && has_mtp};
}

// config.json, weights and the tokenizer's files, as any tool reads them. Collective.
void save_model(const std::string& dir, const RunConfig& run, Learner& learner, ParamStore& store) {
  Team& team = learner.team();
  const io::CheckpointPart part = part_of(learner);
  if (team.dense().rank() == 0 || team.experts().rank() == 0) {
    const HostTree host(learner.context(), run.model, store.tree);
    io::save_checkpoint_part(dir, run.model, host.tree, kFormat, part);
  }
  team.world().barrier();
  if (!team.is_first()) return;
  io::finish_checkpoint(dir, run.model, kFormat, part.count);
  for (const char* file : kTokenizerFiles) {
    const std::string from = run.data.tokenizer + "/" + file;
    if (!run.data.tokenizer.empty() && fs::exists(from))
      io::write_file_atomic(dir + "/" + file, io::read_file(from, size_t{1} << 30));
  }
}

void make_dir(const std::string& dir) {
  std::error_code error;
  fs::create_directories(dir, error);
  HADAL_CHECK(!error, "cannot make ", dir, ": ", error.message());
}

}  // namespace

std::optional<std::string> latest_checkpoint(const std::string& output) {
  const std::string link = checkpoints_dir(output) + "/latest";
  if (!fs::exists(link + "/trainer.json")) return std::nullopt;
  return checkpoints_dir(output) + "/" + fs::read_symlink(link).string();
}

std::optional<std::string> checkpoint_up_to(const std::string& output, int64_t step) {
  const std::string dir = checkpoints_dir(output);
  if (!fs::exists(dir)) return std::nullopt;
  std::vector<int64_t> steps = steps_in(dir);
  std::erase_if(steps, [&](int64_t s) { return s > step; });
  if (steps.empty()) return std::nullopt;
  return dir + "/" + step_name(steps.back());
}

bool is_finished(const RunConfig& run) {
  const auto newest = latest_checkpoint(run.train.output);
  if (!newest) return false;
  const io::JsonObject saved = io::JsonObject::read(*newest + "/trainer.json");
  return run.train.is_over({.steps = saved.integer("step"), .tokens = saved.integer("tokens")});
}

void go_back_to(const std::string& output, int64_t step) {
  const std::string dir = checkpoints_dir(output);
  point_latest(dir, step_name(step));
  for (int64_t later : steps_in(dir))
    if (later > step) fs::remove_all(dir + "/" + step_name(later));
}

void save_run_checkpoint(const RunConfig& run, Learner& learner, const TrainerState& state) {
  const std::string dir = checkpoints_dir(run.train.output), name = step_name(state.step);
  const std::string temporary = dir + "/." + name + ".tmp";
  Team& team = learner.team();
  const bool has_average = learner.average() != nullptr;
  try {
    if (team.is_first()) {
      fs::remove_all(temporary);
      make_dir(temporary + (has_average ? "/ema" : ""));
    }
    team.world().barrier();
    save_model(temporary, run, learner, learner.masters());
    if (has_average) save_model(temporary + "/ema", run, learner, *learner.average());
    team.maybe_die("die_in_checkpoint");
    save_optimizer_state(temporary, learner);
    team.world().barrier();
    if (team.is_first())
      io::write_json(temporary + "/trainer.json", {{"format", 2},
                                                   {"step", state.step},
                                                   {"updates", state.updates},
                                                   {"position", state.position},
                                                   {"tokens", state.tokens},
                                                   {"feed", io::Json::parse(state.feed)},
                                                   {"guard", io::Json::parse(state.guard)},
                                                   {"run", to_json(run)}});
  } catch (...) {
    std::error_code ignored;
    if (team.is_first()) fs::remove_all(temporary, ignored);
    throw;
  }
  if (team.is_first()) {
    io::rename_dir_atomic(temporary, dir + "/" + name);
    point_latest(dir, name);
    remove_old(dir, run.train.keep_checkpoints, state.step);
  }
  team.world().barrier();
}

TrainerState load_run_checkpoint(Context& ctx, const std::string& dir, const RunConfig& run,
                                 Learner& learner) {
  const io::JsonObject saved = io::JsonObject::read(dir + "/trainer.json");
  HADAL_CHECK(saved.integer("format") == 2, dir, "/trainer.json has format ",
              saved.integer("format"), "; this hadal reads format 2");
  const auto text_of = [&](const char* key) {
    return saved.has(key) ? saved.object(key).json().dump() : std::string("null");
  };
  const TrainerState state{.step = count_of(saved, "step"),
                           .updates = count_of(saved, "updates"),
                           .position = count_of(saved, "position"),
                           .tokens = count_of(saved, "tokens"),
                           .feed = text_of("feed"),
                           .guard = text_of("guard")};
  const RunConfig before = run_config_of(saved.object("run"));
  HADAL_CHECK(
      to_json(before)["model"] == to_json(run)["model"], dir,
      " was written with another model config; resume with that config, or start a new run ",
      "with train.init_from");
  const io::HfCheckpoint checkpoint = io::open_checkpoint(dir);
  io::read_weights(ctx, checkpoint, learner.masters().tree);
  learner.masters_changed();
  if (learner.average() != nullptr && fs::exists(dir + "/ema"))
    io::read_weights(ctx, io::open_checkpoint(dir + "/ema"), learner.average()->tree);
  else
    learner.start_average();
  load_optimizer_state(dir, learner);
  return state;
}

}  // namespace hadal::train
