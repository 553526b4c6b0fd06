// JSON: parsing with errors that name file, line and column, and typed reading of objects.
//
// An object is read through JsonObject, whose getters name the key in errors and note which keys
// the reader knows; check_no_unknown() then refuses every other key. null counts as absent.
// nlohmann's types are complete only where nlohmann/json.hpp is included.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace hadal::io {

using Json = nlohmann::json;

// `where` names the source in errors. Duplicate keys and more than 100 levels are errors.
Json parse_json(std::string_view text, const std::string& where);
Json read_json(const std::string& path);

// Indented by two, keys in alphabetic order, ending with a newline.
std::string to_text(const Json& value);
// The old file stays until the new one is complete on disk.
void write_json(const std::string& path, const Json& value);

// Applies "train.steps=100": the value is JSON, or else a string. Missing objects are made.
void set_by_path(Json& root, const std::string& assignment);

class JsonObject {
 public:
  // An Error unless `value` is an object. `where` leads each message: "config.json".
  JsonObject(Json value, std::string where);
  static JsonObject read(const std::string& path);
  static JsonObject parse(std::string_view text, const std::string& where);

  const std::string& where() const { return where_; }
  const Json& json() const { return *value_; }
  bool has(std::string_view key) const;      // present and not null
  bool is_null(std::string_view key) const;  // present and null

  // Required; the two-argument forms give the fallback where the key is absent.
  int64_t integer(std::string_view key) const;  // 3 or 3e4
  int64_t integer(std::string_view key, int64_t fallback) const;
  double number(std::string_view key) const;
  double number(std::string_view key, double fallback) const;
  bool boolean(std::string_view key) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string string(std::string_view key) const;
  std::string string(std::string_view key, const std::string& fallback) const;
  std::vector<int64_t> integers(std::string_view key) const;  // a list, or one integer
  std::vector<double> numbers(std::string_view key) const;    // a list, or one number
  std::vector<std::string> strings(std::string_view key) const;
  JsonObject object(std::string_view key) const;
  std::vector<JsonObject> objects(std::string_view key) const;  // a list of objects

  // Marks keys as known without reading them.
  void know(std::string_view key) const;
  std::vector<std::string> unknown() const;
  // Throws for the first key that no getter asked for, and suggests the nearest that one did.
  void check_no_unknown() const;

 private:
  JsonObject(std::shared_ptr<const Json> root, const Json* value, std::string where);
  const Json* find(std::string_view key) const;
  const Json& at(std::string_view key) const;
  [[noreturn]] void wrong_type(std::string_view key, const Json& value, const char* needed) const;
  int64_t to_integer(std::string_view key, const Json& value) const;

  std::shared_ptr<const Json> root_;  // keeps value_ alive
  const Json* value_;
  std::string where_;
  mutable std::set<std::string, std::less<>> known_;
};

// The candidate with the smallest edit distance to `word`; "" if there is none.
std::string nearest_word(std::string_view word,
                         const std::set<std::string, std::less<>>& candidates);

}  // namespace hadal::io
