// tokenizer.json: refused with an Error, or any bytes come back from their tokens. What follows a
// zero byte is the text to encode, the file itself if there is none.
// SPDX-License-Identifier: Apache-2.0
#include "io/tokenizer.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hadal;
  const std::string_view whole = fuzz::text_of(data, size),
                         json = whole.substr(0, whole.find('\0'));
  const std::string_view text = json.size() == size ? whole : whole.substr(json.size() + 1);
  const fuzz::InputFile input(json);
  fuzz::expect_error_or_nothing([&] {
    const io::Tokenizer tokenizer = io::Tokenizer::load(input.path());
    const std::vector<int32_t> ids = tokenizer.encode(text);
    fuzz::expect(tokenizer.decode(ids) == text, "decode(encode(x)) == x");
  });
  return 0;
}
