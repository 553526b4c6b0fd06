// What several subcommands share: the machine they run on, a model on disk, and number lists.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/context.h"

namespace hadal::cli {

// Owns the threads, the memory and the stream behind a Context.
struct Machine {
  Machine(int num_threads, Device where)
      : device(where), stream(device::make_stream(where)), threads(num_threads), memory(where) {}
  ~Machine() { device::destroy(device, stream); }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  Device device;
  Stream stream;
  ThreadPool threads;
  Pool memory;
  Numerics numerics = Numerics::kInvariant;
  Context context() {
    return {.device = device,
            .stream = stream,
            .threads = threads,
            .memory = memory,
            .numerics = numerics};
  }
};

// "cpu" or "cuda", the value of `flag`; an Error that says what is missing where there is no such
// device.
Device parse_device(const std::string& name, const char* flag);
// Threads of each of `num_ranks` processes on this host; `threads` if it is given.
int threads_of_rank(int threads, int num_ranks);

// --threads, --device and --numerics.
struct MachineOptions {
  int threads = 0;
  std::string device = "cpu", numerics = "invariant";
  void add_to(CLI::App& app);
  bool on_gpus() const { return device == "cuda"; }
  std::unique_ptr<Machine> make() const { return make(parse_device(device, "--device"), 1); }
  // Of one of several ranks on this host, on its device: the cores are shared.
  std::unique_ptr<Machine> make(Device where, int num_ranks) const;
};

DType parse_dtype(const std::string& name, std::initializer_list<DType> allowed, const char* flag);
// "5,9,200"
std::vector<int32_t> parse_ids(const std::string& text);
// The checkpoint directory that a --model argument means: itself, or the latest of a training run.
std::string resolve_model(const std::string& path);

// One function per subcommand: adds it to the program.
void add_train_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_chat_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_verify_command(CLI::App& app);
void add_info_command(CLI::App& app);
void add_init_command(CLI::App& app);
void add_check_command(CLI::App& app);
void add_env_command(CLI::App& app);
void add_tokenizer_command(CLI::App& app);
void add_data_command(CLI::App& app);
void add_report_command(CLI::App& app);
void add_plan_command(CLI::App& app);

}  // namespace hadal::cli
