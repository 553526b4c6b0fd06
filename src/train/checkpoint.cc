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
#include <set>

#include "core/check.h"
#include "core/transfer.h"
#include "io/atomic.h"
#include "io/hf.h"

namespace hadal::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizerFiles[] = {"tokenizer.json", "tokenizer_config.json"};

std::string checkpoints_dir(const std::string& output) { return output + "/checkpoints"; }

std::string step_name(int64_t step) { return fmt::format("step_{:08}", step); }

std::vector<io::TensorSource> optimizer_tensors(const Config& config, HostTree& first,
                                                HostTree& second) {
  std::vector<io::TensorSource> tensors;
  for_each_param(
      config,
      [&](const ParamInfo& info, Tensor& m, Tensor& v) {
        if (!info.trained()) return;
        tensors.push_back(io::source_of("m." + info.name, m));
        tensors.push_back(io::source_of("v." + info.name, v));
      },
      first.tree, second.tree);
  return tensors;
}

void read_moment(Context& ctx, const io::SafetensorsFile& file, const std::string& key,
                 const Tensor& to) {
  const io::StoredTensor& from = file.at(key);
  HADAL_CHECK(
      from.type == io::to_stored_type(to.dtype()) && from.shape == io::source_of(key, to).shape,
      file.path(), ": tensor ", key, " is ", io::stored_type_name(from.type), " ",
      io::shape_text(from.shape), ", this run needs ", to.str(),
      "; resume with the config that wrote it");
  upload(ctx, from.data, to);
}

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

// config.json, weights and the tokenizer's files, as any tool reads them.
void save_model(const std::string& dir, const RunConfig& run, const ModelParams<Tensor>& tree) {
  io::save_checkpoint(dir, run.model, tree, {.dtype = DType::kF32, .quantization = {}});
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
  fs::remove_all(temporary);
  make_dir(temporary);
  try {
    Context& ctx = learner.context();
    const HostTree masters(ctx, run.model, learner.masters().tree);
    HostTree m(ctx, run.model, learner.first_moment().tree);
    HostTree v(ctx, run.model, learner.second_moment().tree);
    save_model(temporary, run, masters.tree);
    io::write_safetensors(temporary + "/optimizer.safetensors", optimizer_tensors(run.model, m, v));
    if (learner.average() != nullptr) {
      make_dir(temporary + "/ema");
      const HostTree average(ctx, run.model, learner.average()->tree);
      save_model(temporary + "/ema", run, average.tree);
    }
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
    fs::remove_all(temporary, ignored);
    throw;
  }
  io::rename_dir_atomic(temporary, dir + "/" + name);
  point_latest(dir, name);
  remove_old(dir, run.train.keep_checkpoints, state.step);
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
  const io::SafetensorsFile file(dir + "/optimizer.safetensors");
  std::set<std::string> wanted;
  const auto read = [&](const std::string& key, const Tensor& to) {
    read_moment(ctx, file, key, to);
    wanted.insert(key);
  };
  for_each_param(
      learner.config(),
      [&](const ParamInfo& info, Tensor& m, Tensor& v) {
        if (!info.trained()) return;
        read("m." + info.name, m);
        read("v." + info.name, v);
      },
      learner.first_moment().tree, learner.second_moment().tree);
  for (const auto& [name, tensor] : file.tensors())
    HADAL_CHECK(wanted.contains(name), file.path(), ": tensor ", name,
                " is not of this run's model; resume with the config that wrote it");
  return state;
}

}  // namespace hadal::train
