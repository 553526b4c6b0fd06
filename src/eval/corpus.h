// Texts to predict: a file is one document, or JSON lines with a document each.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace hadal::eval {

// A file that ends in .jsonl has objects whose field "text" is a document; other fields are
// ignored. Either may be compressed with zstd (.zst). An Error names file and line.
std::vector<std::string> read_documents(const std::string& path);

}  // namespace hadal::eval
