// Conversation: turns with a model that was taught a chat template, text in and text out.
//
// Not a server: one conversation, one reply at a time.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "io/chat_template.h"
#include "io/tokenizer.h"
#include "serve/generator.h"

namespace hadal::serve {

class Conversation {
 public:
  struct Settings {
    ops::SampleRule sampling;
    int64_t max_tokens = 1024;  // of one reply
    int64_t speculate = 0;      // drafts of a round by MTP; replies are the same
    bool thinking = false;
  };
  // stop_ids end a reply besides the template's own token. An Error if the tokenizer lacks tokens
  // of the template.
  Conversation(Context& ctx, Decoder& decoder, io::Tokenizer tokenizer,
               io::ChatTemplate chat_template, std::vector<int64_t> stop_ids);

  struct Reply {
    std::string text;  // as generated, with reasoning
    int64_t num_tokens = 0, num_prompt_tokens = 0;
    int64_t num_reused = 0;   // of the prompt's tokens, those that were in the cache
    double acceptance = 0.0;  // of the first draft of a round
    bool complete = false;    // ended by the model
  };
  // Adds the user's turn and the reply to the history. on_text gets whole characters; false, or
  // should_stop, ends the reply, which then stays as far as it came. After an Error the history is
  // as it was.
  Reply reply(const std::string& text, const std::function<bool(std::string_view)>& on_text);

  // A new start: no turns, and this system prompt unless it is empty.
  void reset(const std::string& system);
  void reset() { reset(system_); }

  Settings settings;
  // Asked between the steps of a reply.
  std::function<bool()> should_stop;
  // In OpenAI's form, the system prompt first. Replies are without their reasoning.
  const std::vector<io::ChatMessage>& messages() const { return chat_.messages; }

 private:
  int64_t max_tokens_;  // of the context
  Generator generator_;
  io::Tokenizer tokenizer_;
  io::ChatTemplate template_;
  std::vector<int64_t> stop_ids_;
  std::string system_;
  io::Chat chat_;
};

}  // namespace hadal::serve
