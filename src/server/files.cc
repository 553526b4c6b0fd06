// The soft limit follows what is asked for; the hard one is the system's.
// SPDX-License-Identifier: Apache-2.0
#include "server/files.h"

#include <sys/resource.h>

#include <algorithm>

#include "core/check.h"

namespace hadal::server {

void allow_files(int64_t sockets) {
  constexpr int64_t kOthers = 64;  // model files, pipes, the event loop
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;  // then there is none that is known
  const auto wanted = static_cast<rlim_t>(sockets + kOthers);
  if (limit.rlim_cur >= wanted) return;
  HADAL_CHECK(limit.rlim_max >= wanted, sockets, " connections need ", wanted,
              " open files, and the system allows ", limit.rlim_max,
              "; allow fewer connections, or raise ulimit -n");
  limit.rlim_cur = wanted;
  HADAL_CHECK(::setrlimit(RLIMIT_NOFILE, &limit) == 0, "cannot raise the limit of open files to ",
              wanted, "; raise ulimit -n");
}

}  // namespace hadal::server
