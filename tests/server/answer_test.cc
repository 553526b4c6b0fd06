// Answers: a reply ends where a second call begins, if one call was asked for at most.
// SPDX-License-Identifier: Apache-2.0
#include "server/answer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "io/json.h"

namespace hadal::server {
namespace {

// A reply of DeepSeek-V3.1's family with two calls, a character a step.
nlohmann::json answer_of(bool parallel, bool stream, size_t* num_steps) {
  ModelInfo model;
  model.id = "m";
  model.chat_template = io::ChatTemplate::named("deepseek-v3.1");
  ApiRequest request;
  request.prompts = {{1}};
  request.tools = true;
  request.stream = stream;
  request.parallel_calls = parallel;
  Answer answer(model, request, "chatcmpl-1", 0);
  const std::string begin = "<\uFF5Ctool\u2581call\u2581begin\uFF5C>";
  const std::string sep = "<\uFF5Ctool\u2581sep\uFF5C>",
                    end = "<\uFF5Ctool\u2581call\u2581end\uFF5C>";
  const std::string text = "So: <\uFF5Ctool\u2581calls\u2581begin\uFF5C>" + begin + "a" + sep +
                           "{\"x\": 1}" + end + begin + "b" + sep + "{}" + end +
                           "<\uFF5Ctool\u2581calls\u2581end\uFF5C>";
  std::string events;
  *num_steps = 0;
  for (size_t i = 0; i < text.size() && !answer.done(); ++i, ++*num_steps) {
    serve::Output out;
    out.text = text[i];
    if (i + 1 == text.size()) out.finish = serve::Finish::kStop;
    events += answer.add(0, out);
  }
  EXPECT_TRUE(answer.done());
  if (!stream) return nlohmann::json::parse(answer.whole())["choices"][0];
  EXPECT_NE(events.find("\"finish_reason\":\"tool_calls\""), std::string::npos);
  return {{"second", events.find("\"index\":1") != std::string::npos}};
}

TEST(Answer, EndsWhereASecondCallBegins) {
  size_t all = 0, one = 0;
  const nlohmann::json both = answer_of(true, false, &all);
  ASSERT_EQ(both["message"]["tool_calls"].size(), 2u);
  const nlohmann::json first = answer_of(false, false, &one);
  ASSERT_EQ(first["message"]["tool_calls"].size(), 1u);
  EXPECT_EQ(first["message"]["tool_calls"][0], both["message"]["tool_calls"][0]);
  EXPECT_EQ(first["message"]["content"], both["message"]["content"]);
  EXPECT_EQ(first["finish_reason"], "tool_calls");
  EXPECT_LT(one, all);
  EXPECT_EQ(answer_of(true, true, &all)["second"], true);
  EXPECT_EQ(answer_of(false, true, &one)["second"], false);
}

}  // namespace
}  // namespace hadal::server
