// ResponseWriter: the answer of /v1/responses, as items that grow and as the events that say so.
//
// The whole answer is made of the same items, so it is what the stream adds up to.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/reply_parser.h"
#include "serve/request.h"
#include "server/api_request.h"

namespace hadal::server {

struct ResponseUsage {
  int64_t prompt = 0, cached = 0, generated = 0, reasoning = 0;  // tokens
};

class ResponseWriter {
 public:
  // REQUIRES: model and request outlive the writer. id: resp_...
  ResponseWriter(const ModelInfo& model, const ApiRequest& request, std::string id,
                 int64_t created);
  ~ResponseWriter();

  // Each returns the events of a stream.
  std::string begin();
  std::string add(const std::vector<io::ReplyParser::Event>& events);
  std::string end(serve::Finish finish, const ResponseUsage& usage);
  // After end().
  std::string whole() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hadal::server
