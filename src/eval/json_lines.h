// Files of JSON objects, one a line.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>
#include <string>
#include <string_view>

#include "core/check.h"
#include "io/atomic.h"
#include "io/json.h"

namespace hadal::eval {

inline std::string read_whole(const std::string& path) {
  return io::read_file(path, std::numeric_limits<size_t>::max());
}

// Blank lines are skipped. The objects name file and line in their errors.
template <class Visit>
void each_json_line(const std::string& path, const Visit& visit) {
  const std::string text = read_whole(path);
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view row = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (row.find_first_not_of(" \t\r") == row.npos) continue;
    visit(io::JsonObject::parse(row, concat(path, ":", number)));
  }
}

}  // namespace hadal::eval
