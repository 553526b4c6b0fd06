// OpenAI's request bodies: JSON to what the engine needs.
//
// Every key is either honoured or refused with a sentence that names it. Keys that change nothing
// about an answer (user, metadata, store, service_tier) are accepted.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "io/chat_template.h"
#include "io/json.h"
#include "io/tokenizer.h"
#include "serve/grammar.h"
#include "serve/request.h"

namespace hadal::server {

// A refusal of one request, as OpenAI's errors say it.
class ApiError : public std::runtime_error {
 public:
  ApiError(int status_code, const std::string& message, std::string error_code = "",
           std::string parameter = "")
      : std::runtime_error(message),
        status(status_code),
        code(std::move(error_code)),
        param(std::move(parameter)) {}
  int status;
  std::string code, param;
  // {"error": {"message", "type", "param", "code"}}
  std::string body() const;
};

// What the server knows about its model.
struct ModelInfo {
  std::string id;
  int64_t context = 0, vocab_size = 0;
  int32_t bos = 0;
  std::vector<int32_t> eos;
  std::optional<io::Tokenizer> tokenizer;
  std::optional<io::ChatTemplate> chat_template;
  std::string no_chat_template;  // why there is none
  int64_t max_choices = 128;     // of one request
};

enum class ApiKind : uint8_t { kChat, kCompletion, kResponse };

struct ApiRequest {
  ApiKind kind = ApiKind::kChat;
  std::vector<std::vector<int32_t>> prompts;  // of kCompletion one or more, else one
  std::vector<std::string> prompt_texts;      // for echo
  serve::SamplingParams params;
  int64_t n = 1;  // choices of each prompt
  int64_t priority = 0;
  bool stream = false, include_usage = false, echo = false;
  bool return_token_ids = false, ignore_eos = false;
  bool in_reasoning = false;  // the prompt ends inside reasoning
  bool tools = false;         // calls are looked for in the reply
  serve::GrammarSpec form;    // that the reply is held to
  std::string instructions;   // of kResponse, to be told back
  // Of kResponse: JSON to be told back.
  std::string metadata = "{}", tools_text = "[]", tool_choice_text = "\"auto\"";
  std::string format_text = "{\"type\":\"text\"}";
  bool parallel_calls = true;
};

// ApiError for what cannot be honoured.
ApiRequest parse_chat(const ModelInfo& model, const std::string& body);
ApiRequest parse_completion(const ModelInfo& model, const std::string& body);
ApiRequest parse_response(const ModelInfo& model, const std::string& body);

// {"prompt": text, "add_special_tokens": true} or {"messages": [...]}; {"tokens": [...]}
std::vector<int32_t> parse_tokenize(const ModelInfo& model, const std::string& body);
std::vector<int32_t> parse_detokenize(const ModelInfo& model, const std::string& body);

}  // namespace hadal::server
