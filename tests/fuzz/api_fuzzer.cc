// Bodies of the API's requests: refused with a 4xx that says why, or a request of the engine's
// whose answer is JSON. The first byte says the route.
// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "server/answer.h"
#include "server/api_request.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/stub_model.h"

namespace {

using namespace hadal;
using nlohmann::json;

void answer(const server::ModelInfo& model, server::ApiRequest request) {
  fuzz::expect(!request.prompts.empty(), "a request has a prompt");
  for (const auto& prompt : request.prompts)
    for (const int32_t id : prompt)
      fuzz::expect(id >= 0 && id < model.vocab_size, "ids of a prompt are in the vocabulary");
  fuzz::expect(request.params.max_tokens >= 0 && request.n >= 1 && request.n <= model.max_choices,
               "what is asked for is within bounds");
  server::Answer a(model, std::move(request), "id", 0);
  std::string events = a.begin();
  for (size_t i = 0; i < a.num_choices(); ++i)
    for (const bool last : {false, true}) {
      serve::Output out;
      out.text = last ? "\xff</think> word" : " word";
      out.tokens = {2, 3};
      out.num_prompt = 1;
      out.num_generated = last ? 4 : 2;
      if (last) out.finish = serve::Finish::kStop;
      events += a.add(i, out);
    }
  fuzz::expect(a.done(), "an answer ends with its last choice");
  events += a.end();
  if (!a.request().stream) fuzz::expect(json::accept(a.whole()), "an answer is JSON");
  for (size_t at = 0; (at = events.find("\ndata: ", at)) != std::string::npos; ++at) {
    const std::string text = events.substr(at + 7, events.find('\n', at + 7) - at - 7);
    fuzz::expect(text == "[DONE]" || json::accept(text), "an event is JSON");
  }
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const server::ModelInfo model = fuzz::stub_model();
  if (size == 0) return 0;
  const std::string body(fuzz::text_of(data, size).substr(1));
  fuzz::expect_error_or_nothing([&] {
    try {
      switch (data[0] % 5) {
        case 0:
          return answer(model, server::parse_chat(model, body));
        case 1:
          return answer(model, server::parse_completion(model, body));
        case 2:
          return answer(model, server::parse_response(model, body));
        case 3:
          return static_cast<void>(server::parse_tokenize(model, body));
        default:
          model.tokenizer->decode(server::parse_detokenize(model, body));
      }
    } catch (const server::ApiError& e) {
      fuzz::expect(e.status >= 400 && e.status < 500, "what a client did is a 4xx");
      const json error = json::parse(e.body(), nullptr, false);
      fuzz::expect(error.is_object() && error["error"]["message"].is_string() &&
                       !error["error"]["message"].get<std::string>().empty(),
                   "a refusal is OpenAI's JSON and says why");
    }
  });
  return 0;
}
