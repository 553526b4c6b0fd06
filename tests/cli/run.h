// Runs the built `hadal` as a user does, and holds what it printed and how it ended.
//
// run({"info", "--config", path})   to the end
// Child(arguments, log)             in the background, for signals
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/expect_error.h"

namespace hadal::test {

using Arguments = std::vector<std::string>;
using testing::TempDir;

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A hadal in the background; its output goes to LOG.out and LOG.err.
class Child {
 public:
  // file_limit: bytes of the largest file that it may write, as a full disk would have it.
  Child(const Arguments& arguments, const std::string& log,
        rlim_t file_limit = std::numeric_limits<rlim_t>::max()) {
    pid_ = ::fork();
    if (pid_ == 0) run(arguments, log, file_limit);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ > 0) {
      kill(SIGKILL);
      wait();
    }
  }
  void kill(int signal) const { ::kill(pid_, signal); }
  // Its exit status; 128 + N if signal N ended it.
  int wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }

 private:
  [[noreturn]] static void run(const Arguments& arguments, const std::string& log,
                               rlim_t file_limit) {
    for (const int fd : {STDOUT_FILENO, STDERR_FILENO}) {
      const std::string path = log + (fd == STDOUT_FILENO ? ".out" : ".err");
      ::dup2(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), fd);
    }
    if (file_limit != std::numeric_limits<rlim_t>::max()) {
      const rlimit limit{file_limit, file_limit};
      ::setrlimit(RLIMIT_FSIZE, &limit);
      std::signal(SIGXFSZ, SIG_IGN);  // writes fail instead
    }
    Arguments all = arguments;
    all.insert(all.begin(), HADAL_BINARY);
    std::vector<char*> argv;
    for (std::string& argument : all) argv.push_back(argument.data());
    argv.push_back(nullptr);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  pid_t pid_ = -1;
};

struct Result {
  int status = 0;
  std::string out, err;
};

inline Result run(const Arguments& arguments) {
  const TempDir dir;
  const std::string log = dir / "log";
  const int status = Child(arguments, log).wait();
  return {status, read_text(log + ".out"), read_text(log + ".err")};
}

// One sentence on stderr, and exit 1.
inline void expect_refused(const Arguments& arguments, const std::string& message) {
  const Result r = run(arguments);
  EXPECT_EQ(r.status, 1);
  EXPECT_EQ(r.err, "hadal: " + message + "\n");
}

// Waits until `done` holds, a minute at most.
template <class Done>
bool wait_until(const Done& done) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!done()) {
    if (std::chrono::steady_clock::now() > limit) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace hadal::test
