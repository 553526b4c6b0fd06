// Parsing, typed getters and writing behind io/json.h.
// SPDX-License-Identifier: Apache-2.0
#include "io/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/check.h"
#include "io/atomic.h"

namespace hadal::io {

namespace {

constexpr int kMaxDepth = 100;
constexpr size_t kMaxJsonBytes = size_t{1} << 30;

// "line 3, column 14" of a byte offset.
std::string place_of(std::string_view text, size_t offset) {
  offset = std::min(offset, text.size());
  const std::string_view before = text.substr(0, offset);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const size_t start = before.rfind('\n') == before.npos ? 0 : before.rfind('\n') + 1;
  return concat("line ", line, ", column ", std::max<size_t>(offset - start, 1));
}

// What is left of the library's message after its own prefix and position; ASCII only.
std::string reason_of(const std::exception& error) {
  std::string reason = error.what();
  for (const char* mark : {" - ", "] "}) {
    const size_t at = reason.find(mark);
    if (at == reason.npos) continue;
    reason = reason.substr(at + std::string_view(mark).size());
    break;
  }
  for (char& c : reason)
    if (c < ' ' || c > '~') c = '?';
  return reason;
}

// The value as an error message shows it.
std::string brief(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return concat("a list of ", value.size());
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0u : 1u)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

std::string nearest_word(std::string_view word,
                         const std::set<std::string, std::less<>>& candidates) {
  std::string best;
  size_t best_distance = static_cast<size_t>(-1);
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

Json parse_json(std::string_view text, const std::string& where) {
  std::vector<std::set<std::string>> keys;  // of the open objects
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start)
      HADAL_CHECK(depth < kMaxDepth, where, ": JSON is nested more than ", kMaxDepth,
                  " levels deep; flatten it");
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key) {
      const auto& name = value.get_ref<const std::string&>();
      HADAL_CHECK(keys.back().insert(name).second, where, ": the key ", brief(value),
                  " stands twice in one object; remove one");
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::parse_error& error) {
    HADAL_FAIL(where, ", ", place_of(text, error.byte), ": invalid JSON, ", reason_of(error),
               "; correct it there");
  } catch (const Json::exception& error) {
    HADAL_FAIL(where, ": invalid JSON, ", reason_of(error), "; correct it");
  }
}

Json read_json(const std::string& path) { return parse_json(read_file(path, kMaxJsonBytes), path); }

std::string to_text(const Json& value) {
  return value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void write_json(const std::string& path, const Json& value) {
  write_file_atomic(path, to_text(value));
}

void set_by_path(Json& root, const std::string& assignment) {
  const size_t equals = assignment.find('=');
  HADAL_CHECK(equals != assignment.npos && equals > 0, "--set ", assignment,
              ": write it as key=value, for example train.steps=100");
  const std::string path = assignment.substr(0, equals), text = assignment.substr(equals + 1);
  Json* at = &root;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const std::string key = path.substr(begin, end - begin);
    HADAL_CHECK(!key.empty(), "--set ", assignment, ": an empty key; write train.steps=100");
    HADAL_CHECK(at->is_object() || at->is_null(), "--set ", assignment, ": ", path.substr(0, begin),
                " leads to ", brief(*at), ", which has no keys");
    at = &(*at)[key];
    begin = end + 1;
  }
  const Json value = Json::parse(text, nullptr, false);
  *at = value.is_discarded() ? Json(text) : value;
}

JsonObject::JsonObject(std::shared_ptr<const Json> root, const Json* value, std::string where)
    : root_(std::move(root)), value_(value), where_(std::move(where)) {
  HADAL_CHECK(value_->is_object(), where_, ": ", brief(*value_), " where an object { } is needed");
}

JsonObject::JsonObject(Json value, std::string where)
    : root_(std::make_shared<const Json>(std::move(value))),
      value_(root_.get()),
      where_(std::move(where)) {
  HADAL_CHECK(value_->is_object(), where_, ": ", brief(*value_), " where an object { } is needed");
}

JsonObject JsonObject::read(const std::string& path) { return {read_json(path), path}; }

JsonObject JsonObject::parse(std::string_view text, const std::string& where) {
  return {parse_json(text, where), where};
}

const Json* JsonObject::find(std::string_view key) const {
  know(key);
  const auto it = value_->find(key);
  return it == value_->end() ? nullptr : &*it;
}

const Json& JsonObject::at(std::string_view key) const {
  const Json* value = find(key);
  HADAL_CHECK(value != nullptr, where_, ": ", key, " is missing; add it");
  return *value;
}

bool JsonObject::has(std::string_view key) const {
  const Json* value = find(key);
  return value != nullptr && !value->is_null();
}

bool JsonObject::is_null(std::string_view key) const {
  const Json* value = find(key);
  return value != nullptr && value->is_null();
}

void JsonObject::wrong_type(std::string_view key, const Json& value, const char* needed) const {
  HADAL_FAIL(where_, ": ", key, " is ", brief(value), "; ", needed, " is needed");
}

int64_t JsonObject::to_integer(std::string_view key, const Json& value) const {
  constexpr const char* kNeeded = "an integer between -2^63 and 2^63 - 1";
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) wrong_type(key, value, kNeeded);
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (std::abs(number) <= 0x1p53 && number == std::floor(number))
      return static_cast<int64_t>(number);
    wrong_type(key, value, kNeeded);
  }
  wrong_type(key, value, "an integer");
}

int64_t JsonObject::integer(std::string_view key) const { return to_integer(key, at(key)); }

int64_t JsonObject::integer(std::string_view key, int64_t fallback) const {
  return has(key) ? integer(key) : fallback;
}

double JsonObject::number(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_number()) wrong_type(key, value, "a number");
  return value.get<double>();
}

double JsonObject::number(std::string_view key, double fallback) const {
  return has(key) ? number(key) : fallback;
}

bool JsonObject::boolean(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_boolean()) wrong_type(key, value, "true or false");
  return value.get<bool>();
}

bool JsonObject::boolean(std::string_view key, bool fallback) const {
  return has(key) ? boolean(key) : fallback;
}

std::string JsonObject::string(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_string()) wrong_type(key, value, "a string");
  return value.get<std::string>();
}

std::string JsonObject::string(std::string_view key, const std::string& fallback) const {
  return has(key) ? string(key) : fallback;
}

std::vector<int64_t> JsonObject::integers(std::string_view key) const {
  const Json& value = at(key);
  if (value.is_number()) return {to_integer(key, value)};
  if (!value.is_array()) wrong_type(key, value, "a list of integers");
  std::vector<int64_t> list;
  for (const Json& item : value) list.push_back(to_integer(key, item));
  return list;
}

std::vector<double> JsonObject::numbers(std::string_view key) const {
  const Json& value = at(key);
  if (value.is_number()) return {value.get<double>()};
  if (!value.is_array()) wrong_type(key, value, "a list of numbers");
  std::vector<double> list;
  for (const Json& item : value) {
    if (!item.is_number()) wrong_type(key, item, "a number");
    list.push_back(item.get<double>());
  }
  return list;
}

std::vector<std::string> JsonObject::strings(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_array()) wrong_type(key, value, "a list of strings");
  std::vector<std::string> list;
  for (const Json& item : value) {
    if (!item.is_string()) wrong_type(key, item, "a string");
    list.push_back(item.get<std::string>());
  }
  return list;
}

JsonObject JsonObject::object(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_object()) wrong_type(key, value, "an object { }");
  return {root_, &value, concat(where_, ": ", key)};
}

std::vector<JsonObject> JsonObject::objects(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_array()) wrong_type(key, value, "a list of objects");
  std::vector<JsonObject> list;
  for (size_t i = 0; i < value.size(); ++i)
    list.push_back(JsonObject(root_, &value[i], concat(where_, ": ", key, "[", i, "]")));
  return list;
}

void JsonObject::know(std::string_view key) const { known_.emplace(key); }

std::vector<std::string> JsonObject::unknown() const {
  std::vector<std::string> names;
  for (const auto& item : value_->items())
    if (!known_.contains(item.key())) names.push_back(item.key());
  return names;
}

void JsonObject::check_no_unknown() const {
  const std::vector<std::string> names = unknown();
  if (names.empty()) return;
  const std::string name = brief(Json(names[0])), near = nearest_word(names[0], known_);
  HADAL_CHECK(!near.empty(), where_, ": unknown key ", name, "; remove it");
  HADAL_FAIL(where_, ": unknown key ", name, "; did you mean \"", near, "\"?");
}

}  // namespace hadal::io
