// Checks and the one exception type: a failed check throws Error with a sentence and the place.
//
// HADAL_CHECK(cond, parts...)   throws unless cond; the parts (strings, numbers) make the sentence
// HADAL_FAIL(parts...)          throws always: bad config, bad file, wrong argument
// HADAL_UNREACHABLE("...")      a state that cannot happen; throws too, so that tests can see it
//
// A sentence says what is wrong and what to do. `hadal` prints it alone; the file and line, and the
// expression, are added when HADAL_TRACE=1.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace hadal {

class Error : public std::runtime_error {
 public:
  Error(std::string message, const char* file, int line, const char* expression);
  const char* file() const { return file_; }
  int line() const { return line_; }
  // "src/ops/gemm.cc:12: check failed: M == N", for HADAL_TRACE and for logs.
  std::string where() const;

 private:
  const char* file_;
  int line_;
  const char* expression_;
};

namespace detail {

// One part of a message: a number or text, turned to text where it is made.
struct Part {
  std::string text;
  Part(std::string_view s) : text(s) {}
  Part(const char* s) : text(s) {}
  Part(const std::string& s) : text(s) {}
  Part(char c) : text(1, c) {}
  Part(bool b) : text(b ? "true" : "false") {}
  template <class T, std::enable_if_t<std::is_integral_v<T>, int> = 0>
  Part(T v) : text(std::to_string(v)) {}
  Part(double v);
};

std::string join(std::initializer_list<Part> parts);
[[noreturn]] void fail(const char* file, int line, const char* expression, std::string message);

}  // namespace detail

// Joins strings and numbers: concat("layer ", 3, " has ", 0.5).
template <class... Args>
std::string concat(const Args&... args) {
  return detail::join({detail::Part(args)...});
}

}  // namespace hadal

#define HADAL_CHECK(cond, ...)                                                        \
  do {                                                                                \
    if (!(cond)) [[unlikely]]                                                         \
      ::hadal::detail::fail(__FILE__, __LINE__, #cond, ::hadal::concat(__VA_ARGS__)); \
  } while (false)

#define HADAL_FAIL(...) \
  ::hadal::detail::fail(__FILE__, __LINE__, nullptr, ::hadal::concat(__VA_ARGS__))

#define HADAL_UNREACHABLE(what) \
  ::hadal::detail::fail(__FILE__, __LINE__, nullptr, ::hadal::concat("internal error: ", what))
