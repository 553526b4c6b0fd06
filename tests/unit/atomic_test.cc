// Atomic files and mappings: nothing shows before commit, and a failure leaves the old file.
// SPDX-License-Identifier: Apache-2.0
#include "io/atomic.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>

#include "io/mmap.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

using hadal::testing::TempDir;
namespace fs = std::filesystem;

size_t num_entries(const std::string& dir) {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(dir)) ++count;
  return count;
}

TEST(Atomic, NothingShowsBeforeCommit) {
  const TempDir dir;
  write_file_atomic(dir / "a", "old");
  {
    AtomicFile file(dir / "a");
    file.write("new");
    EXPECT_EQ(read_file(dir / "a", 10), "old");
  }
  EXPECT_EQ(read_file(dir / "a", 10), "old");
  EXPECT_EQ(num_entries(dir.path()), 1u);
  AtomicFile file(dir / "a");
  file.write(std::string(3 << 20, 'x'));
  file.write("y");
  file.commit();
  EXPECT_EQ(read_file(dir / "a", 4 << 20), std::string(3 << 20, 'x') + "y");
}

// A limit on file sizes stands for a full disk: write(2) fails halfway.
TEST(Atomic, FullDiskLeavesTheOldFile) {
  const TempDir dir;
  write_file_atomic(dir / "a", "old");
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit low{1 << 20, before.rlim_max};
  std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
  EXPECT_ERROR(write_file_atomic(dir / "a", std::string(4 << 20, 'x')),
               "cannot write " + dir / "a" +
                   ": File too large; nothing was replaced: free space on that disk and try again");
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(read_file(dir / "a", 10), "old");
  EXPECT_EQ(num_entries(dir.path()), 1u);
}

TEST(Atomic, MissingDirectory) {
  const TempDir dir;
  EXPECT_ERROR(write_file_atomic(dir / "none/a", "x"),
               "cannot write " + dir / "none/a" +
                   ": No such file or directory; make its directory and give yourself the right to "
                   "write there");
}

TEST(Atomic, DirectoryThatIsRemovedMeanwhile) {
  const TempDir dir;
  std::filesystem::create_directory(dir / "b");
  AtomicFile file(dir / "b/a");
  file.write("x");
  std::filesystem::remove_all(dir / "b");
  EXPECT_ERROR(file.commit(), "cannot replace " + dir / "b/a" +
                                  ": No such file or directory; nothing was replaced: its "
                                  "directory was removed meanwhile; make it and try again");
}

TEST(Atomic, ReadFileHasALimit) {
  const TempDir dir;
  write_file_atomic(dir / "a", "12345");
  EXPECT_EQ(read_file(dir / "a", 5), "12345");
  EXPECT_ERROR(
      read_file(dir / "a", 4),
      dir / "a" + " has more than 4 bytes; this is not the kind of file that is read here");
}

TEST(Atomic, RenameDirectoryReplaces) {
  const TempDir dir;
  fs::create_directory(dir / "new");
  write_file_atomic(dir / "new/a", "1");
  rename_dir_atomic(dir / "new", dir / "final");
  EXPECT_EQ(read_file(dir / "final/a", 10), "1");
  fs::create_directory(dir / "new");
  write_file_atomic(dir / "new/b", "2");
  rename_dir_atomic(dir / "new", dir / "final");
  EXPECT_EQ(read_file(dir / "final/b", 10), "2");
  EXPECT_FALSE(fs::exists(dir / "final/a"));
  EXPECT_FALSE(fs::exists(dir / "new"));
}

TEST(Mmap, MapsAndMoves) {
  const TempDir dir;
  write_file_atomic(dir / "a", "hello");
  write_file_atomic(dir / "empty", "");
  MappedFile file(dir / "a");
  EXPECT_EQ(file.text(), "hello");
  MappedFile moved(std::move(file));
  EXPECT_EQ(moved.text(), "hello");
  moved = MappedFile(dir / "empty");
  EXPECT_EQ(moved.size(), 0u);
  write_file_atomic(dir / "a", "12");  // renamed over: the mapping of the old file would stay whole
  EXPECT_EQ(MappedFile(dir / "a").text(), "12");
}

TEST(Mmap, ErrorsNameThePath) {
  const TempDir dir;
  EXPECT_ERROR(MappedFile(dir / "none"),
               "cannot open " + dir / "none" + ": No such file or directory; check the path");
  EXPECT_ERROR(MappedFile(dir.path()),
               "cannot map " + dir.path() + ": not a regular file; give the path of a file");
}

}  // namespace
}  // namespace hadal::io
