// Checkpoints of a training run: publishing in one step, reading back bit for bit.
// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/atomic.h"
#include "io/hf.h"
#include "train/optimizer_state.h"
#include "train/split_weights.h"

namespace hadal::train {
namespace {

namespace fs = std::filesystem;

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

std::string temporary_checkpoint(const std::string& output, int64_t step) {
  return checkpoints_dir(output) + "/." + step_name(step) + ".tmp";
}

void write_trainer_state(const std::string& dir, const RunConfig& run, const TrainerState& state) {
  io::write_json(dir + "/trainer.json", {{"format", 2},
                                         {"step", state.step},
                                         {"updates", state.updates},
                                         {"position", state.position},
                                         {"tokens", state.tokens},
                                         {"feed", io::Json::parse(state.feed)},
                                         {"guard", io::Json::parse(state.guard)},
                                         {"run", to_json(run)}});
}

void publish_checkpoint(const RunConfig& run, const std::string& from, int64_t step) {
  const std::string dir = checkpoints_dir(run.train.output), name = step_name(step);
  io::rename_dir_atomic(from, dir + "/" + name);
  point_latest(dir, name);
  remove_old(dir, run.train.keep_checkpoints, step);
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
  read_weights(ctx, checkpoint, learner.team(), learner.masters().tree);
  learner.masters_changed();
  if (learner.average() != nullptr && fs::exists(dir + "/ema"))
    read_weights(ctx, io::open_checkpoint(dir + "/ema"), learner.team(), learner.average()->tree);
  else
    learner.start_average();
  load_optimizer_state(dir, run.model, learner);
  return state;
}

}  // namespace hadal::train
