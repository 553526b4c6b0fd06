// Reading of documents.
// SPDX-License-Identifier: Apache-2.0
#include "eval/corpus.h"

#include "core/check.h"
#include "io/documents.h"
#include "io/json.h"

namespace hadal::eval {

std::vector<std::string> read_documents(const std::string& path) {
  io::DocumentReader reader({path}, io::DocumentSplit::kFile);
  std::vector<std::string> documents;
  for (io::Document d; reader.next(d);)
    documents.push_back(d.json ? io::JsonObject::parse(d.text, d.where).string("text") : d.text);
  HADAL_CHECK(!documents.empty(), path,
              " has no documents; give a text, or one JSON object a line");
  return documents;
}

}  // namespace hadal::eval
