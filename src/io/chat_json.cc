// Conversations in the JSON of OpenAI's API.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/chat_template.h"
#include "io/json.h"

namespace hadal::io {
namespace {

using Ordered = nlohmann::ordered_json;

// Text, or a list of {"type": "text", "text": ...}.
std::string content_text(const JsonObject& message) {
  const Json& value = message.json()["content"];
  if (!value.is_array()) return message.string("content");
  std::string text;
  const std::vector<JsonObject> parts = message.objects("content");
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string type = parts[i].string("type", "text");
    HADAL_CHECK(type == "text", parts[i].where(), ": type is ", type, "; only text is supported");
    if (i > 0) text += "\n";
    text += parts[i].string("text");
  }
  return text;
}

ToolCall read_call(const JsonObject& call, const Ordered& original) {
  const JsonObject function = call.object("function");
  ToolCall result{.name = function.string("name"), .arguments = ""};
  result.type = call.string("type", "function");
  if (!function.has("arguments")) return result;
  // Text of JSON in the API, but an object in some data sets.
  const Ordered& arguments = original.at("function").at("arguments");
  result.arguments =
      arguments.is_string() ? arguments.get<std::string>() : python_json(arguments.dump(), "");
  return result;
}

ChatMessage read_message(const JsonObject& message, const Ordered& original) {
  ChatMessage result{.role = message.string("role"), .content = {}, .tool_calls = {}};
  if (message.has("content")) result.content = content_text(message);
  result.prefix = message.boolean("prefix", false);
  if (!message.has("tool_calls")) return result;
  HADAL_CHECK(result.role == "assistant", message.where(), ": tool_calls of role ", result.role,
              "; only an assistant calls tools");
  const std::vector<JsonObject> calls = message.objects("tool_calls");
  for (size_t i = 0; i < calls.size(); ++i)
    result.tool_calls.push_back(read_call(calls[i], original.at("tool_calls").at(i)));
  return result;
}

}  // namespace

Chat Chat::parse(std::string_view json, const std::string& where) {
  const JsonObject root = JsonObject::parse(json, where);
  // Tools are written with their keys in the order of the request, which Json does not keep.
  const Ordered original = Ordered::parse(json.begin(), json.end());
  Chat chat;
  const std::vector<JsonObject> messages = root.objects("messages");
  for (size_t i = 0; i < messages.size(); ++i)
    chat.messages.push_back(read_message(messages[i], original.at("messages").at(i)));
  if (root.has("tools")) {
    root.objects("tools");
    for (const Ordered& tool : original.at("tools")) chat.tools.push_back(tool.dump());
  }
  chat.add_generation_prompt = root.boolean("add_generation_prompt", true);
  chat.thinking = root.boolean("thinking", false);
  root.check_no_unknown();
  return chat;
}

}  // namespace hadal::io
