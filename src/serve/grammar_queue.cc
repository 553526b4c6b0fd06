// A thread and a bounded queue.
// SPDX-License-Identifier: Apache-2.0
#include "serve/grammar_queue.h"

#include <utility>

namespace hadal::serve {

GrammarQueue::GrammarQueue(const io::Tokenizer& tokenizer, int64_t vocab_size, size_t max_waiting)
    : compiler_(tokenizer, vocab_size), max_waiting_(max_waiting), thread_([this] { run(); }) {}

GrammarQueue::~GrammarQueue() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

bool GrammarQueue::compile(GrammarSpec spec, Done done) {
  {
    const std::lock_guard lock(mutex_);
    if (waiting_.size() >= max_waiting_) return false;
    waiting_.emplace_back(std::move(spec), std::move(done));
  }
  wake_.notify_one();
  return true;
}

void GrammarQueue::run() {
  for (;;) {
    std::pair<GrammarSpec, Done> next;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || !waiting_.empty(); });
      if (stop_) return;
      next = std::move(waiting_.front());
      waiting_.pop_front();
    }
    std::shared_ptr<const Grammar> grammar;
    std::string error;
    try {
      grammar = compiler_.compile(next.first);
    } catch (const std::exception& e) {
      error = e.what();
    }
    next.second(std::move(grammar), std::move(error));
  }
}

}  // namespace hadal::serve
