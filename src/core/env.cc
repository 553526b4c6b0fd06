// The only place that reads environment variables.
// SPDX-License-Identifier: Apache-2.0
#include "core/env.h"

#include <array>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include "core/check.h"

namespace hadal::env {
namespace {

constexpr std::array<Variable, 14> kTable = {{
    {"HADAL_RANK", "",
     "this process's rank, where a script starts the ranks; mpirun and srun say it by themselves"},
    {"HADAL_WORLD_SIZE", "", "how many ranks there are, likewise"},
    {"HADAL_HOST", "", "ranks with the same name share memory; empty: the host's own name"},
    {"HADAL_RENDEZVOUS", "",
     "the file where ranks of several hosts find each other; empty: .hadal-JOB where they start"},
    {"HADAL_ISA", "",
     "CPU kernels to use: portable, avx2 or avx512; empty picks the best that runs"},
    {"HADAL_TRACE", "0", "1 adds source file, line and expression to errors"},
    {"HADAL_API_KEY", "", "a key that hadal serve lets in, besides those of --api-key-file"},
    {"HADAL_CUDA_PLAIN", "0",
     "1 runs plain CUDA kernels in place of those for Hopper, as a GPU before it would"},
    {"HADAL_DEBUG_SYNC", "0", "1 waits after every GPU kernel, so that an error names its op"},
    {"HADAL_FP8_SHORT_SUMS", "0",
     "1 keeps 14 bits of the sums of FP8 products instead of f32, to show what that does"},
    {"HADAL_NCCL", "",
     "path of NCCL's library, for ranks on GPUs; empty: libnccl.so.2 where the loader looks"},
    {"HADAL_SHARE_GPUS", "0",
     "1: ranks take a host's GPUs in turn where these are fewer; NCCL refuses that, a stand-in for "
     "tests does not"},
    {"HADAL_PROFILE", "0",
     "1 prints the time of each op on the GPU at exit; steps are then not recorded in graphs"},
    {"HADAL_SABOTAGE", "",
     "plants a named fault, to show that scripts/resume_check.sh notices it: rng, microbatch, "
     "counts, position; or that scripts/parallel_check.sh does: microbatch, expert_group, "
     "local_counts, balance_by_ranks; or that the tests of the page pool and the scheduler do: "
     "refcount, lru, rows, home; or "
     "kills rank 1 of a run at step 4, for the tests of that: die_in_step, die_in_collective, "
     "die_in_checkpoint; or leaves the copy for a checkpoint to the step that will change the "
     "state: "
     "late_copy; or bad data, for the tests of the guard: spike; or harms rank 1, so that "
     "hadal check names it: mute_rank, slow_rank, flip_bit, other_build"},
}};

std::string read(const char* name) {
  for (const Variable& variable : kTable) {
    if (std::string_view(variable.name) != name) continue;
    const char* value = std::getenv(name);
    return value != nullptr ? value : variable.fallback;
  }
  HADAL_UNREACHABLE(concat("environment variable ", name, " is not in the table"));
}

std::string read_one_of(const char* name, std::initializer_list<std::string_view> allowed) {
  const std::string value = read(name);
  std::string list;
  for (std::string_view option : allowed) {
    if (value == option) return value;
    if (!option.empty()) list += concat(list.empty() ? "" : ", ", option);
  }
  HADAL_FAIL(name, " is '", value, "'; use one of: ", list);
}

}  // namespace

std::span<const Variable> table() { return kTable; }

std::string isa() { return read_one_of("HADAL_ISA", {"", "portable", "avx2", "avx512"}); }
bool cuda_plain() { return read("HADAL_CUDA_PLAIN") == "1"; }
bool debug_sync() { return read("HADAL_DEBUG_SYNC") == "1"; }
bool fp8_short_sums() { return read("HADAL_FP8_SHORT_SUMS") == "1"; }
bool profile() { return read("HADAL_PROFILE") == "1"; }
std::string api_key() { return read("HADAL_API_KEY"); }
bool trace() { return read("HADAL_TRACE") == "1"; }
std::string nccl() { return read("HADAL_NCCL"); }
bool share_gpus() { return read("HADAL_SHARE_GPUS") == "1"; }
void restrict_nccl() {
  setenv("NCCL_NVLS_ENABLE", "0", 1);
  setenv("NCCL_GRAPH_REGISTER", "0", 1);
}
std::string host() { return read("HADAL_HOST"); }
std::string rendezvous() { return read("HADAL_RENDEZVOUS"); }

std::optional<Place> place() {
  // What sets rank, size, and the parts of the job's name.
  struct Launcher {
    const char *rank, *size;
    std::array<const char*, 2> job;
  };
  // NOTE: a batch script under Slurm has SLURM_PROCID too, but no step.
  constexpr Launcher kLaunchers[] = {
      {"HADAL_RANK", "HADAL_WORLD_SIZE", {"", ""}},
      {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", {"PMIX_NAMESPACE", ""}},
      {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", {"SLURM_JOB_ID", "SLURM_STEP_ID"}},
      {"PMI_RANK", "PMI_SIZE", {"PMI_JOBID", ""}},
  };
  const auto text = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value != nullptr ? value : "");
  };
  const auto number = [&](const char* name) {
    const std::string value = text(name);
    int n = -1;
    const auto end = std::from_chars(value.data(), value.data() + value.size(), n);
    HADAL_CHECK(end.ec == std::errc() && end.ptr == value.data() + value.size() && n >= 0, name,
                " is '", value, "'; it has to be a number");
    return n;
  };
  for (const Launcher& l : kLaunchers) {
    if (text(l.rank).empty() || text(l.size).empty()) continue;
    Place p{.rank = number(l.rank), .size = number(l.size), .job = ""};
    for (const char* name : l.job)
      for (const char ch : text(name))
        p.job += std::isalnum(static_cast<unsigned char>(ch)) != 0 ? ch : '-';
    HADAL_CHECK(p.rank < p.size, l.rank, " is ", p.rank, " and ", l.size, " is ", p.size,
                "; ranks count from 0");
    if (p.size == 1) return std::nullopt;
    return p;
  }
  HADAL_CHECK(text("PMIX_RANK").empty(),
              "PMIX_RANK is set, but nothing says how many ranks there are; "
              "set HADAL_RANK and HADAL_WORLD_SIZE");
  return std::nullopt;
}

std::string sabotage() {
  return read_one_of("HADAL_SABOTAGE", {"",
                                        "rng",
                                        "microbatch",
                                        "counts",
                                        "position",
                                        "spike",
                                        "refcount",
                                        "lru",
                                        "rows",
                                        "home",
                                        "expert_group",
                                        "local_counts",
                                        "balance_by_ranks",
                                        "die_in_step",
                                        "die_in_collective",
                                        "die_in_checkpoint",
                                        "late_copy",
                                        "mute_rank",
                                        "slow_rank",
                                        "flip_bit",
                                        "other_build"});
}

}  // namespace hadal::env
