// The input as a file in memory, and the end of a fuzzer.
// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace hadal::fuzz {

void expect(bool holds, const char* property) {
  if (holds) return;
  std::fprintf(stderr, "fuzzer: does not hold: %s\n", property);
  std::abort();
}

InputFile::InputFile(std::string_view bytes) : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
  expect(fd_ >= 0, "memfd_create works");
  while (!bytes.empty()) {
    const ssize_t written = write(fd_, bytes.data(), bytes.size());
    expect(written > 0, "a file in memory can be written");
    bytes.remove_prefix(static_cast<size_t>(written));
  }
}

InputFile::~InputFile() { close(fd_); }

std::string InputFile::path() const { return concat("/proc/self/fd/", fd_); }

}  // namespace hadal::fuzz
