// Requests of a load: random, with a shared prefix, or of a file; arrivals of three kinds.
// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_load.h"

#include <fmt/core.h>

#include <cmath>
#include <fstream>

#include "core/check.h"
#include "core/rng.h"
#include "io/json.h"

namespace hadal::cli {

using nlohmann::json;

void LoadShape::check() const {
  HADAL_CHECK(endpoint == "completions" || endpoint == "chat", "--endpoint is ", endpoint,
              "; allowed: completions, chat");
  HADAL_CHECK(arrivals == "closed" || arrivals == "fixed" || arrivals == "poisson",
              "--arrivals is ", arrivals, "; allowed: closed, fixed, poisson");
  HADAL_CHECK(requests >= 1 && requests <= 1000000, "--requests is ", requests,
              "; allowed: 1 to 1000000");
  HADAL_CHECK(concurrency >= 0 && concurrency <= 60000, "--concurrency is ", concurrency,
              "; allowed: 0 to 60000");
  HADAL_CHECK(rate > 0.0 && rate <= 1e6, "--rate is ", rate, "; allowed: above 0 to 1000000");
  HADAL_CHECK(prompt_tokens >= 1 && prompt_tokens <= 10000000, "--prompt-tokens is ", prompt_tokens,
              "; allowed: 1 to 10000000");
  HADAL_CHECK(output_tokens >= 1, "--output-tokens is ", output_tokens, "; give 1 or more");
  HADAL_CHECK(vocab >= 2 && vocab <= INT32_MAX, "--vocab is ", vocab, "; give 2 or more");
  HADAL_CHECK(shared_tokens >= 0 && shared_tokens < prompt_tokens, "--shared-tokens is ",
              shared_tokens, "; allowed: 0 to --prompt-tokens - 1");
}

namespace {

std::vector<json> read_lines(const std::string& path) {
  std::ifstream file(path);
  HADAL_CHECK(file.good(), "cannot read ", path);
  std::vector<json> lines;
  int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    const std::string where = fmt::format("{} line {}", path, number);
    lines.push_back(io::parse_json(line, where));
    HADAL_CHECK(lines.back().is_object() &&
                    lines.back().contains("prompt") != lines.back().contains("messages"),
                where, " is no object with either \"prompt\" or \"messages\"");
  }
  HADAL_CHECK(!lines.empty(), path, " has no line");
  return lines;
}

// Random prompts: ids for completions, words of four letters for a chat, which takes text alone.
class Prompts {
 public:
  explicit Prompts(const LoadShape& shape)
      : shape_(shape), rng_(shape.seed, stream_id("bench.serve.prompts")) {
    for (int64_t i = 0; i < shape.shared_tokens; ++i) shared_.push_back(draw());
  }
  // Adds the next prompt to a body.
  void add_to(json& body) {
    std::vector<uint64_t> drawn = shared_;
    while (static_cast<int64_t>(drawn.size()) < shape_.prompt_tokens) drawn.push_back(draw());
    if (shape_.endpoint == "completions") {
      for (uint64_t& value : drawn) value = 1 + value % static_cast<uint64_t>(shape_.vocab - 1);
      body["prompt"] = drawn;
      return;
    }
    std::string text;
    for (uint64_t value : drawn) {
      if (!text.empty()) text += ' ';
      for (int letter = 0; letter < 4; ++letter, value /= 26)
        text += static_cast<char>('a' + value % 26);
    }
    body["messages"] = json::array({{{"role", "user"}, {"content", text}}});
  }

 private:
  uint64_t draw() { return rng_.u64(next_++); }

  const LoadShape& shape_;
  Rng rng_;
  uint64_t next_ = 0;
  std::vector<uint64_t> shared_;
};

}  // namespace

std::vector<server::StreamRequest> make_requests(const LoadShape& o) {
  o.check();
  const std::vector<json> lines = o.jsonl.empty() ? std::vector<json>() : read_lines(o.jsonl);
  json extra = json::object();
  if (!o.extra_body.empty()) extra = io::parse_json(o.extra_body, "--extra-body");
  HADAL_CHECK(extra.is_object(), "--extra-body is no JSON object");
  Prompts prompts(o);
  const Rng rng(o.seed, stream_id("bench.serve.arrivals"));
  std::vector<server::StreamRequest> requests;
  double due = 0.0;
  for (int64_t i = 0; i < o.requests; ++i) {
    json body = {{"stream", true},
                 {"stream_options", {{"include_usage", true}}},
                 {"temperature", 0},
                 {"max_tokens", o.output_tokens}};
    if (!o.respect_eos) body["ignore_eos"] = true;
    if (!o.model.empty()) body["model"] = o.model;
    if (lines.empty())
      prompts.add_to(body);
    else
      body.update(lines[static_cast<size_t>(i) % lines.size()]);
    body.update(extra);
    const char* route = body.contains("messages") ? "/v1/chat/completions" : "/v1/completions";
    requests.push_back({.route = route, .body = body.dump(), .due = due});
    if (o.arrivals == "fixed") due += 1.0 / o.rate;
    if (o.arrivals == "poisson")
      due -= std::log(1.0 - rng.uniform(static_cast<uint64_t>(i))) / o.rate;
  }
  return requests;
}

}  // namespace hadal::cli
