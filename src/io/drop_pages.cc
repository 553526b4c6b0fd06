// drop_pages with madvise(2).
// SPDX-License-Identifier: Apache-2.0
#include "io/drop_pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace hadal::io {

void drop_pages(const std::byte* data, size_t bytes) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
  // Advice only: where it is not taken, nothing but memory is lost.
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace hadal::io
