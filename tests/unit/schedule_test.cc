// Schedules: values at the corners of every piece, the paper's own, and one sentence a mistake.
// SPDX-License-Identifier: Apache-2.0
#include "train/schedule.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/unit/expect_error.h"

namespace hadal::train {
namespace {

// Step `step` (1-based) of a run in which each step has `tokens` tokens.
double at(const Schedule& s, int64_t step, int64_t tokens = 1) {
  return s.at({.steps = step - 1, .tokens = (step - 1) * tokens},
              {.steps = step, .tokens = step * tokens});
}

Schedule parse(const std::string& text) {
  return read_schedule(io::JsonObject::parse("{\"lr\": " + text + "}", "c.json"), "lr", 0.0, 10.0);
}

TEST(WarmupCosine, Corners) {
  const Schedule s =
      warmup_cosine({.peak = 8.0, .final = 2.0, .warmup_steps = 4, .constant_steps = 10}, 114);
  EXPECT_EQ(at(s, 1), 2.0);
  EXPECT_EQ(at(s, 4), 8.0);
  EXPECT_EQ(at(s, 5), 8.0);
  EXPECT_EQ(at(s, 14), 8.0);
  EXPECT_DOUBLE_EQ(at(s, 64), 5.0);  // half way down
  EXPECT_DOUBLE_EQ(at(s, 39), 2.0 + 3.0 * (1.0 + std::sqrt(0.5)));
  EXPECT_DOUBLE_EQ(at(s, 114), 2.0);
  EXPECT_DOUBLE_EQ(at(s, 200), 2.0);  // past the end
}

TEST(WarmupCosine, RisesThenNeverRisesAgain) {
  const Schedule s =
      warmup_cosine({.peak = 1e-3, .final = 1e-5, .warmup_steps = 7, .constant_steps = 5}, 100);
  for (int64_t step = 2; step <= 100; ++step) {
    const double before = at(s, step - 1), now = at(s, step);
    if (step <= 7) {
      EXPECT_GT(now, before);
    } else if (step <= 12) {
      EXPECT_EQ(now, before);
    } else {
      EXPECT_LT(now, before);
    }
    EXPECT_GT(now, 0.0);
    EXPECT_LE(now, 1e-3);
  }
}

TEST(WarmupCosine, NoWarmupAndNoDecay) {
  const WarmupCosine s{.peak = 1.0, .final = 0.5};
  EXPECT_LT(at(warmup_cosine(s, 10), 1), 1.0);
  EXPECT_GT(at(warmup_cosine(s, 10), 1), 0.95);
  EXPECT_DOUBLE_EQ(at(warmup_cosine(s, 1), 1), 0.5);
  const Schedule constant = warmup_cosine({.peak = 1.0, .final = 0.5, .constant_steps = 10}, 10);
  for (int64_t step = 1; step <= 12; ++step) EXPECT_EQ(at(constant, step), 1.0);
  EXPECT_EQ(at(warmup_cosine({.peak = 1.0, .final = 0.0, .warmup_steps = 100}, 10), 10), 0.1);
}

// The report, 4.2: 2.2e-4 after 2,000 steps, constant to 10 T tokens, cosine to 2.2e-5 over 4.3 T,
// 333 B at that, the last 167 B at 7.3e-6.
TEST(Schedule, TheReportsLearningRate) {
  const Schedule s = parse(R"({"start": 0, "pieces": [
      {"shape": "linear", "to": 2.2e-4, "until_steps": 2000}, {"until_tokens": 10e12},
      {"shape": "cosine", "to": 2.2e-5, "until_tokens": 14.3e12},
      {"until_tokens": 14.633e12}, {"to": 7.3e-6}]})");
  const auto value = [&](int64_t steps, double tokens) {
    const auto t = static_cast<int64_t>(tokens);
    return s.at({.steps = steps, .tokens = t}, {.steps = steps + 1, .tokens = t});
  };
  EXPECT_DOUBLE_EQ(value(0, 0.0), 2.2e-4 / 2000);
  EXPECT_DOUBLE_EQ(value(999, 1e10), 1.1e-4);
  EXPECT_DOUBLE_EQ(value(2000, 2e10), 2.2e-4);
  EXPECT_DOUBLE_EQ(value(100000, 9.99e12), 2.2e-4);
  EXPECT_DOUBLE_EQ(value(200000, 12.15e12), 0.5 * (2.2e-4 + 2.2e-5));
  EXPECT_DOUBLE_EQ(value(220000, 14.3e12), 2.2e-5);
  EXPECT_DOUBLE_EQ(value(225000, 14.632e12), 2.2e-5);
  EXPECT_DOUBLE_EQ(value(226000, 14.633e12), 7.3e-6);
  EXPECT_DOUBLE_EQ(value(230000, 14.8e12), 7.3e-6);
  EXPECT_DOUBLE_EQ(s.largest(), 2.2e-4);
}

TEST(Schedule, JumpsAndStays) {
  const Schedule gamma = parse(R"({"start": 1e-3, "pieces": [{"until_tokens": 100}, {"to": 0}]})");
  EXPECT_EQ(at(gamma, 10, 10), 1e-3);  // begins at 90
  EXPECT_EQ(at(gamma, 11, 10), 0.0);
  const Schedule number = parse("0.25");
  EXPECT_EQ(at(number, 1), 0.25);
  EXPECT_EQ(at(number, 1000000), 0.25);
}

TEST(Schedule, WhatIsWrittenReadsBack) {
  for (const char* text :
       {"0.5", R"({"start": 1, "pieces": [{"shape": "linear", "to": 2, "until_steps": 5},
                   {"until_steps": 9}, {"shape": "cosine", "to": 0.5, "until_steps": 20}]})",
        R"({"start": 1, "pieces": [{"until_tokens": 7}, {"to": 3}]})"}) {
    const io::Json json = to_json(parse(text));
    EXPECT_EQ(to_json(parse(json.dump())), json);
    for (int64_t step = 1; step < 25; ++step)
      EXPECT_EQ(at(parse(json.dump()), step), at(parse(text), step));
  }
}

TEST(Schedule, MistakesAreSentences) {
  const struct {
    const char *text, *message;
  } cases[] = {
      {"-1", "c.json: lr is -1; allowed: 0 to 10"},
      {"\"x\"", "c.json: lr is \"x\"; a number is needed"},
      {R"({"pieces": []})", "c.json: lr: start is missing; add it"},
      {R"({"start": 1, "pieces": [{"shape": "round"}]})",
       "c.json: lr: pieces[0]: shape is \"round\"; allowed: constant, linear, cosine"},
      {R"({"start": 1, "pieces": [{"to": 11}]})",
       "c.json: lr: pieces[0]: to is 11; allowed: 0 to 10"},
      {R"({"start": 1, "pieces": [{"until_steps": 1, "until_tokens": 2}]})",
       "c.json: lr: pieces[0] has until_steps and until_tokens; give one of them"},
      {R"({"start": 1, "pieces": [{"to": 2}, {"to": 1}]})",
       "c.json: lr: pieces[0] has no end; give until_steps or until_tokens"},
      {R"({"start": 1, "pieces": [{"shape": "linear", "until_steps": 2}]})",
       "c.json: lr: pieces[0] has no value to arrive at; give to"},
      {R"({"start": 1, "pieces": [{"shape": "cosine", "to": 2}]})",
       "c.json: lr: pieces[0] has no end to arrive at; give until_steps or until_tokens"},
      {R"({"start": 1, "pieces": [{"until_steps": 9}, {"until_steps": 9}]})",
       "c.json: lr: piece 2 ends at 9, not after the piece before it, which ends at 9"},
      {R"({"start": 1, "pieces": [{"until_steps": 9},
           {"shape": "linear", "to": 2, "until_tokens": 90}]})",
       "c.json: lr: piece 2 moves and is measured in other units than the piece before it; measure "
       "both in steps or both in tokens"},
      {R"({"start": 1, "peices": []})", "c.json: lr: pieces is missing; add it"},
  };
  for (const auto& c : cases) EXPECT_ERROR(parse(c.text), c.message);
}

}  // namespace
}  // namespace hadal::train
