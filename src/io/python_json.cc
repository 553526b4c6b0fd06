// JSON text as Python's json module writes it.
// SPDX-License-Identifier: Apache-2.0
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/chat_template.h"
#include "io/json.h"

namespace hadal::io {
namespace {

using Ordered = nlohmann::ordered_json;

// Python's repr of a float: the shortest digits, with an exponent from 1e16 on and below 1e-4.
std::string python_float(double value) {
  char buffer[32];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string text(buffer, end);
  const size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return text;
  std::string digits = text.substr(0, e);
  const bool negative = digits[0] == '-';
  if (negative) digits.erase(0, 1);
  if (digits.size() > 1) digits.erase(1, 1);  // the point
  const auto point = static_cast<size_t>(std::max(exponent, 0)) + 1;
  if (exponent < 0) digits.insert(0, static_cast<size_t>(-exponent), '0');
  if (digits.size() < point) digits.append(point - digits.size(), '0');
  digits.insert(point, 1, '.');
  if (digits.back() == '.') digits += '0';
  return negative ? concat("-", digits) : digits;
}

void write(const Ordered& value, std::string& out) {
  if (value.is_object()) {
    out += '{';
    for (bool first = true; const auto& [key, member] : value.items()) {
      if (!first) out += ", ";
      first = false;
      out += Ordered(key).dump();
      out += ": ";
      write(member, out);
    }
    out += '}';
  } else if (value.is_array()) {
    out += '[';
    for (bool first = true; const Ordered& item : value) {
      if (!first) out += ", ";
      first = false;
      write(item, out);
    }
    out += ']';
  } else if (value.is_number_float()) {
    out += python_float(value.get<double>());
  } else {
    out += value.dump();
  }
}

}  // namespace

std::string python_json(std::string_view json, const std::string& where) {
  parse_json(json, where);  // for its limits and its errors
  std::string out;
  write(Ordered::parse(json.begin(), json.end()), out);
  return out;
}

}  // namespace hadal::io
