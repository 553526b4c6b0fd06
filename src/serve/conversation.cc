// One turn: render, encode, draw tokens until one ends the reply.
// SPDX-License-Identifier: Apache-2.0
#include "serve/conversation.h"

#include "core/check.h"
#include "io/stream_decoder.h"

namespace hadal::serve {

Conversation::Conversation(Context& ctx, Decoder& decoder, io::Tokenizer tokenizer,
                           io::ChatTemplate chat_template, std::vector<int64_t> stop_ids)
    : max_tokens_(decoder.limits().max_tokens),
      generator_(ctx, decoder),
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
  GenerateRequest request{.prompt = tokenizer_.encode(prompt),
                          .max_tokens = settings.max_tokens,
                          .sampling = settings.sampling,
                          .stop_ids = stop_ids_,
                          .speculate = settings.speculate,
                          .on_token = {},
                          .should_stop = should_stop};
  Reply result;
  result.num_prompt_tokens = static_cast<int64_t>(request.prompt.size());
  HADAL_CHECK(result.num_prompt_tokens < max_tokens_, "the conversation has ",
              result.num_prompt_tokens, " tokens, and the context holds ", max_tokens_,
              "; start anew or raise --context");
  io::StreamDecoder decoder(tokenizer_);
  const auto show = [&](const std::string& part) {
    result.text += part;
    return part.empty() || on_text(part);
  };
  request.on_token = [&](int32_t token) {
    return show(decoder.push(token)) && !(should_stop && should_stop());
  };
  const GenerateResult generated = generator_.run(request);
  show(decoder.finish());
  result.num_tokens = static_cast<int64_t>(generated.tokens.size());
  result.num_reused = generated.num_reused;
  result.acceptance = generated.acceptance();
  result.complete = generated.stopped;
  const bool opened = prompt.ends_with("<think>") || prompt.ends_with("<think>\n");
  chat.messages.push_back({.role = "assistant",
                           .content = io::without_reasoning(result.text, opened),
                           .tool_calls = {}});
  chat_ = std::move(chat);
  return result;
}

}  // namespace hadal::serve
