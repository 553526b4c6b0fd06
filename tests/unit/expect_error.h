// EXPECT_ERROR(statement, message): the statement throws hadal::Error with exactly this message.
//
// TempDir is an empty directory that is removed at the end of a test.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <string>

#include "core/check.h"

namespace hadal::testing {

class TempDir {
 public:
  TempDir() {
    static std::atomic<int> count{0};
    path_ = (std::filesystem::temp_directory_path() /
             concat("hadal_test_", static_cast<int64_t>(::getpid()), "_", count.fetch_add(1)))
                .string();
    std::filesystem::create_directories(path_);
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace hadal::testing

#define EXPECT_ERROR(statement, message)           \
  do {                                             \
    std::string hadal_expected_error = "no error"; \
    try {                                          \
      statement;                                   \
    } catch (const ::hadal::Error& error) {        \
      hadal_expected_error = error.what();         \
    }                                              \
    EXPECT_EQ(hadal_expected_error, (message));    \
  } while (false)
