// Walks a JSON schema for keywords that are not honoured, and for alternatives that overlap.
// SPDX-License-Identifier: Apache-2.0
#include "server/json_schema.h"

#include <algorithm>
#include <vector>

#include "core/check.h"

namespace hadal::server {
namespace {

using Ordered = nlohmann::ordered_json;

// The schema that a chain of local references ends at; an empty one where it ends nowhere.
Ordered resolve(const Ordered& root, Ordered schema) {
  for (int i = 0; i < 16 && schema.is_object() && schema.contains("$ref"); ++i) {
    if (!schema["$ref"].is_string()) return {};
    const std::string ref = schema["$ref"].get<std::string>();
    if (ref.empty() || ref[0] != '#') return {};
    try {
      const Ordered::json_pointer at(ref.substr(1));
      if (!root.contains(at)) return {};
      schema = root.at(at);
    } catch (const Ordered::exception&) {
      return {};
    }
  }
  return schema;
}

// The values that a schema allows, if it names them.
std::vector<Ordered> values_of(const Ordered& schema) {
  if (schema.contains("const")) return {schema["const"]};
  if (schema.contains("enum") && schema["enum"].is_array())
    return {schema["enum"].begin(), schema["enum"].end()};
  return {};
}

std::vector<std::string> types_of(const Ordered& schema) {
  std::vector<std::string> types;
  const auto add = [&](const Ordered& type) {
    if (!type.is_string()) return;
    const std::string name = type.get<std::string>();
    types.push_back(name == "integer" ? "number" : name);
  };
  if (schema.contains("type")) {
    if (schema["type"].is_array())
      for (const Ordered& type : schema["type"]) add(type);
    else
      add(schema["type"]);
    return types;
  }
  for (const Ordered& value : values_of(schema))
    types.emplace_back(value.type_name());  // null, boolean, string, number, array, object
  return types;
}

// Both lists name what is allowed, and nothing is in both.
template <class T>
bool disjoint(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.empty() || b.empty()) return false;
  return std::none_of(a.begin(), a.end(),
                      [&](const T& one) { return std::find(b.begin(), b.end(), one) != b.end(); });
}

bool requires_property(const Ordered& schema, const std::string& name) {
  if (!schema.contains("required") || !schema["required"].is_array()) return false;
  const Ordered& list = schema["required"];
  return std::find(list.begin(), list.end(), Ordered(name)) != list.end();
}

// No value fits both: by type, by the values they name, or by those of a property of both.
bool exclude_each_other(const Ordered& root, const Ordered& one, const Ordered& other) {
  const Ordered a = resolve(root, one), b = resolve(root, other);
  if (!a.is_object() || !b.is_object()) return false;
  if (disjoint(types_of(a), types_of(b)) || disjoint(values_of(a), values_of(b))) return true;
  // NOTE: a value that is no object fits whatever `properties` says.
  const std::vector<std::string> object = {"object"};
  if (types_of(a) != object || types_of(b) != object) return false;
  if (!a.contains("properties") || !b.contains("properties") || !a["properties"].is_object() ||
      !b["properties"].is_object())
    return false;
  for (const auto& [name, schema] : a["properties"].items()) {
    if (!b["properties"].contains(name) || !requires_property(a, name) ||
        !requires_property(b, name))
      continue;
    if (exclude_each_other(root, schema, b["properties"][name])) return true;
  }
  return false;
}

std::string walk(const Ordered& root, const Ordered& schema) {
  if (schema.is_array())
    for (const Ordered& one : schema)
      if (std::string why = walk(root, one); !why.empty()) return why;
  if (!schema.is_object()) return "";
  for (const auto& [name, value] : schema.items()) {
    for (const char* ignored :
         {"not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains",
          "dependentRequired", "dependentSchemas", "dependencies"})
      if (name == ignored && value != false)
        return concat("has ", name, ", to which no reply can be held; leave it out");
    if (name == "oneOf" && value.is_array())
      for (size_t i = 0; i < value.size(); ++i)
        for (size_t j = 0; j < i; ++j)
          if (!exclude_each_other(root, value[j], value[i]))
            return concat("has a oneOf whose alternatives ", j, " and ", i,
                          " may both hold; use anyOf, or give them different types or a required "
                          "property with different constants");
    const bool is_map = name == "properties" || name == "patternProperties" || name == "$defs" ||
                        name == "definitions";
    const bool is_data =
        name == "enum" || name == "const" || name == "default" || name == "examples";
    std::string why;
    if (is_map && value.is_object()) {
      for (const auto& [property, inner] : value.items())
        if (why.empty()) why = walk(root, inner);
    } else if (!is_data) {
      why = walk(root, value);
    }
    if (!why.empty()) return why;
  }
  return "";
}

}  // namespace

std::string why_not_held(const Ordered& schema) { return walk(schema, schema); }

}  // namespace hadal::server
