// CheckpointWriter: a copy, parts, and their publication.
// SPDX-License-Identifier: Apache-2.0
#include "train/checkpoint_writer.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "core/env.h"
#include "core/timer.h"
#include "core/transfer.h"
#include "io/atomic.h"
#include "train/split_weights.h"

namespace hadal::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizerFiles[] = {"tokenizer.json", "tokenizer_config.json"};
constexpr io::SaveFormat kFormat{.dtype = DType::kF32, .quantization = {}};

// What this rank writes of the weights: each parameter is written by the first that holds it, a
// split matrix by the first of the tensor group.
io::CheckpointPart part_of(Learner& learner) {
  using Region = ParamStore::Region;
  Team& team = learner.team();
  Context& ctx = learner.context();
  const bool dense = team.dense().rank() == 0;
  const bool experts = team.summing(Region::kExperts).rank() == 0;
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
              [copy = team.embed_is_copy(), dense, experts](const ParamInfo& info) {
                if (info.name == "embed" && copy) return false;
                return info.expert >= 0 ? experts : dense;
              },
          .saves_copies = dense && has_mtp};
}

bool writes_weights(Team& team) {
  return team.dense().rank() == 0 || team.summing(ParamStore::Region::kExperts).rank() == 0;
}

void make_dir(const std::string& dir) {
  std::error_code error;
  fs::create_directories(dir, error);
  HADAL_CHECK(!error, "cannot make ", dir, ": ", error.message());
}

}  // namespace

bool CheckpointWriter::copies() const {
  return run_.train.background_checkpoints || learner_.context().device.kind != DeviceKind::kCpu;
}

CheckpointWriter::~CheckpointWriter() {
  release_state();
  if (thread_.joinable()) thread_.join();
  std::error_code ignored;
  if (stage_ != Stage::kIdle && learner_.team().is_first()) fs::remove_all(temporary_, ignored);
}

void CheckpointWriter::start(std::function<void()> work) {
  running_.store(true);
  thread_ = std::thread([this, work = std::move(work)] {
    try {
      work();
    } catch (...) {
      failure_ = std::current_exception();
    }
    running_.store(false);
  });
}

double CheckpointWriter::release_state() {
  if (copies_.are_made()) return 0.0;
  const Timer timer;
  copies_.finish(learner_.context().threads);
  return timer.seconds();
}

void CheckpointWriter::join() {
  release_state();
  if (thread_.joinable()) thread_.join();
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

// The tensors that this rank writes, whole and in host memory.
CheckpointWriter::ModelPart CheckpointWriter::take_model(const std::string& dir, ParamStore& store,
                                                         const io::CheckpointPart& part) {
  Context& ctx = learner_.context();
  Team& team = learner_.team();
  ModelPart model{.dir = dir, .tree = store.tree, .memory = {}};
  // Ranks of which none writes dense weights have nothing to gather.
  if (team.summing(ParamStore::Region::kSplit).rank() == 0) {
    WholeTree whole = gather_split(ctx, run_.model, team, store.tree);
    model.tree = whole.tree;
    model.memory = std::move(whole.memory);
  }
  // What was gathered is nobody else's.
  const auto is_own = [&](const ParamInfo& info) {
    return info.is_split() && !model.memory.empty() && ctx.device.kind == DeviceKind::kCpu;
  };
  for_each_param(
      run_.model,
      [&](const ParamInfo& info, Tensor& leaf) {
        const bool copied = part.saves_copies && (info.name == "embed" || info.name == "head");
        if (leaf.empty() || (!part.saves(info) && !copied))
          leaf = Tensor();
        else if (copies() && !is_own(info))
          leaf = copies_.keep(ctx, leaf);
      },
      model.tree);
  return model;
}

void CheckpointWriter::save(const TrainerState& state) {
  finish();
  Team& team = learner_.team();
  temporary_ = temporary_checkpoint(run_.train.output, state.step);
  state_ = state;
  stage_ = Stage::kParts;
  if (team.is_first()) {
    fs::remove_all(temporary_);
    make_dir(temporary_ + (learner_.average() != nullptr ? "/ema" : ""));
  }
  part_ = part_of(learner_);
  copies_.clear();
  models_.clear();
  models_.push_back(take_model(temporary_, learner_.masters(), part_));
  if (learner_.average() != nullptr)
    models_.push_back(take_model(temporary_ + "/ema", *learner_.average(), part_));
  optimizer_ = optimizer_part(run_.model, learner_, copies() ? &copies_ : nullptr);
  team.world().barrier();  // the directory is there
  start([this] {
    if (env::sabotage() != "late_copy") copies_.work();
    copies_.wait();
    write_part();
  });
  if (!run_.train.background_checkpoints) finish();
}

void CheckpointWriter::write_part() {
  Team& team = learner_.team();
  if (writes_weights(team))
    for (const ModelPart& model : models_)
      io::save_checkpoint_part(model.dir, run_.model, model.tree, kFormat, part_);
  team.maybe_die("die_in_checkpoint", state_.step);
  io::write_safetensors(temporary_ + "/" + optimizer_.file, std::move(optimizer_.tensors));
}

// The first rank's: what joins the parts to a checkpoint that any tool reads.
void CheckpointWriter::publish() {
  for (const ModelPart& model : models_) {
    io::finish_checkpoint(model.dir, run_.model, kFormat, part_.count);
    for (const char* file : kTokenizerFiles) {
      const std::string from = run_.data.tokenizer + "/" + file;
      if (!run_.data.tokenizer.empty() && fs::exists(from))
        io::write_file_atomic(model.dir + "/" + file, io::read_file(from, size_t{1} << 30));
    }
  }
  write_trainer_state(temporary_, run_, state_);
  publish_checkpoint(run_, temporary_, state_.step);
}

bool CheckpointWriter::is_writing() {
  if (running_.load()) return stage_ == Stage::kParts;
  join();
  return false;
}

void CheckpointWriter::parts_are_written() {
  if (stage_ != Stage::kParts) return;
  join();
  stage_ = Stage::kPublishing;
  if (learner_.team().is_first()) start([this] { publish(); });
}

void CheckpointWriter::finish() {
  if (stage_ == Stage::kIdle) return;
  join();
  if (stage_ == Stage::kParts) {
    learner_.team().world().barrier();
    if (learner_.team().is_first()) publish();
  }
  learner_.team().world().barrier();
  stage_ = Stage::kIdle;
  models_.clear();
}

}  // namespace hadal::train
