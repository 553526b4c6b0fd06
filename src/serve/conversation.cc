// One turn: render, encode, draw tokens until one ends the reply.
// SPDX-License-Identifier: Apache-2.0
#include "serve/conversation.h"

#include <algorithm>

#include "core/check.h"
#include "io/stream_decoder.h"

namespace hadal::serve {

Conversation::Conversation(PrefixRunner& runner, io::Tokenizer tokenizer,
                           io::ChatTemplate chat_template, std::vector<int64_t> stop_ids)
    : runner_(runner),
      tokenizer_(std::move(tokenizer)),
      template_(chat_template),
      stop_ids_(std::move(stop_ids)) {
  template_.check_tokens(tokenizer_);
  stop_ids_.push_back(*tokenizer_.added_id(io::ChatTemplate::end_of_turn()));
}

void Conversation::reset(const std::string& system) {
  system_ = system;
  chat_.messages.clear();
  if (!system.empty())
    chat_.messages.push_back({.role = "system", .content = system, .tool_calls = {}});
}

Conversation::Reply Conversation::reply(const std::string& text,
                                        const std::function<bool(std::string_view)>& on_text) {
  io::Chat chat = chat_;
  chat.thinking = settings.thinking;
  chat.messages.push_back({.role = "user", .content = text, .tool_calls = {}});
  const std::string prompt = template_.render(chat);
  std::vector<int32_t> ids = tokenizer_.encode(prompt);
  const int64_t limit = runner_.max_tokens();
  Reply result;
  result.num_prompt_tokens = static_cast<int64_t>(ids.size());
  HADAL_CHECK(result.num_prompt_tokens < limit, "the conversation has ", result.num_prompt_tokens,
              " tokens, and the context holds ", limit, "; start anew or raise --context");
  io::StreamDecoder decoder(tokenizer_);
  const auto show = [&](const std::string& part) {
    result.text += part;
    return part.empty() || on_text(part);
  };
  for (bool going = true; going && result.num_tokens < settings.max_tokens &&
                          static_cast<int64_t>(ids.size()) < limit;) {
    const std::optional<int32_t> token = runner_.next(ids, settings.sampling);
    if (!token) break;
    result.complete = std::find(stop_ids_.begin(), stop_ids_.end(), *token) != stop_ids_.end();
    if (result.complete) break;
    ids.push_back(*token);
    ++result.num_tokens;
    going = show(decoder.push(*token)) && !(runner_.should_stop && runner_.should_stop());
  }
  show(decoder.finish());
  const bool opened = prompt.ends_with("<think>") || prompt.ends_with("<think>\n");
  chat.messages.push_back({.role = "assistant",
                           .content = io::without_reasoning(result.text, opened),
                           .tool_calls = {}});
  chat_ = std::move(chat);
  return result;
}

}  // namespace hadal::serve
