// hadal check: this machine, and the links between the ranks that a run would have on it and
// others.
// SPDX-License-Identifier: Apache-2.0
#include "core/check.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/options.h"
#include "cli/others.h"
#include "core/env.h"
#include "parallel/comm_host.h"
#include "parallel/launch.h"
#include "parallel/link_check.h"

namespace hadal::cli {
namespace {

struct Options {
  int ranks = 2;
  double heartbeat_seconds = 20.0;
  bool json = false;
};

// Lines that a rank leaves for the process that started it.
class Notes {
 public:
  Notes() : file_(std::tmpfile()) {
    HADAL_CHECK(file_ != nullptr,
                "cannot make a temporary file; free space in the temporary folder");
  }
  Notes(const Notes&) = delete;
  Notes& operator=(const Notes&) = delete;
  ~Notes() { std::fclose(file_); }
  void add(const std::string& line) {
    fmt::print(file_, "{}\n", line);
    std::fflush(file_);
  }
  std::string read() {
    std::rewind(file_);
    std::string text;
    for (int c = std::fgetc(file_); c != EOF; c = std::fgetc(file_))
      text.push_back(static_cast<char>(c));
    if (!text.empty()) text.pop_back();  // the last end of a line
    return text;
  }

 private:
  std::FILE* file_;
};

void print(const Options& o, const LinkReport& report) {
  if (o.json) {
    nlohmann::json links = nlohmann::json::array();
    for (const Link& l : report.links)
      links.push_back({{"ranks", {l.a, l.b}},
                       {"latency_us", l.latency_seconds * 1e6},
                       {"gigabytes_per_second", l.bytes_per_second * 1e-9},
                       {"wrong_bytes", l.wrong_bytes}});
    fmt::print("{}\n", nlohmann::json({{"links", links}, {"problems", report.problems}}).dump(2));
    return;
  }
  fmt::print("{:<12}{:>14}{:>12}\n", "ranks", "latency", "rate");
  for (const Link& l : report.links)
    fmt::print("{:<12}{:>11.1f} us{:>7.2f} GB/s\n", fmt::format("{} - {}", l.a, l.b),
               l.latency_seconds * 1e6, l.bytes_per_second * 1e-9);
}

void run(const Options& o) {
  HADAL_CHECK(o.ranks >= 1 && o.ranks <= 512, "--ranks is ", o.ranks, "; allowed: 1 to 512");
  HADAL_CHECK(o.heartbeat_seconds > 0.0 && o.heartbeat_seconds <= 30.0, "--heartbeat is ",
              o.heartbeat_seconds, "; allowed: more than 0 and at most 30 seconds");
  const std::optional<env::Place> place = env::place();
  const int num_ranks = place ? place->size : o.ranks;
  const bool is_first = !place || place->rank == 0;
  const WorldOptions options{.num_ranks = num_ranks, .heartbeat_seconds = o.heartbeat_seconds};
  if (is_first && !o.json)
    fmt::print("CPU: {} cores, {:.1f} GB of memory\n", std::thread::hardware_concurrency(),
               static_cast<double>(sysconf(_SC_PHYS_PAGES)) *
                   static_cast<double>(sysconf(_SC_PAGESIZE)) * 1e-9);
  const uint64_t build = build_of_this();
  Notes problems;
  const auto check = [&](World& world, int rank) {
    Machine machine(1, Device{});
    Context ctx = machine.context();
    std::vector<int> all, hosts;
    for (int r = 0; r < world.size(); ++r) all.push_back(r);
    for (const int r : all) hosts.push_back(world.host_of(r));
    const std::unique_ptr<Comm> comm = make_comm_host(world, all, "world");
    const LinkReport report = check_links(ctx, *comm, {.build = build, .host_of_rank = hosts});
    if (rank != 0) return;
    print(o, report);
    for (const std::string& problem : report.problems) problems.add(problem);
  };
  if (place) {
    World world(options, meet_others(*place, "hadal check"));
    if (is_first && !o.json) fmt::print("{}", describe_hosts(world));
    take_part(world, [&](int rank) { check(world, rank); });
  } else {
    World world(options);
    launch(world, [&](int rank) { check(world, rank); });
  }
  const std::string found = problems.read();
  if (!found.empty()) HADAL_FAIL(found);
  if (is_first && !o.json) fmt::print("all pairs of {} ranks are well\n", num_ranks);
}

}  // namespace

void add_check_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("check", "test this machine and every pair of ranks on it");
  command->add_option("--ranks", o->ranks,
                      "how many ranks to start where nothing else starts them (2)");
  command->add_option("--heartbeat", o->heartbeat_seconds,
                      "seconds of silence after which a rank counts as hung (20)");
  command->add_flag("--json", o->json, "print JSON");
  command->footer(
      "Under mpirun or srun it tests the ranks that these started, on all their hosts.\n"
      "Exits 1 and names the rank or the pair where one does not answer, runs another build, is\n"
      "slow, or garbles what it sends.\n"
      "Example: hadal check --ranks 8");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
