// Schemas that a reply can be held to, and why not to others.
// SPDX-License-Identifier: Apache-2.0
#include "server/json_schema.h"

#include <gtest/gtest.h>

namespace hadal::server {
namespace {

std::string why(const char* text) { return why_not_held(nlohmann::ordered_json::parse(text)); }

constexpr const char* kOverlap =
    "has a oneOf whose alternatives 0 and 1 may both hold; use anyOf, or give them different types "
    "or a required property with different constants";

TEST(JsonSchema, OneOfWhereNoTwoHold) {
  EXPECT_EQ(why(R"({"oneOf": [{"type": "string"}, {"type": ["null", "boolean"]}]})"), "");
  EXPECT_EQ(why(R"({"oneOf": [{"enum": ["a", "b"]}, {"const": "c"}, {"type": "integer"}]})"), "");
  EXPECT_EQ(why(R"({"$defs": {"cat": {"type": "object", "required": ["kind"],
                                      "properties": {"kind": {"const": "cat"}}},
                              "dog": {"type": "object", "required": ["kind", "age"],
                                      "properties": {"kind": {"enum": ["dog", "wolf"]}}}},
                    "properties": {"pet": {"oneOf": [{"$ref": "#/$defs/cat"},
                                                     {"$ref": "#/$defs/dog"}]}}})"),
            "");
}

TEST(JsonSchema, OneOfWhereTwoMayHold) {
  EXPECT_EQ(why(R"({"oneOf": [{"type": "integer"}, {"type": "number"}]})"), kOverlap);
  EXPECT_EQ(why(R"({"oneOf": [{"minimum": 3}, {"type": "string"}]})"), kOverlap);
  EXPECT_EQ(why(R"({"oneOf": [{"const": 1}, {"enum": [2, 1]}]})"), kOverlap);
  // The property may be missing, or the value no object.
  EXPECT_EQ(why(R"({"oneOf": [{"type": "object", "properties": {"k": {"const": 1}}},
                              {"type": "object", "properties": {"k": {"const": 2}},
                               "required": ["k"]}]})"),
            kOverlap);
  EXPECT_EQ(why(R"({"oneOf": [{"properties": {"k": {"const": 1}}, "required": ["k"]},
                              {"properties": {"k": {"const": 2}}, "required": ["k"]}]})"),
            kOverlap);
  EXPECT_EQ(why(R"({"oneOf": [{"$ref": "#/nowhere"}, {"$ref": "other.json"}]})"), kOverlap);
  EXPECT_EQ(why(R"({"oneOf": [{"$ref": "#/oneOf/0"}, {"type": "string"}]})"), kOverlap);
}

TEST(JsonSchema, WhatIsPassedOver) {
  EXPECT_EQ(why(R"({"items": {"not": {"type": "null"}}})"),
            "has not, to which no reply can be held; leave it out");
  EXPECT_EQ(why(R"({"properties": {"not": {"type": "null"}}, "enum": [{"if": 1}]})"), "");
  EXPECT_EQ(why(R"({"uniqueItems": false})"), "");
  EXPECT_EQ(why("true"), "");
}

}  // namespace
}  // namespace hadal::server
