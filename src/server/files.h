// How many files and sockets this process may have open.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace hadal::server {

// Raises the process's limit to hold `sockets` beside what it has open already; an Error where the
// system does not allow that.
void allow_files(int64_t sockets);

}  // namespace hadal::server
