// JSON reading and writing: places in errors, typed getters, unknown keys, overrides.
// SPDX-License-Identifier: Apache-2.0
#include "io/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "io/atomic.h"
#include "tests/unit/expect_error.h"

namespace hadal::io {
namespace {

using hadal::testing::TempDir;

JsonObject object(const char* text) { return JsonObject::parse(text, "run.json"); }

TEST(Json, ParseErrorsNameLineAndColumn) {
  EXPECT_ERROR(parse_json("{\n  \"a\": 1,\n  \"b\" 2\n}", "run.json"),
               "run.json, line 3, column 7: invalid JSON, unexpected number literal; expected ':'; "
               "correct it there");
  EXPECT_ERROR(parse_json("{\"a\": [1, 2", "run.json"),
               "run.json, line 1, column 11: invalid JSON, unexpected end of input; expected ']'; "
               "correct it there");
  EXPECT_ERROR(
      parse_json("", "run.json"),
      "run.json, line 1, column 1: invalid JSON, unexpected end of input; expected '[', '{', "
      "or a literal; correct it there");
}

TEST(Json, DuplicateKeysAreErrors) {
  EXPECT_ERROR(parse_json("{\"a\": {\"b\": 1, \"b\": 2}}", "run.json"),
               "run.json: the key \"b\" stands twice in one object; remove one");
  EXPECT_EQ(parse_json("{\"a\": {\"b\": 1}, \"b\": {\"a\": 1}}", "x").size(), 2u);
}

TEST(Json, DepthIsLimited) {
  EXPECT_ERROR(parse_json(std::string(100000, '['), "run.json"),
               "run.json: JSON is nested more than 100 levels deep; flatten it");
}

TEST(Json, NumbersOutOfRangeAreErrors) {
  EXPECT_ERROR(parse_json("{\"a\": 1e999}", "run.json"),
               "run.json: invalid JSON, number overflow parsing '1e999'; correct it");
}

TEST(Json, FilesThatCannotBeRead) {
  const TempDir dir;
  EXPECT_ERROR(read_json(dir / "none.json"),
               "cannot open " + dir / "none.json" + ": No such file or directory; check the path");
  EXPECT_ERROR(read_json(dir.path()),
               "cannot read " + dir.path() + ": Is a directory; give the path of a file");
}

TEST(Json, GettersReadWhatIsThere) {
  const JsonObject o = object(
      R"({"i": -3, "whole": 3e4, "x": 0.5, "b": true, "s": "t", "ids": [1, 2], "id": 7, "o": {"k": 1},
          "list": [{"k": 1}, {"k": 2}], "names": ["a", "b"], "nothing": null})");
  EXPECT_EQ(o.integer("i"), -3);
  EXPECT_EQ(o.integer("whole"), 30000);
  EXPECT_EQ(o.number("x"), 0.5);
  EXPECT_EQ(o.number("i"), -3.0);
  EXPECT_TRUE(o.boolean("b"));
  EXPECT_EQ(o.string("s"), "t");
  EXPECT_EQ(o.integers("ids"), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(o.integers("id"), (std::vector<int64_t>{7}));
  EXPECT_EQ(o.numbers("ids"), (std::vector<double>{1, 2}));
  EXPECT_EQ(o.strings("names"), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(o.object("o").integer("k"), 1);
  EXPECT_EQ(o.objects("list")[1].integer("k"), 2);
  EXPECT_FALSE(o.has("nothing"));
  EXPECT_TRUE(o.is_null("nothing"));
  EXPECT_EQ(o.integer("nothing", 5), 5);
  EXPECT_EQ(o.number("absent", 0.25), 0.25);
  EXPECT_EQ(o.string("absent", "z"), "z");
  EXPECT_TRUE(o.boolean("absent", true));
  o.check_no_unknown();
}

TEST(Json, WrongTypesNameTheKeyAndTheValue) {
  const JsonObject o = object(R"({"n": "four", "x": 1.5, "big": 1e300, "u": 18446744073709551615,
                                  "l": [1, "two"], "o": {"k": true}})");
  EXPECT_ERROR(o.integer("steps"), "run.json: steps is missing; add it");
  EXPECT_ERROR(o.integer("n"), "run.json: n is \"four\"; an integer is needed");
  EXPECT_ERROR(o.integer("x"),
               "run.json: x is 1.5; an integer between -2^63 and 2^63 - 1 is needed");
  EXPECT_ERROR(o.integer("big"),
               "run.json: big is 1e+300; an integer between -2^63 and 2^63 - 1 is needed");
  EXPECT_ERROR(
      o.integer("u"),
      "run.json: u is 18446744073709551615; an integer between -2^63 and 2^63 - 1 is needed");
  EXPECT_ERROR(o.number("n"), "run.json: n is \"four\"; a number is needed");
  EXPECT_ERROR(o.boolean("x"), "run.json: x is 1.5; true or false is needed");
  EXPECT_ERROR(o.string("l"), "run.json: l is a list of 2; a string is needed");
  EXPECT_ERROR(o.integers("l"), "run.json: l is \"two\"; an integer is needed");
  EXPECT_ERROR(o.object("n"), "run.json: n is \"four\"; an object { } is needed");
  EXPECT_ERROR(o.objects("l"), "run.json: l[0]: 1 where an object { } is needed");
  EXPECT_ERROR(o.object("o").integer("k"), "run.json: o: k is true; an integer is needed");
  EXPECT_ERROR(object("[1]"), "run.json: a list of 1 where an object { } is needed");
}

TEST(Json, UnknownKeysSuggestTheNearest) {
  const JsonObject o = object(R"({"hiden_size": 64, "steps": 3})");
  o.integer("steps");
  o.integer("hidden_size", 1);
  o.integer("head_dim", 1);
  EXPECT_EQ(o.unknown(), (std::vector<std::string>{"hiden_size"}));
  EXPECT_ERROR(o.check_no_unknown(),
               "run.json: unknown key \"hiden_size\"; did you mean \"hidden_size\"?");
}

TEST(Json, SetByPath) {
  Json root = parse_json(R"({"train": {"steps": 1}})", "run.json");
  set_by_path(root, "train.steps=100");
  set_by_path(root, "train.name=first run");
  set_by_path(root, "model.rope.theta=1e4");
  EXPECT_EQ(root.dump(),
            R"({"model":{"rope":{"theta":10000.0}},"train":{"name":"first run","steps":100}})");
  EXPECT_ERROR(set_by_path(root, "train.steps"),
               "--set train.steps: write it as key=value, for example train.steps=100");
  EXPECT_ERROR(set_by_path(root, "train..steps=1"),
               "--set train..steps=1: an empty key; write train.steps=100");
  EXPECT_ERROR(set_by_path(root, "train.steps.x=1"),
               "--set train.steps.x=1: train.steps. leads to 100, which has no keys");
}

TEST(Json, WrittenTextReadsBack) {
  const TempDir dir;
  const Json value = parse_json(R"({"b": [1, 2.5, "x\u0001"], "a": 1e-06})", "x");
  write_json(dir / "out.json", value);
  EXPECT_EQ(read_json(dir / "out.json"), value);
  EXPECT_EQ(read_file(dir / "out.json", 1000).substr(0, 15), "{\n  \"a\": 1e-06,");
}

}  // namespace
}  // namespace hadal::io
