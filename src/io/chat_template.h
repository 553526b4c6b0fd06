// Chat templates of the DeepSeek-V3 family: a conversation to the text that the model was taught.
//
// deepseek-v3, deepseek-v3-0324, deepseek-r1 and deepseek-v3.1 write what the models' own Jinja
// templates write. Those describe no tools. With tools, they write what the templates of vLLM for
// tool calls (examples/tool_chat_template_deepseek{v3,r1,v31}.jinja) mean: without the blanks
// between tokens that come from the indentation of those files. vllm-deepseek-v3, -r1 and -v3.1
// keep these blanks, for prompts that equal a vLLM server's byte for byte.
// Every template drops the reasoning of earlier turns. Special tokens in the text of a message are
// not escaped, as in the originals.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer.h"

namespace hadal::io {

struct ToolCall {
  std::string name, arguments;  // arguments: JSON text
  std::string type = "function";
};

struct ChatMessage {
  std::string role;                    // system, user, assistant or tool
  std::optional<std::string> content;  // may be missing only next to tool calls
  std::vector<ToolCall> tool_calls;    // of an assistant; empty: none
  bool prefix = false;                 // deepseek-v3.1 with thinking: this reply opens reasoning
};

struct Chat {
  std::vector<ChatMessage> messages;
  std::vector<std::string> tools;  // one JSON object each, as in OpenAI's API
  bool add_generation_prompt = true;
  bool thinking = false;  // deepseek-v3.1: let the reply reason first

  // {"messages": [...], "tools": [...], "add_generation_prompt": b, "thinking": b} in OpenAI's
  // form. Content may be text or a list of text parts, which are joined with newlines. Keys of
  // messages that no template reads are ignored. `where` names the source in errors.
  static Chat parse(std::string_view json, const std::string& where);
};

// Who writes tool calls and reasoning alike.
enum class ChatFamily : uint8_t { kV3, kR1, kV31 };

class ChatTemplate {
 public:
  // An Error lists the names.
  static ChatTemplate named(std::string_view name);
  // By the chat_template field of DIR/tokenizer_config.json, if it is one of the models' own.
  static ChatTemplate of_model(const std::string& dir);
  static std::vector<std::string> names();

  std::string_view name() const;
  ChatFamily family() const;
  std::string render(const Chat& chat) const;
  // An Error unless the tokens that every turn needs are added tokens of the tokenizer.
  void check_tokens(const Tokenizer& tokenizer) const;
  // What ends a reply.
  static std::string_view end_of_turn();

 private:
  struct Format;
  static const std::vector<Format>& formats();
  explicit ChatTemplate(const Format& format) : format_(&format) {}
  const Format* format_;
  friend class ChatWriter;
};

// JSON as Python's json.dumps(x, ensure_ascii=False) writes it: ", " and ": ", keys in their order.
// Templates are made of such text. An Error for what is no JSON.
std::string python_json(std::string_view json, const std::string& where);

// The part of a reply after its reasoning. `opened`: the prompt ended inside reasoning.
std::string without_reasoning(std::string_view reply, bool opened);

}  // namespace hadal::io
