// DocumentReader: lines of a file, decompressed on the way.
// SPDX-License-Identifier: Apache-2.0
#include "io/documents.h"

#include <fcntl.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <filesystem>

#include "core/check.h"
#include "io/atomic.h"

namespace hadal::io {
namespace {

constexpr size_t kChunk = size_t{1} << 20;

struct FreeStream {
  void operator()(ZSTD_DCtx* stream) const { ZSTD_freeDCtx(stream); }
};

}  // namespace

// A file as bytes, decompressed if its name ends with .zst.
class DocumentReader::File {
 public:
  explicit File(const std::string& path)
      : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    HADAL_CHECK(fd_ >= 0, "cannot open ", path, ": ", errno_text(), "; check the path");
    std::string name = path;
    if (name.ends_with(".zst")) {
      name.resize(name.size() - 4);
      stream_.reset(ZSTD_createDCtx());
      packed_.resize(kChunk);
    }
    json_ = name.ends_with(".jsonl");
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { ::close(fd_); }

  bool is_json() const { return json_; }
  int64_t bytes_read() const { return bytes_read_; }
  const std::string& path() const { return path_; }
  int64_t line() const { return line_; }

  // The next line without its end; false at the end of the file.
  bool next_line(std::string& line) {
    line.clear();
    for (;;) {
      const size_t end = text_.find('\n', at_);
      if (end != std::string::npos) {
        line.append(text_, at_, end - at_);
        at_ = end + 1;
        ++line_;
        return true;
      }
      line.append(text_, at_);
      at_ = text_.size();
      if (!fill()) {
        if (line.empty()) return false;
        ++line_;
        return true;
      }
    }
  }
  void read_all(std::string& text) {
    do {
      text.append(text_, at_);
      at_ = text_.size();
    } while (fill());
  }

 private:
  size_t read_some(char* to, size_t size) {
    const ssize_t count = ::read(fd_, to, size);
    HADAL_CHECK(count >= 0, "cannot read ", path_, ": ", errno_text());
    bytes_read_ += count;
    return static_cast<size_t>(count);
  }

  // More text; false at the end. REQUIRES: all of text_ was taken.
  bool fill() {
    text_.resize(kChunk);
    at_ = 0;
    size_t got = 0;
    if (!stream_) {
      got = read_some(text_.data(), kChunk);
    } else {
      got = decompress();
    }
    text_.resize(got);
    return got > 0;
  }

  size_t decompress() {
    ZSTD_outBuffer out{text_.data(), text_.size(), 0};
    while (out.pos == 0) {
      if (in_.pos == in_.size) {
        in_ = {packed_.data(), read_some(packed_.data(), packed_.size()), 0};
        if (in_.size == 0) {
          HADAL_CHECK(pending_ == 0, path_,
                      " ends inside a zstd frame: it is cut short; get it again");
          return 0;
        }
      }
      pending_ = ZSTD_decompressStream(stream_.get(), &out, &in_);
      HADAL_CHECK(ZSTD_isError(pending_) == 0, path_, " is no zstd file or damaged (",
                  ZSTD_getErrorName(pending_), "); get it again");
    }
    return out.pos;
  }

  std::string path_;
  int fd_;
  bool json_ = false;
  std::unique_ptr<ZSTD_DCtx, FreeStream> stream_;
  std::string packed_;
  ZSTD_inBuffer in_{nullptr, 0, 0};
  size_t pending_ = 0;  // what zstd still expects; 0 between frames
  std::string text_;
  size_t at_ = 0;
  int64_t bytes_read_ = 0, line_ = 0;
};

DocumentReader::DocumentReader(std::vector<std::string> paths, DocumentSplit split)
    : paths_(std::move(paths)), split_(split) {
  for (const std::string& path : paths_) {
    std::error_code error;
    const auto size = std::filesystem::file_size(path, error);
    HADAL_CHECK(!error, "cannot open ", path, ": ", error.message(), "; check the path");
    total_bytes_ += static_cast<int64_t>(size);
  }
}

DocumentReader::~DocumentReader() = default;

int64_t DocumentReader::bytes_read() const {
  return bytes_of_done_ + (file_ ? file_->bytes_read() : 0);
}

bool DocumentReader::next(Document& document) {
  for (;;) {
    if (!file_) {
      if (next_path_ == paths_.size()) return false;
      file_ = std::make_unique<File>(paths_[next_path_++]);
    }
    if (next_text(document)) return true;
    bytes_of_done_ += file_->bytes_read();
    file_.reset();
  }
}

bool DocumentReader::next_text(Document& document) {
  document.text.clear();
  document.json = file_->is_json();
  if (!document.json && split_ == DocumentSplit::kFile) {
    document.where = file_->path();
    file_->read_all(document.text);
    return !document.text.empty();
  }
  std::string line;
  while (file_->next_line(line)) {
    if (document.json || split_ == DocumentSplit::kLine) {
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      document.text = std::move(line);
      document.where = concat(file_->path(), ":", file_->line());
      return true;
    }
    const bool blank = line.find_first_not_of(" \t\r") == std::string::npos;
    if (blank && document.text.empty()) continue;
    if (blank) return true;
    if (document.text.empty()) document.where = concat(file_->path(), ":", file_->line());
    document.text += line;
    document.text += '\n';
  }
  return !document.text.empty();
}

}  // namespace hadal::io
