// Items of a response: reasoning, message and function calls, in the order they are generated.
// SPDX-License-Identifier: Apache-2.0
#include "server/response_writer.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "server/answer.h"

namespace hadal::server {

using io::Json;
using Event = io::ReplyParser::Event;

struct ResponseWriter::State {
  State(const ModelInfo& m, const ApiRequest& r, std::string name, int64_t when)
      : model(m), request(r), id(std::move(name)), created(when) {}

  const ModelInfo& model;
  const ApiRequest& request;
  std::string id;
  int64_t created, num_events = 0;
  Json output = Json::array();
  bool open = false;  // the last item still grows
  Event::Kind kind = Event::Kind::kContent;
  std::string status = "in_progress";
  Json incomplete, usage;

  std::string event(const char* type, Json data) {
    data["type"] = type;
    data["sequence_number"] = num_events++;
    return fmt::format("event: {}\ndata: {}\n\n", type, dump(data));
  }
  Json response() const;
  Json& item() { return output.back(); }
  Json place() const {
    return {{"item_id", output.back()["id"]}, {"output_index", output.size() - 1}};
  }
  Json with(Json data, const Json& more) const {
    data.update(more);
    return data;
  }
  std::string open_item(const Event& event);
  std::string close_item();
  std::string grow(const std::string& text);
};

Json ResponseWriter::State::response() const {
  const serve::SamplingParams& p = request.params;
  return {{"id", id},
          {"object", "response"},
          {"created_at", created},
          {"status", status},
          {"error", nullptr},
          {"incomplete_details", incomplete},
          {"instructions", request.instructions.empty() ? Json() : Json(request.instructions)},
          {"max_output_tokens", p.max_tokens},
          {"metadata", Json::parse(request.metadata)},
          {"model", model.id},
          {"output", output},
          {"parallel_tool_calls", request.parallel_calls},
          {"previous_response_id", nullptr},
          {"store", false},
          {"temperature", p.temperature},
          {"text", {{"format", Json::parse(request.format_text)}}},
          {"tool_choice", Json::parse(request.tool_choice_text)},
          {"tools", Json::parse(request.tools_text)},
          {"top_p", p.top_p},
          {"truncation", "disabled"},
          {"usage", usage}};
}

std::string ResponseWriter::State::open_item(const Event& e) {
  kind = e.kind == Event::Kind::kArguments ? Event::Kind::kCall : e.kind;
  const std::string number = fmt::format("{}_{}", id.substr(id.find('_') + 1), output.size());
  open = true;
  if (kind == Event::Kind::kCall) {
    output.push_back({{"type", "function_call"},
                      {"id", "fc_" + number},
                      {"call_id", "call_" + number},
                      {"name", e.text},
                      {"arguments", ""},
                      {"status", "in_progress"}});
    return event("response.output_item.added",
                 {{"output_index", output.size() - 1}, {"item", item()}});
  }
  const bool message = kind == Event::Kind::kContent;
  output.push_back({{"type", message ? "message" : "reasoning"},
                    {"id", (message ? "msg_" : "rs_") + number},
                    {"content", Json::array()},
                    {"status", "in_progress"}});
  if (message)
    item()["role"] = "assistant";
  else
    item()["summary"] = Json::array();
  std::string text =
      event("response.output_item.added", {{"output_index", output.size() - 1}, {"item", item()}});
  Json part = {{"type", message ? "output_text" : "reasoning_text"}, {"text", ""}};
  if (message) part.update({{"annotations", Json::array()}, {"logprobs", Json::array()}});
  item()["content"].push_back(part);
  if (message)
    text +=
        event("response.content_part.added", with(place(), {{"content_index", 0}, {"part", part}}));
  return text;
}

std::string ResponseWriter::State::grow(const std::string& more) {
  if (kind == Event::Kind::kCall) {
    item()["arguments"].get_ref<std::string&>() += more;
    return event("response.function_call_arguments.delta", with(place(), {{"delta", more}}));
  }
  item()["content"][0]["text"].get_ref<std::string&>() += more;
  Json data = with(place(), {{"content_index", 0}, {"delta", more}});
  if (kind == Event::Kind::kReasoning) return event("response.reasoning_text.delta", data);
  data["logprobs"] = Json::array();
  return event("response.output_text.delta", data);
}

std::string ResponseWriter::State::close_item() {
  if (!open) return "";
  open = false;
  item()["status"] = "completed";
  std::string text;
  if (kind == Event::Kind::kCall) {
    text = event("response.function_call_arguments.done",
                 with(place(), {{"arguments", item()["arguments"]}, {"name", item()["name"]}}));
  } else {
    const Json& part = item()["content"][0];
    Json data = with(place(), {{"content_index", 0}, {"text", part["text"]}});
    if (kind == Event::Kind::kReasoning) {
      text = event("response.reasoning_text.done", data);
    } else {
      data["logprobs"] = Json::array();
      text = event("response.output_text.done", data);
      text += event("response.content_part.done",
                    with(place(), {{"content_index", 0}, {"part", part}}));
    }
  }
  return text + event("response.output_item.done",
                      {{"output_index", output.size() - 1}, {"item", item()}});
}

ResponseWriter::ResponseWriter(const ModelInfo& model, const ApiRequest& request, std::string id,
                               int64_t created)
    : state_(std::make_unique<State>(model, request, std::move(id), created)) {}
ResponseWriter::~ResponseWriter() = default;

std::string ResponseWriter::begin() {
  std::string text = state_->event("response.created", {{"response", state_->response()}});
  return text + state_->event("response.in_progress", {{"response", state_->response()}});
}

std::string ResponseWriter::add(const std::vector<Event>& events) {
  State& s = *state_;
  std::string text;
  for (const Event& e : events) {
    const bool same =
        e.kind == Event::Kind::kArguments ? s.kind == Event::Kind::kCall : e.kind == s.kind;
    if (!s.open || !same || e.kind == Event::Kind::kCall) {
      text += s.close_item();
      text += s.open_item(e);
    }
    if (e.kind != Event::Kind::kCall) text += s.grow(e.text);
  }
  return text;
}

std::string ResponseWriter::end(serve::Finish finish, const ResponseUsage& usage) {
  State& s = *state_;
  std::string text = s.close_item();
  s.status = finish == serve::Finish::kLength ? "incomplete" : "completed";
  if (finish == serve::Finish::kLength) {
    s.incomplete = {{"reason", "max_output_tokens"}};
    if (!s.output.empty()) s.item()["status"] = "incomplete";
  }
  s.usage = {
      {"input_tokens", usage.prompt},
      {"input_tokens_details",
       {{"cached_tokens", usage.cached}, {"cache_write_tokens", usage.prompt - usage.cached}}},
      {"output_tokens", usage.generated},
      {"output_tokens_details", {{"reasoning_tokens", usage.reasoning}}},
      {"total_tokens", usage.prompt + usage.generated}};
  return text + s.event(s.status == "completed" ? "response.completed" : "response.incomplete",
                        {{"response", s.response()}});
}

std::string ResponseWriter::whole() const { return dump(state_->response()); }

}  // namespace hadal::server
