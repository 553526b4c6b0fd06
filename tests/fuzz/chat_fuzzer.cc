// Conversations in the JSON of OpenAI's API: refused with an Error, or written by every template.
// SPDX-License-Identifier: Apache-2.0
#include "io/chat_template.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hadal;
  const std::string_view text = fuzz::text_of(data, size);
  fuzz::expect_error_or_nothing([&] { io::python_json(text, "json"); });
  fuzz::expect_error_or_nothing([&] {
    const io::Chat chat = io::Chat::parse(text, "chat");
    for (const std::string& name : io::ChatTemplate::names())
      fuzz::expect_error_or_nothing([&] {
        const std::string prompt = io::ChatTemplate::named(name).render(chat);
        io::without_reasoning(prompt, chat.thinking);
      });
  });
  return 0;
}
