// ResultFile: what an evaluation has found so far, one line of JSON at a time.
//
// Its first line says of what evaluation it is. A line is in the system's hands when add() returns,
// so a run that was stopped, or killed, goes on behind the last whole line.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fstream>
#include <string>
#include <vector>

#include "io/json.h"

namespace hadal::eval {

class ResultFile {
 public:
  // An empty path keeps nothing. `settings` is all that decides about results; an Error if the file
  // was written with others. `header` is what else its first line shows.
  ResultFile(const std::string& path, const io::Json& settings, const io::Json& header);
  // Those that were there when it was opened. The rest of a line that was cut off is removed.
  const std::vector<io::JsonObject>& lines() const { return lines_; }
  void add(const io::Json& line);

 private:
  void read(const std::string& settings);
  void check();

  std::string path_;
  std::vector<io::JsonObject> lines_;
  std::ofstream file_;
};

}  // namespace hadal::eval
