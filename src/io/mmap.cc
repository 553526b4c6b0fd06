// Mapping of files into memory with mmap(2).
// SPDX-License-Identifier: Apache-2.0
#include "io/mmap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "core/check.h"
#include "io/atomic.h"

namespace hadal::io {

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  HADAL_CHECK(fd >= 0, "cannot open ", path, ": ", errno_text(), "; check the path");
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    HADAL_FAIL("cannot map ", path, ": not a regular file; give the path of a file");
  }
  size_ = static_cast<size_t>(info.st_size);
  void* data = nullptr;
  if (size_ > 0) data = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
  const std::string reason = data == MAP_FAILED ? errno_text() : "";
  ::close(fd);
  HADAL_CHECK(data != MAP_FAILED, "cannot map ", path, " (", size_, " bytes): ", reason,
              "; free address space or raise ulimit -v");
  data_ = static_cast<const std::byte*>(data);
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace hadal::io
