// Shared options of the subcommands.
// SPDX-License-Identifier: Apache-2.0
#include "cli/options.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <thread>

#include "core/check.h"
#include "core/dtype.h"

namespace hadal::cli {

void MachineOptions::add_to(CLI::App& app) {
  app.add_option("--threads", threads, "CPU threads; 0 uses every core")->capture_default_str();
  app.add_option("--device", device, "cpu or cuda")->capture_default_str();
  app.add_option("--numerics", numerics,
                 "invariant: a token's logits do not depend on what else runs; fastest (cuda): "
                 "they may, in the last bits")
      ->capture_default_str();
}

int threads_of_rank(int threads, int num_ranks) {
  if (threads > 0 || num_ranks == 1) return threads;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / num_ranks);
}

std::unique_ptr<Machine> MachineOptions::make(Device where, int num_ranks) const {
  HADAL_CHECK(numerics == "invariant" || numerics == "fastest", "--numerics is ", numerics,
              "; allowed: invariant, fastest");
  auto machine = std::make_unique<Machine>(threads_of_rank(threads, num_ranks), where);
  HADAL_CHECK(numerics == "invariant" || machine->device.kind == DeviceKind::kCuda,
              "--numerics fastest is for --device cuda; on the CPU invariant is the only mode");
  if (numerics == "fastest") machine->numerics = Numerics::kFastest;
  return machine;
}

Device parse_device(const std::string& name, const char* flag) {
  HADAL_CHECK(name == "cpu" || name == "cuda", flag, " is ", name, "; allowed: cpu, cuda");
  if (name == "cpu") return {};
  HADAL_CHECK(device::num_devices(DeviceKind::kCuda) > 0, flag, " is cuda: ", device::why_no_cuda(),
              ", or use cpu");
  return {.kind = DeviceKind::kCuda, .index = 0};
}

DType parse_dtype(const std::string& name, std::initializer_list<DType> allowed, const char* flag) {
  std::string list;
  for (DType dtype : allowed) {
    if (name == dtype_name(dtype)) return dtype;
    list += concat(list.empty() ? "" : ", ", dtype_name(dtype));
  }
  HADAL_FAIL(flag, " is ", name, "; allowed: ", list);
}

std::vector<int32_t> parse_ids(const std::string& text) {
  std::vector<int32_t> ids;
  const char* p = text.data();
  const char* end = p + text.size();
  while (p < end) {
    int32_t id = 0;
    const auto [next, error] = std::from_chars(p, end, id);
    HADAL_CHECK(error == std::errc() && (next == end || *next == ','),
                "token ids are numbers with ", "commas between them, like 5,9,200; got \"", text,
                "\"");
    ids.push_back(id);
    p = next == end ? end : next + 1;
  }
  return ids;
}

std::string resolve_model(const std::string& path) {
  namespace fs = std::filesystem;
  HADAL_CHECK(fs::exists(path), "there is no directory ", path);
  if (fs::exists(path + "/config.json")) return path;
  if (fs::exists(path + "/checkpoints/latest/config.json")) return path + "/checkpoints/latest";
  HADAL_FAIL(path,
             " holds no config.json and no checkpoints/latest; give a checkpoint directory or ",
             "the output directory of a training run");
}

}  // namespace hadal::cli
