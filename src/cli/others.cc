// Others: what a rank says about itself, and where.
// SPDX-License-Identifier: Apache-2.0
#include "cli/others.h"

#include <fmt/core.h>
#include <unistd.h>

#include <climits>

#include "core/rng.h"
#include "io/mmap.h"

namespace hadal::cli {

uint64_t build_of_this() {
  const io::MappedFile binary("/proc/self/exe");
  return stream_id({reinterpret_cast<const char*>(binary.data()), binary.size()});
}

Meeting meet_others(const env::Place& place, const std::string& config) {
  std::string host = env::host(), file = env::rendezvous();
  if (host.empty()) {
    char name[HOST_NAME_MAX + 1] = {};
    HADAL_CHECK(gethostname(name, sizeof(name) - 1) == 0, "this host has no name; set HADAL_HOST");
    host = name;
  }
  if (file.empty()) file = ".hadal-" + (place.job.empty() ? "job" : place.job);
  return meet({.rank = place.rank,
               .num_ranks = place.size,
               .host = host,
               .file = file,
               .build = build_of_this(),
               .config = stream_id(config)});
}

std::string describe_hosts(const World& world) {
  std::string text =
      fmt::format("{} host{}:", world.hosts().size(), world.hosts().size() == 1 ? "" : "s");
  for (size_t h = 0; h < world.hosts().size(); ++h) {
    std::string ranks;
    for (int r = 0; r < world.size(); ++r)
      if (world.host_of(r) == static_cast<int>(h)) ranks += fmt::format(" {}", r);
    text += fmt::format("{} {} (ranks{})", h == 0 ? "" : ",", world.hosts()[h], ranks);
  }
  return text + "\n";
}

}  // namespace hadal::cli
