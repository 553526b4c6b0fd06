// Mapped memory that was read once and is not needed any more.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace hadal::io {

// Bytes of a mapped file that will hardly be read again: their whole pages leave this process's
// memory, and come back from the file if they are. REQUIRES: read-only pages of a file.
void drop_pages(const std::byte* data, size_t bytes);

}  // namespace hadal::io
