// Files that are either whole or absent: written under a temporary name, synced, then renamed.
//
// A crash, a full disk or kill -9 leaves the old file as it was; at worst a file named
// ".NAME.tmp-PID" stays behind. Errors name the path and the system's reason.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace hadal::io {

// What errno says now, as text.
std::string errno_text();

// Writes all bytes to a file descriptor; false with errno set if that cannot be done.
bool write_all(int fd, const char* data, size_t bytes);

// The whole file; an Error if it cannot be read or has more than max_bytes.
std::string read_file(const std::string& path, size_t max_bytes);

// A file being written. Nothing shows under `path` before commit(); without it the destructor
// removes what was written.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  // Flushes to disk, renames, and syncs the directory.
  void commit();

 private:
  [[noreturn]] void fail(const char* what);

  std::string path_, temporary_;
  int fd_ = -1;
  std::string buffer_;  // joins small writes
  void flush(const char* data, size_t bytes);
};

void write_file_atomic(const std::string& path, std::string_view content);

// Makes the entries of a directory durable.
void fsync_dir(const std::string& dir);

// Puts the finished directory `from` in the place of `to` in one step, on disk when it returns.
// What was at `to`, if anything, is removed afterwards. REQUIRES: its files are synced.
void rename_dir_atomic(const std::string& from, const std::string& to);

// The directory part of a path; "." if it has none.
std::string parent_dir(const std::string& path);

}  // namespace hadal::io
