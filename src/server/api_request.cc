// Reading of request bodies.
// SPDX-License-Identifier: Apache-2.0
#include "server/api_request.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <random>

#include "core/check.h"
#include "io/chat_tokens.h"
#include "server/api_form.h"

namespace hadal::server {
namespace {

using io::Json;
using io::JsonObject;
using Ordered = nlohmann::ordered_json;

constexpr int64_t kMaxLogprobs = 20;

[[noreturn]] void refuse(const std::string& param, const std::string& message) {
  throw ApiError(400, message, "", param);
}

// JsonObject's errors as answers to the client.
template <class Fn>
auto reading(const Fn& fn) {
  try {
    return fn();
  } catch (const Error& e) {
    throw ApiError(400, e.what());
  }
}

double number_in(const JsonObject& o, const char* key, double fallback, double low, double high) {
  const double value = o.number(key, fallback);
  if (!(value >= low && value <= high))
    refuse(key, concat(key, " is ", value, "; allowed: ", low, " to ", high));
  return value;
}

int64_t integer_in(const JsonObject& o, const char* key, int64_t fallback, int64_t low,
                   int64_t high) {
  const int64_t value = o.integer(key, fallback);
  if (value < low || value > high)
    refuse(key, concat(key, " is ", value, "; allowed: ", low, " to ", high));
  return value;
}

// A key that is known and not built: refused unless it has the value that asks for nothing.
void refuse_unless(const JsonObject& o, const char* key, const std::vector<Json>& allowed,
                   const std::string& message) {
  o.know(key);
  if (!o.has(key)) return;
  const Json& value = o.json()[key];
  if (std::find(allowed.begin(), allowed.end(), value) == allowed.end()) refuse(key, message);
}

std::vector<std::string> texts(const JsonObject& o, const char* key) {
  if (!o.has(key)) return {};
  if (o.json()[key].is_string()) return {o.string(key)};
  return o.strings(key);
}

std::vector<int32_t> ids_of(const std::vector<int64_t>& list) {
  std::vector<int32_t> ids;
  for (int64_t id : list) {
    if (id < 0 || id > INT32_MAX) throw ApiError(400, concat("token ", id, " is no token id"));
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

const io::Tokenizer& tokenizer_of(const ModelInfo& model) {
  if (!model.tokenizer)
    throw ApiError(400, "the model has no tokenizer.json, so text cannot be read; send token ids");
  return *model.tokenizer;
}

const io::ChatTemplate& template_of(const ModelInfo& model) {
  if (!model.chat_template) throw ApiError(400, model.no_chat_template);
  return *model.chat_template;
}

void read_logit_bias(const JsonObject& o, serve::SamplingParams& p) {
  o.know("logit_bias");
  if (!o.has("logit_bias")) return;
  const Json& map = o.json()["logit_bias"];
  if (!map.is_object()) refuse("logit_bias", "logit_bias is no object; write {\"ID\": BIAS}");
  for (const auto& [key, bias] : map.items()) {
    int32_t id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size())
      refuse("logit_bias", concat("logit_bias: \"", key, "\" is no token id"));
    if (!bias.is_number() || bias.get<double>() < -100 || bias.get<double>() > 100)
      refuse("logit_bias", concat("logit_bias of token ", key, " must be a number in -100 to 100"));
    // -100 forbids and 100 decides, as OpenAI describes it.
    p.logit_bias.emplace_back(id, bias.get<double>());
  }
}

void read_bad_words(const ModelInfo& model, const JsonObject& o, serve::SamplingParams& p) {
  for (const std::string& word : texts(o, "bad_words")) {
    if (word.empty()) refuse("bad_words", "a bad word is empty; leave it out");
    // As it begins a line, and as it follows a space.
    for (const std::string& text : {word, " " + word}) {
      std::vector<int32_t> ids = tokenizer_of(model).encode(text);
      if (std::find(p.bad_words.begin(), p.bad_words.end(), ids) == p.bad_words.end())
        p.bad_words.push_back(std::move(ids));
    }
  }
}

// What chat and completions share, but for the number of tokens and log probabilities.
void read_common(const ModelInfo& model, const JsonObject& o, ApiRequest& r) {
  serve::SamplingParams& p = r.params;
  if (o.has("model") && o.string("model") != model.id)
    throw ApiError(404,
                   concat("there is no model ", o.string("model"), "; this server has ", model.id),
                   "model_not_found", "model");
  p.temperature = number_in(o, "temperature", 1.0, 0.0, 100.0);
  p.top_p = number_in(o, "top_p", 1.0, 0.0, 1.0);
  if (p.top_p == 0.0) refuse("top_p", "top_p is 0; allowed: above 0, at most 1");
  p.min_p = number_in(o, "min_p", 0.0, 0.0, 1.0);
  p.top_k = integer_in(o, "top_k", 0, -1, INT32_MAX);
  p.top_k = std::max<int64_t>(p.top_k, 0);
  p.presence_penalty = number_in(o, "presence_penalty", 0.0, -2.0, 2.0);
  p.frequency_penalty = number_in(o, "frequency_penalty", 0.0, -2.0, 2.0);
  p.repetition_penalty = number_in(o, "repetition_penalty", 1.0, 0.01, 100.0);
  p.seed = o.has("seed") ? static_cast<uint64_t>(o.integer("seed")) : [] {
    std::random_device device;
    return (static_cast<uint64_t>(device()) << 32) | device();
  }();
  p.stop = texts(o, "stop");
  if (p.stop.size() > 16) refuse("stop", "there are more than 16 stop strings");
  for (const std::string& stop : p.stop)
    if (stop.empty()) refuse("stop", "a stop string is empty; leave it out");
  if (!p.stop.empty()) tokenizer_of(model);
  if (o.has("stop_token_ids")) p.stop_ids = ids_of(o.integers("stop_token_ids"));
  r.ignore_eos = o.boolean("ignore_eos", false);
  if (!r.ignore_eos) p.stop_ids.insert(p.stop_ids.end(), model.eos.begin(), model.eos.end());
  read_logit_bias(o, p);
  read_bad_words(model, o, p);
  if (o.has("prompt_logprobs"))
    p.num_prompt_logprobs = integer_in(o, "prompt_logprobs", 0, 0, kMaxLogprobs);
  r.n = integer_in(o, "n", 1, 1, model.max_choices);
  r.priority = integer_in(o, "priority", 0, -1000, 1000);
  r.return_token_ids = o.boolean("return_token_ids", false);
  r.stream = o.boolean("stream", false);
  if (o.has("stream_options")) {
    if (!r.stream) refuse("stream_options", "stream_options needs \"stream\": true");
    const JsonObject options = o.object("stream_options");
    r.include_usage = options.boolean("include_usage", false);
    options.check_no_unknown();
  }
  for (const char* key : {"user", "metadata", "store", "service_tier", "safety_identifier"})
    o.know(key);
}

// Fits a limit that was asked for, or what is left, into the context.
void read_length(const ModelInfo& model, const JsonObject& o, const char* key, int64_t fallback,
                 ApiRequest& r) {
  int64_t longest = 0;
  for (const auto& prompt : r.prompts) {
    if (prompt.empty()) throw ApiError(400, "the prompt is empty; give at least one token");
    longest = std::max(longest, static_cast<int64_t>(prompt.size()));
  }
  if (longest >= model.context)
    throw ApiError(400,
                   concat("the prompt has ", longest, " tokens; at most ", model.context - 1,
                          " fit the context of ", model.context),
                   "context_length_exceeded");
  const int64_t left = model.context - longest;
  serve::SamplingParams& p = r.params;
  p.max_tokens = o.has(key) ? integer_in(o, key, 0, 1, INT32_MAX) : std::min(fallback, left);
  if (p.max_tokens > left)
    throw ApiError(400,
                   concat("the prompt has ", longest, " tokens, so ", key, " of ", p.max_tokens,
                          " is over the context of ", model.context),
                   "context_length_exceeded", key);
  p.min_tokens = integer_in(o, "min_tokens", 0, 0, p.max_tokens);
}

// A chat as it was asked for, and the form that forced calls give the reply.
struct AskedChat {
  io::Chat chat;
  ToolChoice choice;
  bool one_call = false;  // at most
};

// The chat behind `messages` and `tools`, as Chat::parse reads it: keys in their order.
AskedChat read_chat(const JsonObject& o, const std::string& body) {
  Ordered original = Ordered::parse(body);
  Ordered chat = {{"messages", original.contains("messages") ? original["messages"] : Ordered()}};
  if (!chat["messages"].is_array() || chat["messages"].empty())
    refuse("messages", "messages is missing or empty; give [{\"role\": ..., \"content\": ...}]");
  for (Ordered& message : chat["messages"])
    if (message.is_object() && message.value("role", Ordered()) == "developer")
      message["role"] = "system";
  o.know("messages");
  AskedChat asked;
  asked.choice = read_tool_choice(o);
  asked.one_call = !o.boolean("parallel_tool_calls", true);
  o.know("tools");
  if (o.has("tools") && asked.choice.kind != ToolChoice::Kind::kNone)
    chat["tools"] = original["tools"];
  asked.chat = io::Chat::parse(chat.dump(), "request");
  const std::vector<std::string>& tools = asked.chat.tools;
  bool has_name = false;
  for (size_t i = 0; i < tools.size(); ++i) {
    const Json tool = io::parse_json(tools[i], "tools");
    if (!tool.is_object() || tool.value("type", Json()) != "function" ||
        !tool.contains("function") || !tool["function"].is_object() ||
        !tool["function"].contains("name") || !tool["function"]["name"].is_string())
      refuse("tools", concat("tools[", i,
                             "] is no {\"type\": \"function\", \"function\": "
                             "{\"name\": ...}}; only functions are supported"));
    has_name = has_name || tool["function"]["name"] == asked.choice.name;
  }
  if (asked.choice.forces() && tools.empty())
    refuse("tool_choice", "tool_choice asks for a call, and there are no tools");
  if (asked.choice.kind == ToolChoice::Kind::kNamed && !has_name)
    refuse("tool_choice", concat("tool_choice names ", asked.choice.name, ", which is no tool"));
  return asked;
}

// The form of the reply: of forced calls, or the one that was asked for.
void hold(const ModelInfo& model, const AskedChat& asked, ApiRequest& r) {
  r.parallel_calls = !asked.one_call;
  if (asked.choice.forces()) {
    if (r.form.asks())
      refuse("tool_choice", "a forced call and another form of the reply exclude each other");
    std::vector<std::string> tools;
    for (const std::string& tool : asked.chat.tools)
      if (asked.choice.kind == ToolChoice::Kind::kRequired ||
          Json::parse(tool)["function"]["name"] == asked.choice.name)
        tools.push_back(tool);
    r.form = tool_calls_form(template_of(model).family(), tokenizer_of(model), tools,
                             asked.one_call || asked.choice.kind == ToolChoice::Kind::kNamed);
  } else if (r.form.asks() && !asked.chat.tools.empty()) {
    refuse("tools", "tools and a form of the reply exclude each other; use tool_choice none");
  }
  if (!r.form.asks() || !r.in_reasoning) return;
  // Reasoning is free; what follows it is held.
  const auto end = tokenizer_of(model).added_id(io::chat_tokens::kThinkEnd);
  if (!end)
    refuse("response_format",
           "a form behind reasoning needs a tokenizer with the token </think>, and this one has "
           "none");
  r.params.grammar_after = *end;
}

void render(const ModelInfo& model, io::Chat& chat, ApiRequest& r) {
  const io::ChatTemplate& format = template_of(model);
  r.tools = !chat.tools.empty();
  const std::string prompt = format.render(chat);
  r.in_reasoning = prompt.ends_with("<think>") || prompt.ends_with("<think>\n");
  r.prompts = {tokenizer_of(model).encode(prompt)};
  const auto end = model.tokenizer->added_id(io::ChatTemplate::end_of_turn());
  if (end && !r.ignore_eos &&
      std::find(r.params.stop_ids.begin(), r.params.stop_ids.end(), *end) ==
          r.params.stop_ids.end())
    r.params.stop_ids.push_back(*end);
}

void read_thinking(const ModelInfo& model, const JsonObject& o, io::Chat& chat) {
  o.know("chat_template_kwargs");
  if (!o.has("chat_template_kwargs")) return;
  const JsonObject settings = o.object("chat_template_kwargs");
  chat.thinking = settings.boolean("thinking", false);
  settings.check_no_unknown();
  if (chat.thinking && template_of(model).family() != io::ChatFamily::kV31)
    refuse("chat_template_kwargs", concat("the chat template ", template_of(model).name(),
                                          " has no thinking to switch on"));
}

// Keys of OpenAI's API that ask for what is not built.
void refuse_known(const JsonObject& o) {
  refuse_unless(o, "functions", {}, "functions is not supported; use tools");
  refuse_unless(o, "function_call", {}, "function_call is not supported; use tool_choice");
  refuse_unless(o, "modalities", {Json::array({"text"})}, "only the modality text is supported");
  for (const char* key :
       {"audio", "prediction", "web_search_options", "reasoning_effort", "verbosity"})
    refuse_unless(o, key, {}, concat(key, " is not supported; leave it out"));
}

}  // namespace

std::string ApiError::body() const {
  const auto or_null = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
  const char* type = status == 401   ? "authentication_error"
                     : status == 404 ? "not_found_error"
                     : status == 429 ? "rate_limit_error"
                     : status >= 500 ? "server_error"
                                     : "invalid_request_error";
  return Json{
      {"error",
       {{"message", what()}, {"type", type}, {"param", or_null(param)}, {"code", or_null(code)}}}}
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

ApiRequest parse_chat(const ModelInfo& model, const std::string& body) {
  return reading([&] {
    const JsonObject o = JsonObject::parse(body, "request");
    ApiRequest r;
    r.kind = ApiKind::kChat;
    template_of(model);
    read_common(model, o, r);
    r.form = read_form(o, Ordered::parse(body));
    refuse_known(o);
    AskedChat asked = read_chat(o, body);
    read_thinking(model, o, asked.chat);
    render(model, asked.chat, r);
    hold(model, asked, r);
    if (o.has("max_tokens") && o.has("max_completion_tokens") &&
        o.integer("max_tokens") != o.integer("max_completion_tokens"))
      refuse("max_tokens", "max_tokens and max_completion_tokens differ; give one of them");
    o.know("max_tokens");
    o.know("max_completion_tokens");
    read_length(model, o, o.has("max_tokens") ? "max_tokens" : "max_completion_tokens", INT64_MAX,
                r);
    const bool logprobs = o.boolean("logprobs", false);
    if (o.has("top_logprobs") && !logprobs)
      refuse("top_logprobs", "top_logprobs needs \"logprobs\": true");
    const int64_t top = integer_in(o, "top_logprobs", 0, 0, kMaxLogprobs);
    if (logprobs) r.params.num_logprobs = top;
    o.check_no_unknown();
    return r;
  });
}

ApiRequest parse_completion(const ModelInfo& model, const std::string& body) {
  return reading([&] {
    const JsonObject o = JsonObject::parse(body, "request");
    ApiRequest r;
    r.kind = ApiKind::kCompletion;
    read_common(model, o, r);
    r.form = read_form(o, Ordered::parse(body));
    if (!o.has("prompt")) refuse("prompt", "prompt is missing; give text or token ids");
    const Json& prompt = o.json()["prompt"];
    const auto add_text = [&](const std::string& text) {
      // As hadal generate: text continues a document, so it starts after the token that begins one.
      std::vector<int32_t> ids = tokenizer_of(model).encode(text);
      ids.insert(ids.begin(), model.bos);
      r.prompts.push_back(std::move(ids));
      r.prompt_texts.push_back(text);
    };
    const auto add_ids = [&](std::vector<int32_t> ids) {
      for (int32_t id : ids)
        if (id >= model.vocab_size)
          throw ApiError(400,
                         concat("token ", id, " is outside the vocabulary of ", model.vocab_size));
      std::string text;
      if (model.tokenizer)
        for (int32_t id : ids)
          if (model.tokenizer->knows(id)) text += model.tokenizer->bytes(id);
      r.prompts.push_back(std::move(ids));
      r.prompt_texts.push_back(text);
    };
    o.know("prompt");
    if (prompt.is_string()) {
      add_text(o.string("prompt"));
    } else if (prompt.is_array() && !prompt.empty() && prompt[0].is_number()) {
      add_ids(ids_of(o.integers("prompt")));
    } else if (prompt.is_array() && !prompt.empty()) {
      for (const Json& one : prompt) {
        if (one.is_string()) {
          add_text(one.get<std::string>());
        } else if (one.is_array()) {
          const JsonObject list(Json{{"prompt", one}}, "request");
          add_ids(ids_of(list.integers("prompt")));
        } else {
          refuse("prompt", "prompt is a list of something else than text or token ids");
        }
      }
    } else {
      refuse("prompt", "prompt must be text, a list of texts, token ids, or a list of them");
    }
    if (static_cast<int64_t>(r.prompts.size()) * r.n > model.max_choices)
      refuse("n", concat("prompts times n is over ", model.max_choices));
    read_length(model, o, "max_tokens", 16, r);
    if (o.has("logprobs")) r.params.num_logprobs = integer_in(o, "logprobs", 0, 0, kMaxLogprobs);
    r.echo = o.boolean("echo", false);
    if (r.echo && r.stream) refuse("echo", "echo with stream is not supported; leave one out");
    if (r.echo && r.params.num_logprobs >= 0) r.params.num_prompt_logprobs = r.params.num_logprobs;
    refuse_unless(o, "best_of", {Json(r.n)}, "best_of is supported only where it equals n");
    refuse_unless(o, "suffix", {Json("")},
                  "suffix is not supported; write the model's own fill-in-the-middle prompt");
    o.check_no_unknown();
    return r;
  });
}

std::vector<int32_t> parse_tokenize(const ModelInfo& model, const std::string& body) {
  return reading([&] {
    const JsonObject o = JsonObject::parse(body, "request");
    o.know("model");
    if (o.has("messages")) {
      ApiRequest r;
      io::Chat chat = read_chat(o, body).chat;
      chat.add_generation_prompt = o.boolean("add_generation_prompt", true);
      read_thinking(model, o, chat);
      render(model, chat, r);
      o.check_no_unknown();
      return r.prompts[0];
    }
    std::vector<int32_t> ids = tokenizer_of(model).encode(o.string("prompt"));
    if (o.boolean("add_special_tokens", true)) ids.insert(ids.begin(), model.bos);
    o.check_no_unknown();
    return ids;
  });
}

std::vector<int32_t> parse_detokenize(const ModelInfo& model, const std::string& body) {
  return reading([&] {
    const JsonObject o = JsonObject::parse(body, "request");
    o.know("model");
    std::vector<int32_t> ids = ids_of(o.integers("tokens"));
    for (int32_t id : ids)
      if (!tokenizer_of(model).knows(id))
        throw ApiError(400, concat("token ", id, " is not in the tokenizer"), "", "tokens");
    o.check_no_unknown();
    return ids;
  });
}

namespace {

// The text under a key of some part of `input`, or the fallback where there is none.
std::string text_in(const Ordered& part, const char* key, const char* fallback) {
  if (!part.contains(key)) return fallback;
  if (!part[key].is_string()) refuse("input", concat(key, " in input must be a string"));
  return part[key].get<std::string>();
}

// One item of `input` to the message it stands for. Items of one call may follow each other.
void add_item(const Ordered& item, Ordered& messages) {
  const std::string type = text_in(item, "type", "message");
  if (type == "function_call") {
    const Ordered call = {
        {"type", "function"},
        {"function",
         {{"name", text_in(item, "name", "")}, {"arguments", text_in(item, "arguments", "")}}}};
    if (!messages.empty() && messages.back().contains("tool_calls"))
      messages.back()["tool_calls"].push_back(call);
    else
      messages.push_back({{"role", "assistant"}, {"tool_calls", Ordered::array({call})}});
    return;
  }
  if (type == "function_call_output") {
    messages.push_back({{"role", "tool"}, {"content", text_in(item, "output", "")}});
    return;
  }
  if (type == "reasoning") return;  // of earlier turns: no template keeps it
  if (type != "message") refuse("input", concat("input of type ", type, " is not supported"));
  Ordered message = {{"role", text_in(item, "role", "user")}};
  const Ordered content = item.contains("content") ? item["content"] : Ordered();
  if (!content.is_array()) {
    message["content"] = content;
  } else {
    std::string text;
    for (const Ordered& part : content) {
      const std::string kind = part.is_object() ? text_in(part, "type", "") : "";
      if (kind != "input_text" && kind != "output_text" && kind != "text")
        refuse("input", concat("content of type ", kind, " is not supported; only text is"));
      text += text_in(part, "text", "");
    }
    message["content"] = text;
  }
  messages.push_back(message);
}

// Functions are written flat here, and nested in chats.
Ordered chat_tools(const Ordered& tools) {
  if (!tools.is_array()) refuse("tools", "tools is no list");
  Ordered list = Ordered::array();
  for (const Ordered& tool : tools) {
    if (!tool.is_object() || tool.value("type", Ordered()) != "function")
      refuse("tools", "only tools of type function are supported");
    Ordered function = tool;
    function.erase("type");
    function.erase("strict");
    list.push_back({{"type", "function"}, {"function", function}});
  }
  return list;
}

}  // namespace

ApiRequest parse_response(const ModelInfo& model, const std::string& body) {
  return reading([&] {
    const JsonObject o = JsonObject::parse(body, "request");
    const Ordered original = Ordered::parse(body);
    template_of(model);
    ApiRequest r;
    r.kind = ApiKind::kResponse;
    read_common(model, o, r);
    if (r.n != 1) refuse("n", "a response has one choice; leave n out");
    if (r.return_token_ids)
      refuse("return_token_ids",
             "a response has no place for token ids; leave return_token_ids out");
    Ordered messages = Ordered::array();
    r.instructions = o.string("instructions", "");
    if (!r.instructions.empty())
      messages.push_back({{"role", "system"}, {"content", r.instructions}});
    o.know("input");
    if (!o.has("input")) refuse("input", "input is missing; give text or a list of items");
    const Ordered& input = original["input"];
    if (input.is_string()) {
      messages.push_back({{"role", "user"}, {"content", input}});
    } else if (input.is_array()) {
      for (const Ordered& item : input) {
        if (!item.is_object()) refuse("input", "input is a list of something else than items");
        add_item(item, messages);
      }
    } else {
      refuse("input", "input must be text or a list of items");
    }
    Ordered chat_body = {{"messages", messages}};
    for (const char* key : {"tool_choice", "parallel_tool_calls"})
      if (original.contains(key)) chat_body[key] = original[key];
    if (o.has("tools")) chat_body["tools"] = chat_tools(original["tools"]);
    for (const char* key : {"tools", "tool_choice", "parallel_tool_calls"}) o.know(key);
    const std::string chat_text = chat_body.dump();
    AskedChat asked = read_chat(JsonObject::parse(chat_text, "request"), chat_text);
    read_thinking(model, o, asked.chat);
    render(model, asked.chat, r);
    r.form = read_text_format(o, original);
    hold(model, asked, r);
    read_length(model, o, "max_output_tokens", INT64_MAX, r);
    if (o.has("tools")) r.tools_text = original["tools"].dump();
    if (o.has("tool_choice")) r.tool_choice_text = original["tool_choice"].dump();
    if (o.has("text") && original["text"].contains("format"))
      r.format_text = original["text"]["format"].dump();
    r.metadata = o.has("metadata") ? o.json()["metadata"].dump() : "{}";
    // Stateless: nothing is kept between requests, so nothing can be referred to.
    refuse_unless(o, "previous_response_id", {},
                  "previous_response_id is not supported: no response is kept; send the whole "
                  "conversation as input");
    refuse_unless(o, "conversation", {}, "conversation is not supported: nothing is kept");
    refuse_unless(o, "background", {false}, "background is not supported; leave it out");
    refuse_unless(o, "include", {Json::array()}, "include is not supported; leave it out");
    refuse_unless(o, "truncation", {"disabled"}, "truncation of auto is not supported");
    for (const char* key : {"reasoning", "prompt", "max_tool_calls", "top_logprobs"})
      refuse_unless(o, key, {}, concat(key, " is not supported; leave it out"));
    o.check_no_unknown();
    return r;
  });
}

}  // namespace hadal::server
