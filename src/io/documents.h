// DocumentReader: the documents of text and JSONL files, plain or compressed with zstd, one after
// the other in the order of the files.
//
// A document is a whole text file, a line, a paragraph (up to an empty line), or one record of a
// JSONL file. What a file is comes from its name (.jsonl, .jsonl.zst; all else is text). Errors
// name file and line.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace hadal::io {

enum class DocumentSplit : uint8_t { kFile, kLine, kParagraph };  // of text files

struct Document {
  std::string text;  // of text files; of JSONL, the line
  bool json = false;
  std::string where;  // "a.jsonl:7"
};

class DocumentReader {
 public:
  DocumentReader(std::vector<std::string> paths, DocumentSplit split);
  ~DocumentReader();

  // False at the end. Empty lines and paragraphs are no documents.
  bool next(Document& document);
  // Bytes of the files, as stored, and how many of them were read.
  int64_t total_bytes() const { return total_bytes_; }
  int64_t bytes_read() const;

 private:
  class File;
  bool next_text(Document& document);

  std::vector<std::string> paths_;
  DocumentSplit split_;
  size_t next_path_ = 0;
  std::unique_ptr<File> file_;
  int64_t total_bytes_ = 0, bytes_of_done_ = 0;
};

}  // namespace hadal::io
