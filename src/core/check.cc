// The exception type and message joining behind HADAL_CHECK.
// SPDX-License-Identifier: Apache-2.0
#include "core/check.h"

#include <cstdio>
#include <utility>

namespace hadal {

Error::Error(std::string message, const char* file, int line, const char* expression)
    : std::runtime_error(std::move(message)), file_(file), line_(line), expression_(expression) {}

std::string Error::where() const {
  std::string place = concat(file_, ":", line_);
  if (expression_ != nullptr) place += concat(": check failed: ", expression_);
  return place;
}

namespace detail {

Part::Part(double v) {
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer), "%g", v);
  text = buffer;
}

std::string join(std::initializer_list<Part> parts) {
  std::string all;
  for (const Part& part : parts) all += part.text;
  return all;
}

void fail(const char* file, int line, const char* expression, std::string message) {
  throw Error(std::move(message), file, line, expression);
}

}  // namespace detail
}  // namespace hadal
