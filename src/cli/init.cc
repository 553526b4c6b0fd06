// hadal init: a checkpoint with random weights, of any size that fits the disk.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <filesystem>

#include "cli/model_config.h"
#include "cli/options.h"
#include "core/check.h"
#include "io/atomic.h"
#include "io/hf.h"
#include "model/bytes.h"
#include "model/param_store.h"

namespace hadal::cli {
namespace {

struct Options {
  MachineOptions machine;
  std::string config, dir, dtype = "bf16";
  uint64_t seed = 1;
  int64_t shard_mib = 5120;
};

io::SaveFormat save_format(const Options& o) {
  HADAL_CHECK(o.dtype == "f32" || o.dtype == "bf16" || o.dtype == "fp8" || o.dtype == "fp8-ue8m0",
              "--dtype is ", o.dtype, "; allowed: f32, bf16, fp8, fp8-ue8m0");
  HADAL_CHECK(o.shard_mib >= 1, "--shard-mib is ", o.shard_mib, "; give 1 or more");
  io::SaveFormat format{.dtype = o.dtype == "f32" ? DType::kF32 : DType::kBF16,
                        .quantization = {},
                        .max_shard_bytes = static_cast<size_t>(o.shard_mib) << 20};
  format.quantization.fp8 = o.dtype.starts_with("fp8");
  if (o.dtype == "fp8-ue8m0") format.quantization.scale_format = io::ScaleFormat::kPowerOfTwo;
  return format;
}

void run(const Options& o) {
  namespace fs = std::filesystem;
  const io::SaveFormat format = save_format(o);
  const Config config = read_model_config(o.config);
  HADAL_CHECK(!fs::exists(o.dir), o.dir, " exists; give a directory that does not");
  const auto machine = o.machine.make();
  Context ctx = machine->context();
  ParamStore store(ctx, config, format.dtype == DType::kF32 ? DType::kF32 : DType::kBF16,
                   ParamStore::Extent::kAll);
  init_params(ctx, config, o.seed, store.tree);
  const std::string temporary = o.dir + ".tmp";
  fs::remove_all(temporary);
  std::error_code error;
  fs::create_directories(temporary, error);
  HADAL_CHECK(!error, "cannot make ", temporary, ": ", error.message());
  try {
    io::save_checkpoint(temporary, config, HostTree(ctx, config, store.tree).tree, format);
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
  io::rename_dir_atomic(temporary, o.dir);
  const ParamCounts n = count_params(config);
  fmt::print("wrote {} parameters, {} of them MTP, to {} in {} (seed {})\n", n.main + n.mtp, n.mtp,
             o.dir, o.dtype, o.seed);
}

}  // namespace

void add_init_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("init", "write a checkpoint with random weights");
  command->add_option("--config", o->config, "config.json, or a run config")->required();
  command->add_option("dir", o->dir, "directory to make")->required();
  command->add_option("--seed", o->seed, "the same seed gives the same weights")
      ->capture_default_str();
  command->add_option("--dtype", o->dtype, "f32, bf16, fp8 or fp8-ue8m0")->capture_default_str();
  command->add_option("--shard-mib", o->shard_mib, "largest file")->capture_default_str();
  o->machine.add_to(*command);
  command->footer("Example: hadal init --config configs/quickstart.json --seed 1 /tmp/model");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
