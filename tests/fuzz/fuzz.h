// What the fuzzers share: a reader may refuse its input with an Error, and nothing else.
//
// A fuzzer is one file *_fuzzer.cc with one function, LLVMFuzzerTestOneInput. It is built twice: by
// the preset `fuzz` with libFuzzer, and in every build with replay.cc, which runs it on its corpus.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace hadal::fuzz {

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// Any other exception ends the fuzzer.
template <class Read>
void expect_error_or_nothing(const Read& read) {
  try {
    read();
  } catch (const Error& error) {
    HADAL_CHECK(error.what()[0] != '\0', "an Error without a sentence");
  }
}

// A property that must hold for every input; ends the fuzzer with its name otherwise.
void expect(bool holds, const char* property);

// A file in memory that holds the input, for readers that map files.
class InputFile {
 public:
  explicit InputFile(std::string_view bytes);
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  ~InputFile();
  std::string path() const;

 private:
  int fd_;
};

}  // namespace hadal::fuzz
