// Engine::Live: what the engine keeps of a request that has not ended.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <utility>

#include "io/stream_decoder.h"
#include "serve/engine.h"
#include "serve/sampler.h"

namespace hadal::serve {

struct Engine::Live {
  Live(Request r, int64_t vocab_size, const std::optional<io::Tokenizer>& tokenizer)
      : request(std::move(r)),
        sampler(request.params, request.prompt, vocab_size),
        scanner(request.params.stop) {
    if (tokenizer) decoder.emplace(*tokenizer);
    out.id = request.id;
    out.num_prompt = static_cast<int64_t>(request.prompt.size());
  }

  Request request;
  Sampler sampler;
  std::optional<io::StreamDecoder> decoder;
  io::StopScanner scanner;
  Sequence* sequence = nullptr;
  Output out;                                 // of this step
  int64_t num_generated = 0, num_scored = 0;  // tokens drawn; prompt tokens scored
  int64_t done = 0;                           // of the sequence, after this step
  bool speculates = false;
  bool ready = false;  // all tokens but the last are run: the next step draws
  std::optional<Finish> finish;
  double arrival = 0.0, first_token = -1.0, last_token = -1.0;
};

}  // namespace hadal::serve
