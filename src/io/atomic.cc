// Reading whole files, and durable replacement of files and directories.
// SPDX-License-Identifier: Apache-2.0
#include "io/atomic.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "core/check.h"

namespace hadal::io {

namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;

}  // namespace

std::string errno_text() { return std::generic_category().message(errno); }

std::string parent_dir(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

std::string read_file(const std::string& path, size_t max_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  HADAL_CHECK(fd >= 0, "cannot open ", path, ": ", errno_text(), "; check the path");
  std::string content;
  ssize_t count = 1;
  while (count > 0 && content.size() <= max_bytes) {
    const size_t old = content.size();
    content.resize(old + kBufferBytes);
    count = ::read(fd, content.data() + old, kBufferBytes);
    if (count < 0 && errno == EINTR)
      count = 1, content.resize(old);
    else
      content.resize(old + static_cast<size_t>(count > 0 ? count : 0));
  }
  const std::string reason = count < 0 ? errno_text() : "";
  ::close(fd);
  HADAL_CHECK(count >= 0, "cannot read ", path, ": ", reason, "; give the path of a file");
  HADAL_CHECK(content.size() <= max_bytes, path, " has more than ", max_bytes,
              " bytes; this is not the kind of file that is read here");
  return content;
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  const std::filesystem::path target(path_);
  temporary_ = (target.parent_path() /
                concat(".", target.filename().string(), ".tmp-", static_cast<int64_t>(::getpid())))
                   .string();
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  HADAL_CHECK(fd_ >= 0, "cannot write ", path_, ": ", errno_text(),
              "; make its directory and give yourself the right to write there");
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* what) {
  const bool is_gone = errno == ENOENT;
  const std::string reason = errno_text();
  HADAL_FAIL("cannot ", what, " ", path_, ": ", reason, "; nothing was replaced: ",
             is_gone ? "its directory was removed meanwhile; make it" : "free space on that disk",
             " and try again");
}

bool write_all(int fd, const char* data, size_t bytes) {
  while (bytes > 0) {
    const ssize_t count = ::write(fd, data, bytes);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return false;
    data += count;
    bytes -= static_cast<size_t>(count);
  }
  return true;
}

void AtomicFile::flush(const char* data, size_t bytes) {
  if (!write_all(fd_, data, bytes)) fail("write");
}

void AtomicFile::write(const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  if (buffer_.size() + bytes > kBufferBytes) {
    flush(buffer_.data(), buffer_.size());
    buffer_.clear();
  }
  if (bytes > kBufferBytes)
    flush(from, bytes);
  else
    buffer_.append(from, bytes);
}

void AtomicFile::commit() {
  flush(buffer_.data(), buffer_.size());
  buffer_.clear();
  if (::fsync(fd_) != 0) fail("sync");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("replace");
  ::close(fd_);
  fd_ = -1;
  fsync_dir(parent_dir(path_));
}

void write_file_atomic(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

void fsync_dir(const std::string& dir) {
  const int fd = ::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  HADAL_CHECK(fd >= 0, "cannot open the directory ", dir, ": ", errno_text(), "; check the path");
  const bool synced = ::fsync(fd) == 0;
  const std::string reason = synced ? "" : errno_text();
  ::close(fd);
  HADAL_CHECK(synced, "cannot sync the directory ", dir, ": ", reason, "; check that disk");
}

void rename_dir_atomic(const std::string& from, const std::string& to) {
  fsync_dir(from);
  std::error_code ignored;
  const bool replaces = std::filesystem::exists(to, ignored);
  const unsigned flags = replaces ? RENAME_EXCHANGE : RENAME_NOREPLACE;
  HADAL_CHECK(::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags) == 0, "cannot put ",
              from, " in the place of ", to, ": ", errno_text(),
              "; nothing was replaced: use a directory on a local disk");
  fsync_dir(parent_dir(to));
  if (!replaces) return;
  std::error_code error;
  std::filesystem::remove_all(from, error);
  HADAL_CHECK(!error, "cannot remove ", from, ", which holds the replaced files: ", error.message(),
              "; remove it by hand");
}

}  // namespace hadal::io
