// The templates as data, and the one writer that follows them.
//
// Each flag below is a difference between two published templates, so some are their quirks: in
// the first two, only the first list of tool calls of a conversation is opened by its token.
// SPDX-License-Identifier: Apache-2.0
#include "io/chat_template.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/rng.h"
#include "io/chat_tokens.h"
#include "io/json.h"

namespace hadal::io {

using namespace chat_tokens;

namespace {

using Family = ChatFamily;

// Where the token that opens a reply comes from.
enum class Opening : uint8_t {
  kReply,     // the assistant message writes it
  kUser,      // the user message writes it
  kReasoned,  // the assistant message does right after a user message, with </think> or <think>
};

// What is cut off an assistant's text.
enum class Reasoning : uint8_t {
  kNothing,
  kReplyToFirst,  // up to the first </think>, unless the reply follows tool output
  kReplyToLast,   // up to the last one, unless it follows tool output
  kAllToLast,     // up to the last one, always
};

// Numbers of blanks before a token, and text between lines, of an indented Jinja file.
struct Layout {
  const char *lead = "", *after_bos = "", *at_end = "", *after_outputs = "", *after_opening = "";
  int opening = 0, think = 0, call = 0, next_call = 0, calls_end = 0, outputs_end = 0, reply = 0;
  int reply_after_tool = 0, output = 0, last_outputs_end = 0, last_opening = 0, last_think = 0;
};

constexpr Layout kNone{};
constexpr Layout kVllmV3{.lead = "\n\n",
                         .after_bos = "\n",
                         .at_end = "\n",
                         .after_outputs = "\n",
                         .after_opening = "\n",
                         .call = 20,
                         .next_call = 16,
                         .calls_end = 8,
                         .outputs_end = 12,
                         .reply = 12,
                         .reply_after_tool = 12,
                         .output = 12,
                         .last_outputs_end = 4,
                         .last_opening = 4};
constexpr Layout kVllmR1{.after_outputs = "\n",
                         .call = 20,
                         .next_call = 16,
                         .calls_end = 8,
                         .outputs_end = 12,
                         .reply_after_tool = 12,
                         .output = 12,
                         .last_outputs_end = 4};
constexpr Layout kVllmV31{.lead = "\n\n",
                          .opening = 6,
                          .think = 8,
                          .call = 10,
                          .next_call = 8,
                          .calls_end = 4,
                          .reply = 6,
                          .reply_after_tool = 6,
                          .last_opening = 2,
                          .last_think = 4};

// NOTE: what is taught to the model word by word, the missing space and line break included.
std::string v3_tools(const std::vector<std::string>& tools, const Layout& layout) {
  // In the original, layout alone separates these lines.
  const bool plain = layout.lead[0] == '\0';
  const std::string indent = plain ? "" : "    ", between = plain ? "\n" : "\n\n    ";
  std::string text = indent +
                     "\n\n# Tools\n\nYou may call one or more functions to assist with the user "
                     "query.\n\nYou are provided with function signatures within <tools></tools> "
                     "XML tags:\n<tools>";
  for (const std::string& tool : tools) text += concat("\n", tool);
  text += concat(indent, "\n</tools>\n\n", plain ? "" : between);
  text += concat("For function call returns, you should first print ", kCalls, between);
  text += concat("For each function call, you should return object like:\n", plain ? "" : "\n    ");
  text += concat(kCall, "function", kSep,
                 "<function_name>\n```json\n<function_arguments_in_json_format>\n```", kCallEnd,
                 between);
  return text + concat("At the end of function call returns, you should print ", kCallsEnd, kEos);
}

std::string r1_tools(const std::vector<std::string>& tools) {
  std::string text = concat(
      "\n\nYou are a helpful assistant with tool calling capabilities. When a tool call is needed, "
      "you MUST use the following format to issue the call:\n",
      kCalls, kCall, "function", kSep, "FUNCTION_NAME\n```json\n",
      "{\"param1\": \"value1\", \"param2\": \"value2\"}\n```", kCallEnd, kCallsEnd,
      "\n\nMake sure the JSON is valid.## Tools\n\n### Function\n\nYou have the following "
      "functions "
      "available:\n\n");
  for (const std::string& tool : tools) text += concat("\n```json\n", tool, "\n```\n");
  return text;
}

std::string v31_tools(const std::vector<std::string>& tools) {
  std::string text = "\n\n## Tools\nYou have access to the following tools:\n";
  for (size_t i = 0; i < tools.size(); ++i) {
    const std::string where = concat("tools[", i, "]");
    const auto tool = nlohmann::ordered_json::parse(tools[i]);
    HADAL_CHECK(tool.is_object() && tool.contains("function") && tool["function"].is_object(),
                where, ": function is missing; add {\"name\": ..., \"parameters\": ...}");
    const auto& function = tool["function"];
    const auto string_of = [&](const char* key) {
      const auto at = function.find(key);
      if (at == function.end() || at->is_null()) return std::string();
      HADAL_CHECK(at->is_string(), where, ": function: ", key, " is no string; make it one");
      return at->get<std::string>();
    };
    const auto parameters = function.find("parameters");
    text +=
        concat("\n### ", string_of("name"), "\nDescription: ", string_of("description"),
               "\n\nParameters: ",
               parameters == function.end() ? "{}" : python_json(parameters->dump(), where), "\n");
  }
  return text +
         concat("\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n", kCalls, kCall,
                "tool_call_name", kSep, "tool_call_arguments", kCallEnd,
                "{{additional_tool_calls}}", kCallsEnd,
                "\n\nWhere:\n\n- `tool_call_name` must be an exact match to one of the available "
                "tools\n- `tool_call_arguments` must be valid JSON that strictly follows the "
                "tool's Parameters Schema\n- For multiple tool calls, chain them directly without "
                "separators or spaces\n");
}

void cut_reasoning(std::string& text, bool to_last) {
  const size_t at = to_last ? text.rfind(kThinkEnd) : text.find(kThinkEnd);
  if (at != text.npos) text.erase(0, at + kThinkEnd.size());
}

}  // namespace

struct ChatTemplate::Format {
  std::string_view name;
  Family family;
  Opening opening;
  Reasoning cut;
  bool once = false;        // the tokens that open calls and outputs stand once a conversation
  bool parse_args = false;  // arguments are read and written again
  std::string_view generation = "";  // after the token that opens the reply to come
  Layout layout = kNone;
  std::string_view with_tools = "";  // the format to use when there are tools
  uint64_t hash = 0;                 // of the Jinja template
};

const std::vector<ChatTemplate::Format>& ChatTemplate::formats() {
  using F = Family;
  using O = Opening;
  static const std::vector<Format> list = {
      {.name = "deepseek-v3",
       .family = F::kV3,
       .opening = O::kReply,
       .cut = Reasoning::kReplyToLast,
       .once = true,
       .with_tools = "v3-tools",
       .hash = 0xb9eb54d150716a7du},
      {.name = "deepseek-v3-0324",
       .family = F::kV3,
       .opening = O::kUser,
       .cut = Reasoning::kNothing,
       .with_tools = "v3-tools",
       .hash = 0x84d4366da1d72528u},
      {.name = "deepseek-r1",
       .family = F::kR1,
       .opening = O::kReply,
       .cut = Reasoning::kReplyToLast,
       .once = true,
       .generation = "<think>\n",
       .with_tools = "r1-tools",
       .hash = 0x4526f885d718fa95u},
      {.name = "deepseek-v3.1",
       .family = F::kV31,
       .opening = O::kReasoned,
       .cut = Reasoning::kReplyToFirst,
       .with_tools = "v3.1-tools",
       .hash = 0x28885eb8eebd9c32u},
      {.name = "vllm-deepseek-v3",
       .family = F::kV3,
       .opening = O::kUser,
       .cut = Reasoning::kNothing,
       .parse_args = true,
       .layout = kVllmV3},
      {.name = "vllm-deepseek-r1",
       .family = F::kR1,
       .opening = O::kUser,
       .cut = Reasoning::kAllToLast,
       .parse_args = true,
       .layout = kVllmR1},
      {.name = "vllm-deepseek-v3.1",
       .family = F::kV31,
       .opening = O::kReasoned,
       .cut = Reasoning::kReplyToFirst,
       .parse_args = true,
       .layout = kVllmV31},
      // Without a name of their own: the three above, free of layout.
      {.name = "v3-tools",
       .family = F::kV3,
       .opening = O::kUser,
       .cut = Reasoning::kNothing,
       .parse_args = true},
      {.name = "r1-tools",
       .family = F::kR1,
       .opening = O::kUser,
       .cut = Reasoning::kAllToLast,
       .parse_args = true},
      {.name = "v3.1-tools",
       .family = F::kV31,
       .opening = O::kReasoned,
       .cut = Reasoning::kReplyToFirst,
       .parse_args = true},
  };
  return list;
}

// Writes one conversation.
class ChatWriter {
 public:
  ChatWriter(const ChatTemplate::Format& format, const Chat& chat)
      : format_(format), layout_(format.layout), chat_(chat) {}

  std::string write() {
    out_ = concat(layout_.lead, kBos, layout_.after_bos);
    system();
    for (size_t i = 0; i < chat_.messages.size(); ++i) message(chat_.messages[i], i);
    finish();
    return std::move(out_);
  }

 private:
  bool has_outputs_token() const { return format_.family != Family::kV31; }
  void put(int blanks, std::initializer_list<std::string_view> parts) {
    out_.append(static_cast<size_t>(blanks), ' ');
    for (std::string_view part : parts) out_ += part;
  }

  void system() {
    bool first = true;
    for (const ChatMessage& message : chat_.messages) {
      if (message.role != "system") continue;
      out_ += concat(first ? "" : "\n\n", message.content.value_or(""));
      first = false;
    }
    if (chat_.tools.empty()) return;
    std::vector<std::string> tools;
    for (size_t i = 0; i < chat_.tools.size(); ++i)
      tools.push_back(python_json(chat_.tools[i], concat("tools[", i, "]")));
    out_ += format_.family == Family::kV3   ? v3_tools(tools, layout_)
            : format_.family == Family::kR1 ? r1_tools(tools)
                                            : v31_tools(tools);
  }

  void message(const ChatMessage& m, size_t index) {
    HADAL_CHECK(m.content || !m.tool_calls.empty(), "messages[", index, "]: content of the ",
                m.role, " is missing; only an assistant with tool_calls may leave it out");
    if (m.role == "user") {
      after_tool_ = false;
      after_user_ = true;
      if (!format_.once) calls_opened_ = false;
      put(0, {kUser, *m.content});
      if (format_.opening == Opening::kUser) put(0, {kAssistant});
    } else if (m.role == "assistant" && !m.tool_calls.empty()) {
      calls(m, index);
    } else if (m.role == "assistant") {
      reply(m);
    } else if (m.role == "tool") {
      output(m);
    } else {
      HADAL_CHECK(m.role == "system", "messages[", index, "]: role is \"", m.role,
                  "\"; allowed: system, user, assistant, tool");
    }
  }

  void calls(const ChatMessage& m, size_t index) {
    std::string content = m.content.value_or("");
    if (format_.cut == Reasoning::kAllToLast) cut_reasoning(content, true);
    if (format_.opening == Opening::kReasoned && after_user_)
      put(layout_.opening, {kAssistant, kThinkEnd});
    if (after_tool_ && has_outputs_token() && !format_.once)
      put(layout_.outputs_end, {kOutputsEnd});
    after_user_ = after_tool_ = false;
    if (!format_.once) calls_opened_ = outputs_opened_ = false;
    for (const ToolCall& call : m.tool_calls) {
      if (!calls_opened_) {
        put(layout_.call, {});
        if (format_.opening == Opening::kReply) put(0, {kAssistant});
        put(0, {content, kCalls});
      } else {
        put(layout_.next_call, {has_outputs_token() ? "\n" : ""});
      }
      calls_opened_ = true;
      one_call(call, index);
    }
    put(layout_.calls_end, {kCallsEnd, kEos});
  }

  void one_call(const ToolCall& call, size_t index) {
    std::string arguments = call.arguments;
    if (format_.parse_args)
      arguments = python_json(arguments.empty() ? "{}" : arguments,
                              concat("messages[", index, "]: arguments of ", call.name));
    if (format_.family == Family::kV31)
      put(0, {kCall, call.name, kSep, arguments, kCallEnd});
    else
      put(0, {kCall, call.type, kSep, call.name, "\n```json\n", arguments, "\n```", kCallEnd});
  }

  void reply(const ChatMessage& m) {
    std::string content = *m.content;
    if (format_.cut == Reasoning::kAllToLast ||
        (format_.cut == Reasoning::kReplyToLast && !after_tool_))
      cut_reasoning(content, true);
    if (format_.cut == Reasoning::kReplyToFirst && !after_tool_) cut_reasoning(content, false);
    if (format_.opening == Opening::kReasoned && after_user_) {
      put(layout_.opening, {kAssistant});
      put(layout_.think, {m.prefix && chat_.thinking ? kThink : kThinkEnd});
    }
    if (after_tool_) {
      put(layout_.reply_after_tool, {has_outputs_token() ? kOutputsEnd : ""});
    } else {
      put(layout_.reply, {format_.opening == Opening::kReply ? kAssistant : ""});
    }
    put(0, {content, kEos});
    after_user_ = after_tool_ = false;
  }

  void output(const ChatMessage& m) {
    after_user_ = false;
    after_tool_ = true;
    put(layout_.output, {});
    if (has_outputs_token()) {
      if (!outputs_opened_)
        put(0, {kOutputs});
      else if (!format_.once)
        put(0, {"\n"});
    }
    outputs_opened_ = true;
    put(0, {kOutput, *m.content, kOutputEnd});
  }

  void finish() {
    if (after_tool_ && has_outputs_token())
      put(layout_.last_outputs_end, {kOutputsEnd, layout_.after_outputs});
    put(0, {layout_.at_end});
    if (!chat_.add_generation_prompt || after_tool_) return;
    if (format_.opening == Opening::kReasoned) {
      if (!after_user_) return;
      put(layout_.last_opening, {kAssistant});
      put(layout_.last_think, {chat_.thinking ? kThink : kThinkEnd});
    } else if (format_.opening == Opening::kReply || !after_user_) {
      put(layout_.last_opening, {kAssistant, format_.generation, layout_.after_opening});
    }
  }

  const ChatTemplate::Format& format_;
  const Layout& layout_;
  const Chat& chat_;
  std::string out_;
  bool after_tool_ = false, after_user_ = false, calls_opened_ = false, outputs_opened_ = false;
};

std::vector<std::string> ChatTemplate::names() {
  std::vector<std::string> list;
  for (const Format& format : formats())
    if (format.name.find("deepseek") != format.name.npos) list.emplace_back(format.name);
  return list;
}

ChatTemplate ChatTemplate::named(std::string_view name) {
  std::string list;
  for (const std::string& known : names()) {
    if (known == name)
      for (const Format& format : formats())
        if (format.name == name) return ChatTemplate(format);
    list += concat(list.empty() ? "" : ", ", known);
  }
  HADAL_FAIL("there is no chat template ", name, "; allowed: ", list);
}

ChatTemplate ChatTemplate::of_model(const std::string& dir) {
  const std::string path = dir + "/tokenizer_config.json";
  std::string list;
  for (const std::string& known : names()) list += concat(list.empty() ? "" : "|", known);
  HADAL_CHECK(std::filesystem::exists(path), path,
              " is missing, so the chat template is unknown; give --chat-template ", list);
  const JsonObject config = JsonObject::read(path);
  HADAL_CHECK(config.has("chat_template"), path,
              ": chat_template is missing; give --chat-template ", list);
  const uint64_t hash = stream_id(config.string("chat_template"));
  for (const Format& format : formats())
    if (format.hash == hash) return ChatTemplate(format);
  HADAL_FAIL(path, ": chat_template is none that hadal knows; give --chat-template ", list);
}

std::string_view ChatTemplate::name() const { return format_->name; }
ChatFamily ChatTemplate::family() const { return format_->family; }

std::string ChatTemplate::render(const Chat& chat) const {
  const Format* format = format_;
  if (!chat.tools.empty() && !format->with_tools.empty())
    for (const Format& other : formats())
      if (other.name == format_->with_tools) format = &other;
  return ChatWriter(*format, chat).write();
}

void ChatTemplate::check_tokens(const Tokenizer& tokenizer) const {
  std::vector<std::string_view> needed = {kBos, kEos, kUser, kAssistant};
  if (format_->family != Family::kV3) needed.insert(needed.end(), {kThink, kThinkEnd});
  for (std::string_view token : needed)
    HADAL_CHECK(tokenizer.added_id(token), "the tokenizer has no token ", token,
                ", which the chat template ", name(),
                " needs; use a model that was trained to chat, or hadal generate");
}

std::string_view ChatTemplate::end_of_turn() { return kEos; }

std::string without_reasoning(std::string_view reply, bool opened) {
  std::string text(reply);
  if (text.find(kThinkEnd) != text.npos) {
    cut_reasoning(text, true);
  } else if (opened || text.starts_with(kThink)) {
    text.clear();
  }
  return text;
}

}  // namespace hadal::io
