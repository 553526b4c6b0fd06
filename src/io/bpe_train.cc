// BPE training: pair counts over the different pieces, a heap of pairs with counts checked when
// taken.
// SPDX-License-Identifier: Apache-2.0
#include "io/bpe_train.h"

#include <algorithm>
#include <queue>
#include <set>
#include <unordered_map>

#include "core/check.h"
#include "io/utf8.h"

namespace hadal::io {
namespace {

struct Pair {
  int32_t left = 0, right = 0;
  auto operator<=>(const Pair&) const = default;
};

struct PairHash {
  size_t operator()(const Pair& p) const {
    const uint64_t key =
        static_cast<uint64_t>(static_cast<uint32_t>(p.left)) << 32 | static_cast<uint32_t>(p.right);
    return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) ^ (key >> 29));
  }
};

// A piece of the text and how often it occurs.
struct Word {
  std::vector<int32_t> symbols;
  int64_t count = 0;
};

struct Entry {
  int64_t count;
  Pair pair;
  // The top of the heap: the highest count, then the smallest pair.
  bool operator<(const Entry& o) const {
    return count != o.count ? count < o.count : pair > o.pair;
  }
};

// In the order of first occurrence, so that nothing depends on a hash table's order.
std::vector<Word> unique_words(std::string_view text, const TokenizerSpec& spec,
                               int32_t first_byte) {
  std::vector<Word> words;
  std::unordered_map<std::string_view, size_t> index;
  const auto on_text = [&](std::string_view stretch) {
    for (std::string_view piece : spec.pre_tokenizer.split(stretch)) {
      const auto [at, is_new] = index.try_emplace(piece, words.size());
      if (is_new) {
        Word& word = words.emplace_back();
        for (char c : piece) word.symbols.push_back(first_byte + static_cast<uint8_t>(c));
      }
      ++words[at->second].count;
    }
  };
  AddedTokens(spec.added).split(text, on_text, [](int32_t) {});
  return words;
}

class Trainer {
 public:
  explicit Trainer(std::vector<Word> words) : words_(std::move(words)) {
    for (size_t w = 0; w < words_.size(); ++w) add_pairs(w, 1);
    for (const Pair& pair : changed_) push(pair);
  }

  // The most frequent pair that occurs at least twice; false if there is none.
  bool best(Pair& pair) {
    while (!heap_.empty()) {
      const Entry top = heap_.top();
      heap_.pop();
      const int64_t count = stats_[top.pair].count;
      if (count == top.count) {
        pair = top.pair;
        return true;
      }
    }
    return false;
  }

  void merge(const Pair& pair, int32_t result) {
    changed_.clear();
    const std::vector<uint32_t> where = std::move(stats_[pair].words);
    for (uint32_t w : where) {
      // A word is listed once for each time it gained the pair; it may have lost it since.
      if (!contains(words_[w].symbols, pair)) continue;
      add_pairs(w, -1);
      replace(words_[w].symbols, pair, result);
      add_pairs(w, 1);
    }
    stats_.erase(pair);
    std::sort(changed_.begin(), changed_.end());
    changed_.erase(std::unique(changed_.begin(), changed_.end()), changed_.end());
    for (const Pair& p : changed_)
      if (p != pair) push(p);
  }

 private:
  struct Stats {
    int64_t count = 0;
    std::vector<uint32_t> words;  // that had the pair at some time
  };

  void add_pairs(size_t w, int64_t sign) {
    const Word& word = words_[w];
    for (size_t i = 0; i + 1 < word.symbols.size(); ++i) {
      const Pair pair{word.symbols[i], word.symbols[i + 1]};
      Stats& stats = stats_[pair];
      stats.count += sign * word.count;
      if (sign > 0 && (stats.words.empty() || stats.words.back() != w))
        stats.words.push_back(static_cast<uint32_t>(w));
      changed_.push_back(pair);
    }
  }
  void push(const Pair& pair) {
    const int64_t count = stats_[pair].count;
    if (count >= 2) heap_.push({count, pair});
  }
  static bool contains(const std::vector<int32_t>& symbols, const Pair& pair) {
    for (size_t i = 0; i + 1 < symbols.size(); ++i)
      if (symbols[i] == pair.left && symbols[i + 1] == pair.right) return true;
    return false;
  }
  static void replace(std::vector<int32_t>& symbols, const Pair& pair, int32_t result) {
    size_t to = 0;
    for (size_t from = 0; from < symbols.size(); ++to) {
      const bool found = from + 1 < symbols.size() && symbols[from] == pair.left &&
                         symbols[from + 1] == pair.right;
      symbols[to] = found ? result : symbols[from];
      from += found ? 2 : 1;
    }
    symbols.resize(to);
  }

  std::vector<Word> words_;
  std::unordered_map<Pair, Stats, PairHash> stats_;
  std::vector<Pair> changed_;
  std::priority_queue<Entry> heap_;
};

}  // namespace

Tokenizer train_bpe(std::string_view text, int64_t vocab_size,
                    const std::vector<std::string>& special_tokens) {
  const int64_t base = static_cast<int64_t>(special_tokens.size()) + 256;
  HADAL_CHECK(vocab_size >= base, "the vocabulary size is ", vocab_size, "; ",
              special_tokens.size(), " special tokens and 256 bytes need ", base, " or more");
  HADAL_CHECK(vocab_size <= int64_t{1} << 24, "the vocabulary size is ", vocab_size,
              "; allowed: up to ", int64_t{1} << 24);
  HADAL_CHECK(!text.empty(), "the text is empty; give one to train on");
  TokenizerSpec spec;
  std::set<std::string> seen;
  for (const std::string& content : special_tokens) {
    HADAL_CHECK(!content.empty() && seen.insert(content).second, "the special token \"", content,
                "\" is empty or stands twice; give different ones");
    const auto id = static_cast<int32_t>(spec.vocab.size());
    spec.added.push_back({.id = id, .content = content});
    spec.vocab.push_back({id, content, content});
  }
  const auto add = [&](const std::string& bytes) {
    const std::string name = spell_bytes(bytes);
    HADAL_CHECK(!seen.contains(name), "the special token \"", name,
                "\" is also the name of ordinary text in the vocabulary; choose another");
    spec.vocab.push_back({static_cast<int32_t>(spec.vocab.size()), name, bytes});
  };
  const auto first_byte = static_cast<int32_t>(spec.vocab.size());
  for (int b = 0; b < 256; ++b) add(std::string(1, static_cast<char>(b)));
  Trainer trainer(unique_words(text, spec, first_byte));
  while (static_cast<int64_t>(spec.vocab.size()) < vocab_size) {
    Pair pair;
    HADAL_CHECK(trainer.best(pair), "the text of ", text.size(), " bytes gives a vocabulary of ",
                spec.vocab.size(), " tokens at most, not ", vocab_size,
                "; ask for fewer or give more text");
    const auto id = static_cast<int32_t>(spec.vocab.size());
    add(spec.vocab[static_cast<size_t>(pair.left)].bytes +
        spec.vocab[static_cast<size_t>(pair.right)].bytes);
    spec.merges.push_back({pair.left, pair.right, id});
    trainer.merge(pair, id);
  }
  return Tokenizer(std::move(spec));
}

}  // namespace hadal::io
