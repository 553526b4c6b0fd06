// Forms as JSON schemas, regular expressions, EBNF and XGrammar's structural tags.
// SPDX-License-Identifier: Apache-2.0
#include "server/api_form.h"

#include "core/check.h"
#include "io/chat_tokens.h"
#include "server/json_schema.h"

namespace hadal::server {
namespace {

using io::JsonObject;
using Kind = serve::GrammarSpec::Kind;
using Ordered = nlohmann::ordered_json;

constexpr size_t kMaxFormBytes = 256 << 10;

[[noreturn]] void refuse(const std::string& param, const std::string& message) {
  throw ApiError(400, message, "", param);
}

serve::GrammarSpec make(Kind kind, std::string text, const std::string& key) {
  if (text.size() > kMaxFormBytes)
    refuse(key,
           concat(key, " has ", text.size(), " bytes; at most ", kMaxFormBytes, " are compiled"));
  return {.kind = kind, .text = std::move(text)};
}

void check_schema(const Ordered& schema, const std::string& key) {
  const std::string why = why_not_held(schema);
  if (!why.empty()) refuse(key, concat(key, " ", why));
}

// A schema: an object or a boolean, which guided_json may hold as text.
serve::GrammarSpec schema_of(Ordered schema, const std::string& key) {
  if (schema.is_string()) schema = Ordered::parse(schema.get<std::string>(), nullptr, false);
  if (!schema.is_object() && !schema.is_boolean())
    refuse(key, concat(key, " is no JSON schema; give an object"));
  check_schema(schema, key);
  return make(Kind::kSchema, schema.dump(), key);
}

std::string text_of(const Ordered& value, const std::string& key) {
  if (!value.is_string() || value.get_ref<const std::string&>().empty())
    refuse(key, concat(key, " must be text that is not empty"));
  return value.get<std::string>();
}

serve::GrammarSpec choice_of(const Ordered& list, const std::string& key) {
  if (!list.is_array() || list.empty()) refuse(key, concat(key, " must be a list of texts"));
  Ordered elements = Ordered::array();
  for (const Ordered& one : list)
    elements.push_back({{"type", "const_string"}, {"value", text_of(one, key)}});
  const Ordered tag = {{"type", "structural_tag"},
                       {"format", {{"type", "or"}, {"elements", elements}}}};
  return make(Kind::kStructuralTag, tag.dump(), key);
}

serve::GrammarSpec tag_of(Ordered tag, const std::string& key) {
  if (tag.is_string()) tag = Ordered::parse(tag.get<std::string>(), nullptr, false);
  if (!tag.is_object() || !tag.contains("format"))
    refuse(key, concat(key,
                       " has no \"format\"; give {\"type\": \"structural_tag\", \"format\": "
                       "...}"));
  tag["type"] = "structural_tag";
  return make(Kind::kStructuralTag, tag.dump(), key);
}

// {"type": ...} of response_format and of text.format, whose schema stands in `holder`.
serve::GrammarSpec format_of(const Ordered& format, const Ordered& holder, const std::string& key) {
  const std::string type = format.contains("type") && format["type"].is_string()
                               ? format["type"].get<std::string>()
                               : std::string();
  if (type == "text") return {};
  if (type == "json_object") return {.kind = Kind::kJson, .text = ""};
  if (type == "json_schema") {
    if (!holder.is_object() || !holder.contains("schema"))
      refuse(key, concat(key, " of type json_schema has no schema"));
    return schema_of(holder["schema"], key);
  }
  if (type == "structural_tag") return tag_of(format, key);
  refuse(key, concat(key, " of type \"", type,
                     "\" is not known; allowed: text, json_object, json_schema, structural_tag"));
}

}  // namespace

serve::GrammarSpec read_form(const JsonObject& o, const Ordered& body) {
  serve::GrammarSpec form;
  std::string first;
  const auto take = [&](const std::string& key, serve::GrammarSpec spec) {
    if (!spec.asks()) return;
    if (form.asks())
      refuse(key, concat(first, " and ", key, " both give the form of the reply; leave one out"));
    form = std::move(spec);
    first = key;
  };
  const auto read = [&](const char* key, const auto& make_spec) {
    o.know(key);
    if (o.has(key)) take(key, make_spec(body[key], std::string(key)));
  };
  read("response_format", [](const Ordered& v, const std::string& key) {
    if (!v.is_object()) refuse(key, "response_format is no object");
    return format_of(v, v.contains("json_schema") ? v["json_schema"] : Ordered(), key);
  });
  const auto regex = [](const Ordered& v, const std::string& key) {
    return make(Kind::kRegex, text_of(v, key), key);
  };
  const auto ebnf = [](const Ordered& v, const std::string& key) {
    return make(Kind::kEbnf, text_of(v, key), key);
  };
  read("guided_json", schema_of);
  read("guided_regex", regex);
  read("guided_choice", choice_of);
  read("guided_grammar", ebnf);
  o.know("structured_outputs");
  if (o.has("structured_outputs")) {
    const Ordered& forms = body["structured_outputs"];
    if (!forms.is_object()) refuse("structured_outputs", "structured_outputs is no object");
    for (const auto& [name, value] : forms.items()) {
      const std::string key = "structured_outputs." + name;
      if (value.is_null()) continue;
      if (name == "json")
        take(key, schema_of(value, key));
      else if (name == "regex")
        take(key, regex(value, key));
      else if (name == "choice")
        take(key, choice_of(value, key));
      else if (name == "grammar")
        take(key, ebnf(value, key));
      else if (name == "json_object" && value == true)
        take(key, {.kind = Kind::kJson, .text = ""});
      else if (name == "structural_tag")
        take(key, tag_of(value, key));
      else
        refuse("structured_outputs",
               concat(key,
                      " is not known; allowed: json, regex, choice, grammar, json_object: "
                      "true, structural_tag"));
    }
  }
  return form;
}

serve::GrammarSpec read_text_format(const JsonObject& o, const Ordered& body) {
  o.know("text");
  if (!o.has("text")) return {};
  const JsonObject text = o.object("text");
  text.know("format");
  text.check_no_unknown();
  if (!text.has("format")) return {};
  const Ordered& format = body["text"]["format"];
  if (!format.is_object()) refuse("text", "text.format is no object");
  return format_of(format, format, "text.format");
}

ToolChoice read_tool_choice(const JsonObject& o) {
  o.know("tool_choice");
  if (!o.has("tool_choice")) return {};
  const io::Json& value = o.json()["tool_choice"];
  using Choice = ToolChoice::Kind;
  if (value == "auto") return {};
  if (value == "none") return {.kind = Choice::kNone, .name = ""};
  if (value == "required") return {.kind = Choice::kRequired, .name = ""};
  if (value.is_object() && value.value("type", io::Json()) == "function") {
    // Chats nest the name, responses do not.
    const io::Json function = value.contains("function") ? value["function"] : value;
    if (function.is_object() && function.contains("name") && function["name"].is_string())
      return {.kind = Choice::kNamed, .name = function["name"].get<std::string>()};
  }
  refuse("tool_choice",
         "tool_choice must be auto, none, required or {\"type\": \"function\", \"function\": "
         "{\"name\": ...}}");
}

serve::GrammarSpec tool_calls_form(io::ChatFamily family, const io::Tokenizer& tokenizer,
                                   const std::vector<std::string>& tools, bool one) {
  using namespace io::chat_tokens;
  const auto marker = [&](std::string_view text) -> Ordered {
    if (const auto id = tokenizer.added_id(text)) return {{"type", "token"}, {"token", *id}};
    return {{"type", "const_string"}, {"value", text}};
  };
  const auto literal = [](const std::string& text) -> Ordered {
    return {{"type", "const_string"}, {"value", text}};
  };
  const auto sequence = [](Ordered elements) -> Ordered {
    return {{"type", "sequence"}, {"elements", std::move(elements)}};
  };
  const bool fenced = family != io::ChatFamily::kV31;
  Ordered calls = Ordered::array();
  for (const std::string& tool : tools) {
    const Ordered function = Ordered::parse(tool)["function"];
    const Ordered schema = function.contains("parameters") && !function["parameters"].is_null()
                               ? function["parameters"]
                               : Ordered{{"type", "object"}};
    check_schema(schema, "tools");
    const Ordered arguments = {{"type", "json_schema"}, {"json_schema", schema}};
    const std::string name = function["name"].get<std::string>();
    calls.push_back(fenced ? sequence({marker(kCall), literal("function"), marker(kSep),
                                       literal(name + "\n```json\n"), arguments, literal("\n```"),
                                       marker(kCallEnd)})
                           : sequence({marker(kCall), literal(name), marker(kSep), arguments,
                                       marker(kCallEnd)}));
  }
  const Ordered call = {{"type", "or"}, {"elements", calls}};
  Ordered elements = {marker(kCalls), call};
  if (!one) {
    const Ordered more = fenced ? sequence({literal("\n"), call}) : call;
    elements.push_back({{"type", "star"}, {"content", more}});
  }
  elements.push_back(marker(kCallsEnd));
  const Ordered tag = {{"type", "structural_tag"}, {"format", sequence(elements)}};
  return make(Kind::kStructuralTag, tag.dump(), "tools");
}

}  // namespace hadal::server
