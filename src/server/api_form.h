// What a request says about the form of its reply: response_format, vLLM's guided keys, forced tool
// calls; each becomes a spec of a grammar.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "io/chat_template.h"
#include "io/json.h"
#include "serve/grammar.h"
#include "server/api_request.h"

namespace hadal::server {

// Of chat and completions: response_format, guided_json, guided_regex, guided_choice,
// guided_grammar, structured_outputs; at most one of them. `body`: the request, keys in its order,
// which is the order of an object's properties.
serve::GrammarSpec read_form(const io::JsonObject& o, const nlohmann::ordered_json& body);

// Of responses: text.format.
serve::GrammarSpec read_text_format(const io::JsonObject& o, const nlohmann::ordered_json& body);

// Which calls a chat asks for.
struct ToolChoice {
  enum class Kind : uint8_t { kAuto, kNone, kRequired, kNamed };
  Kind kind = Kind::kAuto;
  std::string name;  // of kNamed
  bool forces() const { return kind == Kind::kRequired || kind == Kind::kNamed; }
};
ToolChoice read_tool_choice(const io::JsonObject& o);

// A reply of nothing but calls of these tools (OpenAI's JSON), as the family writes them; one, or
// as many as the model likes.
serve::GrammarSpec tool_calls_form(io::ChatFamily family, const io::Tokenizer& tokenizer,
                                   const std::vector<std::string>& tools, bool one);

}  // namespace hadal::server
