// Answer: what a request's choices have become so far, and its JSON, whole or in chunks.
//
// Chunks of a stream add up to the whole answer.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/json.h"
#include "io/reply_parser.h"
#include "serve/request.h"
#include "server/api_request.h"
#include "server/response_writer.h"

namespace hadal::server {

struct Choice {
  struct Call {
    std::string id, name, arguments;
  };
  explicit Choice(const io::ReplyParser::Settings& settings) : parser(settings) {}

  io::ReplyParser parser;
  std::string content, reasoning;
  std::vector<Call> calls;
  std::vector<serve::TokenLogprob> logprobs, prompt_logprobs;
  std::vector<int32_t> tokens;  // where they are to be returned whole
  std::optional<serve::Finish> finish;
  int64_t num_prompt = 0, num_cached = 0, num_generated = 0;
  int64_t num_reasoning = 0;  // tokens of steps that ended inside reasoning
};

class Answer {
 public:
  // REQUIRES: model outlives the answer.
  Answer(const ModelInfo& model, ApiRequest request, std::string id, int64_t created);
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;

  const ApiRequest& request() const { return request_; }
  const std::string& id() const { return id_; }
  size_t num_choices() const { return choices_.size(); }
  const Choice& choice(size_t index) const { return choices_[index]; }
  bool done() const;

  // Takes what a step brought for a choice; returns the events to send, "" for none. A stream's
  // first event is begin()'s.
  std::string begin();
  std::string add(size_t index, const serve::Output& output);
  // What ends a stream.
  std::string end();
  // The whole answer.
  std::string whole();

  int64_t prompt_tokens() const, generated_tokens() const, cached_tokens() const;
  int64_t reasoning_tokens() const;

 private:
  using Events = std::vector<io::ReplyParser::Event>;
  Events take(Choice& choice, const serve::Output& output) const;
  std::string chat_chunk(size_t index, const Events& events, const serve::Output& output);
  std::string text_chunk(size_t index, const serve::Output& output);
  std::string chunk(const std::string& choices) const;
  const char* finish_reason(const Choice& choice) const;
  io::Json usage() const;
  io::Json whole_chat(size_t index) const;
  io::Json whole_text(size_t index) const;
  io::Json chat_logprobs(const std::vector<serve::TokenLogprob>& list) const;
  io::Json text_logprobs(const Choice& choice, const std::vector<serve::TokenLogprob>& list,
                         int64_t offset) const;
  io::Json prompt_logprobs(size_t index) const;
  std::string token_text(int32_t id) const;
  std::string chunk_ids(const serve::Output& output) const;

  const ModelInfo& model_;
  ApiRequest request_;
  std::string id_;
  int64_t created_;
  std::string head_;  // of each chunk
  std::vector<Choice> choices_;
  std::unique_ptr<ResponseWriter> response_;  // of kResponse
};

// JSON text; bytes that are no UTF-8 become U+FFFD.
std::string dump(const io::Json& value);

}  // namespace hadal::server
