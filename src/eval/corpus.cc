// Reading of documents.
// SPDX-License-Identifier: Apache-2.0
#include "eval/corpus.h"

#include "core/check.h"
#include "eval/json_lines.h"

namespace hadal::eval {

std::vector<std::string> read_documents(const std::string& path) {
  if (!path.ends_with(".jsonl")) return {read_whole(path)};
  std::vector<std::string> documents;
  each_json_line(path,
                 [&](const io::JsonObject& line) { documents.push_back(line.string("text")); });
  HADAL_CHECK(!documents.empty(), path, " has no documents; give one JSON object a line");
  return documents;
}

}  // namespace hadal::eval
