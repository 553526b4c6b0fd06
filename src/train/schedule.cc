// Schedule: its value, reading and writing.
// SPDX-License-Identifier: Apache-2.0
#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <utility>

#include "core/check.h"

namespace hadal::train {
namespace {

constexpr double kMostUntil = 1e18;

int64_t in_unit(Moment moment, Schedule::Unit unit) {
  return unit == Schedule::Unit::kSteps ? moment.steps : moment.tokens;
}

double check_value(const std::string& where, const char* key, double value, double low,
                   double high) {
  HADAL_CHECK(std::isfinite(value) && value >= low && value <= high, where, ": ", key, " is ",
              value, "; allowed: ", low, " to ", high);
  return value;
}

Schedule::Shape read_shape(const io::JsonObject& o) {
  const std::string name = o.string("shape", "constant");
  if (name == "constant") return Schedule::Shape::kConstant;
  if (name == "linear") return Schedule::Shape::kLinear;
  if (name == "cosine") return Schedule::Shape::kCosine;
  HADAL_FAIL(o.where(), ": shape is \"", name, "\"; allowed: constant, linear, cosine");
}

Schedule::Piece read_piece(const io::JsonObject& o, bool is_last, double low, double high) {
  Schedule::Piece piece;
  piece.shape = read_shape(o);
  piece.keeps = !o.has("to");
  if (!piece.keeps) piece.to = check_value(o.where(), "to", o.number("to"), low, high);
  const bool steps = o.has("until_steps"), tokens = o.has("until_tokens");
  o.know("until_steps");
  o.know("until_tokens");
  o.check_no_unknown();
  HADAL_CHECK(!(steps && tokens), o.where(), " has until_steps and until_tokens; give one of them");
  HADAL_CHECK(steps || tokens || is_last, o.where(),
              " has no end; give until_steps or until_tokens");
  const bool moves = piece.shape != Schedule::Shape::kConstant;
  HADAL_CHECK(!moves || !piece.keeps, o.where(), " has no value to arrive at; give to");
  HADAL_CHECK(!moves || steps || tokens, o.where(),
              " has no end to arrive at; give until_steps or until_tokens");
  if (!steps && !tokens) {
    piece.until = Schedule::kForever;
    return piece;
  }
  piece.unit = steps ? Schedule::Unit::kSteps : Schedule::Unit::kTokens;
  const char* key = steps ? "until_steps" : "until_tokens";
  piece.until = static_cast<int64_t>(check_value(o.where(), key, o.number(key), 1, kMostUntil));
  return piece;
}

// Pieces end one after the other, and one that moves knows where it begins.
void check_order(const std::string& where, const std::vector<Schedule::Piece>& pieces) {
  for (size_t i = 1; i < pieces.size(); ++i) {
    const Schedule::Piece &before = pieces[i - 1], &piece = pieces[i];
    const bool same_unit = before.unit == piece.unit;
    if (piece.until == Schedule::kForever) continue;
    HADAL_CHECK(same_unit || piece.shape == Schedule::Shape::kConstant, where, ": piece ", i + 1,
                " moves and is measured in other units than the piece before it; measure both in "
                "steps or both in tokens");
    HADAL_CHECK(!same_unit || piece.until > before.until, where, ": piece ", i + 1, " ends at ",
                piece.until, ", not after the piece before it, which ends at ", before.until);
  }
}

}  // namespace

double Schedule::at(Moment before, Moment after) const {
  double value = start;
  int64_t begin = 0;
  for (const Piece& piece : pieces) {
    const double end_value = piece.keeps ? value : piece.to;
    if (piece.until != kForever && in_unit(before, piece.unit) >= piece.until) {
      value = end_value;
      begin = piece.until;
      continue;
    }
    if (piece.shape == Shape::kConstant) return end_value;
    const auto done =
        static_cast<double>(std::min(in_unit(after, piece.unit), piece.until) - begin);
    const auto length = static_cast<double>(piece.until - begin);
    if (piece.shape == Shape::kLinear) return value + (piece.to - value) * done / length;
    return piece.to +
           0.5 * (value - piece.to) * (1.0 + std::cos(std::numbers::pi * (done / length)));
  }
  return value;
}

double Schedule::largest() const {
  double value = start;
  for (const Piece& piece : pieces)
    if (!piece.keeps) value = std::max(value, piece.to);
  return value;
}

Schedule warmup_cosine(const WarmupCosine& s, int64_t num_steps) {
  const int64_t begin = s.warmup_steps + s.constant_steps;
  Schedule schedule(s.warmup_steps > 0 ? 0.0 : s.peak);
  schedule.pieces = {
      {.shape = Schedule::Shape::kLinear, .to = s.peak, .until = s.warmup_steps},
      {.shape = Schedule::Shape::kConstant, .to = s.peak, .until = begin},
      {.shape = Schedule::Shape::kCosine, .to = s.final, .until = num_steps},
  };
  // Without the pieces that have no steps.
  int64_t end = 0;
  std::erase_if(schedule.pieces, [&](const Schedule::Piece& piece) {
    return piece.until <= std::exchange(end, std::max(end, piece.until));
  });
  return schedule;
}

Schedule read_schedule(const io::JsonObject& object, const char* key, double low, double high) {
  Schedule schedule;
  if (!object.json().at(key).is_object()) {
    schedule.start = check_value(object.where(), key, object.number(key), low, high);
    return schedule;
  }
  const io::JsonObject o = object.object(key);
  schedule.start = check_value(o.where(), "start", o.number("start"), low, high);
  const std::vector<io::JsonObject> pieces = o.objects("pieces");
  for (size_t i = 0; i < pieces.size(); ++i)
    schedule.pieces.push_back(read_piece(pieces[i], i + 1 == pieces.size(), low, high));
  o.check_no_unknown();
  check_order(o.where(), schedule.pieces);
  return schedule;
}

io::Json to_json(const Schedule& schedule) {
  if (schedule.pieces.empty()) return schedule.start;
  io::Json pieces = io::Json::array();
  for (const Schedule::Piece& piece : schedule.pieces) {
    io::Json json = io::Json::object();
    if (piece.shape != Schedule::Shape::kConstant)
      json["shape"] = piece.shape == Schedule::Shape::kLinear ? "linear" : "cosine";
    if (!piece.keeps) json["to"] = piece.to;
    if (piece.until != Schedule::kForever)
      json[piece.unit == Schedule::Unit::kSteps ? "until_steps" : "until_tokens"] = piece.until;
    pieces.push_back(std::move(json));
  }
  return {{"start", schedule.start}, {"pieces", std::move(pieces)}};
}

}  // namespace hadal::train
