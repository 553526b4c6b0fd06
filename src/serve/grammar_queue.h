// GrammarQueue: compiles forms of replies on a thread of its own, one after the other.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "serve/grammar.h"

namespace hadal::serve {

class GrammarQueue {
 public:
  // On the queue's thread: a grammar, or what is wrong with the spec.
  using Done = std::function<void(std::shared_ptr<const Grammar>, std::string error)>;

  GrammarQueue(const io::Tokenizer& tokenizer, int64_t vocab_size, size_t max_waiting);
  // What waits is dropped; waits for the one that is being compiled.
  ~GrammarQueue();

  // False when max_waiting of them wait.
  bool compile(GrammarSpec spec, Done done);

 private:
  void run();

  GrammarCompiler compiler_;
  const size_t max_waiting_;
  std::mutex mutex_;  // of what follows
  std::condition_variable wake_;
  std::deque<std::pair<GrammarSpec, Done>> waiting_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace hadal::serve
