// Answers of chat and completions as OpenAI's API writes them.
// SPDX-License-Identifier: Apache-2.0
#include "server/answer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/check.h"

namespace hadal::server {

using io::Json;
using Kind = io::ReplyParser::Event::Kind;

std::string dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Answer::Answer(const ModelInfo& model, ApiRequest request, std::string id, int64_t created)
    : model_(model), request_(std::move(request)), id_(std::move(id)), created_(created) {
  const bool chat = request_.kind != ApiKind::kCompletion;
  io::ReplyParser::Settings settings;
  if (chat)
    settings = {.family = model.chat_template->family(),
                .in_reasoning = request_.in_reasoning,
                .tools = request_.tools};
  choices_.assign(request_.prompts.size() * static_cast<size_t>(request_.n), Choice(settings));
  if (request_.kind == ApiKind::kResponse)
    response_ = std::make_unique<ResponseWriter>(model_, request_, id_, created_);
  head_ = fmt::format(R"(data: {{"id":"{}","object":"{}","created":{},"model":{},"choices":[)", id_,
                      chat ? "chat.completion.chunk" : "text_completion", created_, dump(model.id));
}

bool Answer::done() const {
  return std::all_of(choices_.begin(), choices_.end(),
                     [](const Choice& c) { return c.finish.has_value(); });
}

int64_t Answer::prompt_tokens() const {
  int64_t sum = 0;  // a prompt counts once, however many choices it has
  for (const auto& prompt : request_.prompts) sum += static_cast<int64_t>(prompt.size());
  return sum;
}
int64_t Answer::generated_tokens() const {
  int64_t sum = 0;
  for (const Choice& c : choices_) sum += c.num_generated;
  return sum;
}
int64_t Answer::cached_tokens() const {
  int64_t sum = 0;
  for (size_t i = 0; i < choices_.size(); i += static_cast<size_t>(request_.n))
    sum += choices_[i].num_cached;
  return sum;
}

int64_t Answer::reasoning_tokens() const {
  int64_t sum = 0;
  for (const Choice& c : choices_) sum += c.num_reasoning;
  return sum;
}

Json Answer::usage() const {
  return {{"prompt_tokens", prompt_tokens()},
          {"completion_tokens", generated_tokens()},
          {"total_tokens", prompt_tokens() + generated_tokens()},
          {"prompt_tokens_details", {{"cached_tokens", cached_tokens()}}},
          {"completion_tokens_details", {{"reasoning_tokens", reasoning_tokens()}}}};
}

const char* Answer::finish_reason(const Choice& c) const {
  if (*c.finish == serve::Finish::kStop && !c.calls.empty()) return "tool_calls";
  return serve::finish_name(*c.finish);
}

std::string Answer::token_text(int32_t id) const {
  if (!model_.tokenizer) return fmt::format("token_id:{}", id);
  return model_.tokenizer->knows(id) ? std::string(model_.tokenizer->bytes(id)) : std::string();
}

Json Answer::chat_logprobs(const std::vector<serve::TokenLogprob>& list) const {
  const auto entry = [&](int32_t id, double logprob) {
    const std::string text = token_text(id);
    Json bytes = Json::array();
    for (char c : text) bytes.push_back(static_cast<uint8_t>(c));
    return Json{{"token", text}, {"logprob", logprob}, {"bytes", bytes}};
  };
  Json content = Json::array();
  for (const serve::TokenLogprob& l : list) {
    Json one = entry(l.id, l.logprob);
    one["top_logprobs"] = Json::array();
    for (const auto& [id, logprob] : l.top) one["top_logprobs"].push_back(entry(id, logprob));
    content.push_back(one);
  }
  return {{"content", content}, {"refusal", nullptr}};
}

// With echo, the prompt's tokens come first; the very first has no probability.
Json Answer::text_logprobs(const Choice& c, const std::vector<serve::TokenLogprob>& list,
                           int64_t offset) const {
  Json tokens = Json::array(), values = Json::array(), tops = Json::array(),
       offsets = Json::array();
  const auto add = [&](int32_t id, const serve::TokenLogprob* l) {
    const std::string text = token_text(id);
    tokens.push_back(text);
    values.push_back(l != nullptr ? Json(l->logprob) : Json());
    offsets.push_back(offset);
    offset += static_cast<int64_t>(text.size());
    Json top;
    if (l != nullptr && request_.params.num_logprobs > 0) {
      // Several tokens may read the same once their bytes are made UTF-8: the most probable stays.
      top = Json::object();
      for (const auto& [other, logprob] : l->top) {
        const std::string name = Json::parse(dump(token_text(other))).get<std::string>();
        if (!top.contains(name)) top[name] = logprob;
      }
    }
    tops.push_back(top);
  };
  if (request_.echo) {
    const size_t index = static_cast<size_t>(&c - choices_.data());
    const auto& prompt = request_.prompts[index / static_cast<size_t>(request_.n)];
    add(prompt[0], nullptr);
    for (const serve::TokenLogprob& l : c.prompt_logprobs) add(l.id, &l);
  }
  for (const serve::TokenLogprob& l : list) add(l.id, &l);
  return {{"tokens", tokens},
          {"token_logprobs", values},
          {"top_logprobs", request_.params.num_logprobs > 0 ? tops : Json()},
          {"text_offset", offsets}};
}

// As vLLM: a list with null for the first token, then the token and its alternatives by id.
Json Answer::prompt_logprobs(size_t index) const {
  Json list = Json::array({nullptr});
  for (const serve::TokenLogprob& l : choices_[index].prompt_logprobs) {
    Json one = {
        {std::to_string(l.id), {{"logprob", l.logprob}, {"decoded_token", token_text(l.id)}}}};
    for (const auto& [id, logprob] : l.top)
      one[std::to_string(id)] = {{"logprob", logprob}, {"decoded_token", token_text(id)}};
    list.push_back(one);
  }
  return list;
}

Answer::Events Answer::take(Choice& c, const serve::Output& out) const {
  const bool keep = !request_.stream;  // a stream's parts are gone once sent
  c.num_prompt = out.num_prompt;
  c.num_cached = out.num_cached;
  c.num_generated = out.num_generated;
  if (keep) c.logprobs.insert(c.logprobs.end(), out.logprobs.begin(), out.logprobs.end());
  if (keep && request_.return_token_ids)
    c.tokens.insert(c.tokens.end(), out.tokens.begin(), out.tokens.end());
  c.prompt_logprobs.insert(c.prompt_logprobs.end(), out.prompt_logprobs.begin(),
                           out.prompt_logprobs.end());
  c.finish = out.finish;
  if (request_.kind == ApiKind::kCompletion) {
    if (keep) c.content += out.text;
    return {};
  }
  Events events = c.parser.push(out.text);
  if (c.parser.in_reasoning()) c.num_reasoning += static_cast<int64_t>(out.tokens.size());
  if (out.finish)
    for (auto& event : c.parser.finish()) events.push_back(std::move(event));
  // One call and no more: the reply ends where a second one begins.
  const auto second =
      std::find_if(events.begin(), events.end(), [](const auto& event) { return event.call > 0; });
  if (!request_.parallel_calls && second != events.end()) {
    events.erase(second, events.end());
    c.finish = serve::Finish::kStop;
  }
  for (const auto& event : events) {
    if (event.kind == Kind::kCall)
      c.calls.push_back({fmt::format("call_{}_{}_{}", id_.substr(id_.find('-') + 1),
                                     &c - choices_.data(), event.call),
                         event.text, ""});
    else if (event.kind == Kind::kArguments)
      c.calls.back().arguments += event.text;
    else if (keep)
      (event.kind == Kind::kReasoning ? c.reasoning : c.content) += event.text;
  }
  return events;
}

std::string Answer::chunk(const std::string& choices) const {
  return head_ + choices + (request_.include_usage ? "],\"usage\":null}\n\n" : "]}\n\n");
}

std::string Answer::begin() {
  if (response_) return response_->begin();
  if (request_.kind != ApiKind::kChat) return "";
  std::string text;
  for (size_t i = 0; i < choices_.size(); ++i)
    text += chunk(fmt::format(
        R"({{"index":{},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}})",
        i));
  return text;
}

std::string Answer::chat_chunk(size_t index, const Events& events, const serve::Output& out) {
  const Choice& c = choices_[index];
  std::string text;
  // Log probabilities go with the first part, or alone where the text is still held back.
  std::string logprobs = out.logprobs.empty() ? "null" : dump(chat_logprobs(out.logprobs));
  std::string ids = chunk_ids(out);
  const auto add = [&](const std::string& delta, const char* finish) {
    text += chunk(fmt::format(R"({{"index":{},"delta":{},"logprobs":{},"finish_reason":{}{}}})",
                              index, delta, logprobs, finish, ids));
    logprobs = "null";
    ids.clear();
  };
  for (const auto& event : events) {
    const std::string value = dump(event.text);
    switch (event.kind) {
      case Kind::kContent:
        add(fmt::format(R"({{"content":{}}})", value), "null");
        break;
      case Kind::kReasoning:
        add(fmt::format(R"({{"reasoning_content":{}}})", value), "null");
        break;
      case Kind::kCall:
        add(fmt::format(R"({{"tool_calls":[{{"index":{},"id":"{}","type":"function",)"
                        R"("function":{{"name":{},"arguments":""}}}}]}})",
                        event.call, c.calls[static_cast<size_t>(event.call)].id, value),
            "null");
        break;
      case Kind::kArguments:
        add(fmt::format(R"({{"tool_calls":[{{"index":{},"function":{{"arguments":{}}}}}]}})",
                        event.call, value),
            "null");
        break;
    }
  }
  if (c.finish)
    add("{}", fmt::format("\"{}\"", finish_reason(c)).c_str());
  else if (logprobs != "null" || !ids.empty())
    add("{}", "null");
  return text;
}

// Goes with the first part of a chunk, as log probabilities do.
std::string Answer::chunk_ids(const serve::Output& out) const {
  if (!request_.return_token_ids || out.tokens.empty()) return "";
  return fmt::format(R"(,"token_ids":[{}])", fmt::join(out.tokens, ","));
}

std::string Answer::text_chunk(size_t index, const serve::Output& out) {
  const Choice& c = choices_[index];
  const std::string ids = chunk_ids(out);
  if (out.text.empty() && out.logprobs.empty() && ids.empty() && !out.finish) return "";
  // NOTE: offsets of streamed log probabilities count from the chunk.
  const std::string logprobs =
      out.logprobs.empty() ? "null" : dump(text_logprobs(c, out.logprobs, 0));
  return chunk(fmt::format(R"({{"index":{},"text":{},"logprobs":{},"finish_reason":{}{}}})", index,
                           dump(out.text), logprobs,
                           c.finish ? fmt::format("\"{}\"", finish_reason(c)) : "null", ids));
}

std::string Answer::add(size_t index, const serve::Output& out) {
  Choice& c = choices_[index];
  const Events events = take(c, out);
  if (response_) {
    const std::string added = response_->add(events);
    return request_.stream ? added : std::string();
  }
  if (!request_.stream) return "";
  return request_.kind == ApiKind::kCompletion ? text_chunk(index, out)
                                               : chat_chunk(index, events, out);
}

std::string Answer::end() {
  if (response_)
    return response_->end(*choices_[0].finish, {.prompt = prompt_tokens(),
                                                .cached = cached_tokens(),
                                                .generated = generated_tokens(),
                                                .reasoning = reasoning_tokens()});
  std::string text;
  if (request_.include_usage) text = head_ + "],\"usage\":" + dump(usage()) + "}\n\n";
  return text + "data: [DONE]\n\n";
}

Json Answer::whole_chat(size_t index) const {
  const Choice& c = choices_[index];
  Json message = {{"role", "assistant"}, {"content", c.content}, {"refusal", nullptr}};
  if (!c.reasoning.empty() || request_.in_reasoning) message["reasoning_content"] = c.reasoning;
  if (!c.calls.empty()) {
    if (c.content.empty()) message["content"] = nullptr;
    message["tool_calls"] = Json::array();
    for (const Choice::Call& call : c.calls)
      message["tool_calls"].push_back(
          {{"id", call.id},
           {"type", "function"},
           {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  }
  return {{"index", index},
          {"message", message},
          {"logprobs", request_.params.num_logprobs >= 0 ? chat_logprobs(c.logprobs) : Json()},
          {"finish_reason", finish_reason(c)}};
}

Json Answer::whole_text(size_t index) const {
  const Choice& c = choices_[index];
  std::string text = c.content;
  if (request_.echo) text = request_.prompt_texts[index / static_cast<size_t>(request_.n)] + text;
  return {
      {"index", index},
      {"text", text},
      {"logprobs", request_.params.num_logprobs >= 0 ? text_logprobs(c, c.logprobs, 0) : Json()},
      {"finish_reason", finish_reason(c)}};
}

std::string Answer::whole() {
  if (response_) {
    end();
    return response_->whole();
  }
  const bool chat = request_.kind == ApiKind::kChat;
  Json root = {{"id", id_},
               {"object", chat ? "chat.completion" : "text_completion"},
               {"created", created_},
               {"model", model_.id},
               {"choices", Json::array()},
               {"usage", usage()}};
  for (size_t i = 0; i < choices_.size(); ++i) {
    root["choices"].push_back(chat ? whole_chat(i) : whole_text(i));
    if (request_.params.num_prompt_logprobs >= 0 && !request_.echo)
      root["choices"].back()["prompt_logprobs"] = prompt_logprobs(i);
    if (request_.return_token_ids) root["choices"].back()["token_ids"] = choices_[i].tokens;
  }
  return dump(root);
}

}  // namespace hadal::server
