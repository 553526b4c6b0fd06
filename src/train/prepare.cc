// prepare: parts, shards, and what is known of a run that was interrupted.
// SPDX-License-Identifier: Apache-2.0
#include "train/prepare.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "io/json.h"
#include "io/tokenizer_dir.h"

namespace hadal::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigFile = "/prepare.json";

// Documents that become one shard.
struct Part {
  int64_t number = 0, first_document = 0;
  std::vector<io::Document> documents;
};

// What a shard adds to the data set; absent if no document of the part is for it.
struct Written {
  std::string name;
  int64_t documents = 0, tokens = 0, targets = 0, bytes = 0;
};
struct PartResult {
  Written train, held_out;
};

// All that decides about the shards' content.
io::Json config_json(const PrepareConfig& c, const io::Vocabulary& vocabulary) {
  io::Json inputs = io::Json::array();
  for (const std::string& path : c.inputs)
    inputs.push_back({{"path", path}, {"bytes", fs::file_size(path)}});
  return {{"inputs", inputs},
          {"vocabulary_hash", fmt::format("{:016x}", vocabulary.hash)},
          {"split", static_cast<int>(c.split)},
          {"text_key", c.text_key},
          {"chat_template", c.chat_template},
          {"bos", c.bos},
          {"eos", c.eos},
          {"held_out", c.held_out},
          {"fim_rate", c.fim_rate},
          {"split_rate", c.split_rate},
          {"seed", c.seed},
          {"part_bytes", c.part_bytes}};
}

// Makes OUTPUT, or finds it begun with the same config.
void begin(const PrepareConfig& c, const io::Json& config) {
  std::error_code error;
  fs::create_directories(c.output, error);
  HADAL_CHECK(!error, "cannot make ", c.output, ": ", error.message());
  const std::string path = c.output + kConfigFile;
  if (!fs::exists(path)) {
    HADAL_CHECK(fs::is_empty(c.output), c.output,
                " is not empty and no data set was begun there; choose another --output");
    io::write_json(path, config);
    return;
  }
  const io::Json before = io::read_json(path);
  for (const auto& [key, value] : config.items())
    HADAL_CHECK(before.contains(key) && before[key] == value, c.output, " was begun with another ",
                key, "; use the same options to go on, or choose another --output");
}

// The next part; false if there are no documents left.
bool read_part(io::DocumentReader& reader, int64_t part_bytes, Part& part) {
  part.documents.clear();
  int64_t bytes = 0;
  io::Document document;
  while (bytes < part_bytes && reader.next(document)) {
    bytes += static_cast<int64_t>(document.text.size());
    part.documents.push_back(std::move(document));
  }
  return !part.documents.empty();
}

Written describe(const std::string& name, const std::vector<io::TokenDocument>& documents) {
  Written w{.name = name};
  for (const io::TokenDocument& document : documents) {
    ++w.documents;
    w.tokens += static_cast<int64_t>(document.ids.size());
    w.targets += document.num_learned();
    w.bytes += document.text_bytes;
  }
  return w;
}

// From a complete shard of an earlier process; a damaged one is written again.
bool read_back(const std::string& dir, const io::Vocabulary& vocabulary, Written& w) {
  if (!fs::exists(dir + "/" + w.name)) return false;
  const io::TokenShard shard(dir + "/" + w.name, vocabulary);
  shard.check_payload();
  w.documents = shard.num_documents();
  w.tokens = shard.num_tokens();
  w.targets = shard.num_learned();
  w.bytes = shard.text_bytes();
  return true;
}

PartResult write_part(const PrepareConfig& c, const io::Vocabulary& vocabulary,
                      const DocumentEncoder& encoder, const Part& part) {
  const std::string train = fmt::format("train-{:06}.tokens", part.number),
                    held_out = fmt::format("held_out-{:06}.tokens", part.number);
  PartResult result{.train = {.name = train}, .held_out = {.name = held_out}};
  // The training shard comes last: where it is, the part is complete.
  if (read_back(c.output, vocabulary, result.train)) {
    if (!read_back(c.output, vocabulary, result.held_out)) result.held_out = {};
    return result;
  }
  std::vector<io::TokenDocument> documents, held_out_documents;
  for (size_t i = 0; i < part.documents.size(); ++i) {
    const int64_t number = part.first_document + static_cast<int64_t>(i);
    auto& list = encoder.is_held_out(number) ? held_out_documents : documents;
    list.push_back(encoder.encode(part.documents[i], number));
  }
  result = {.train = describe(train, documents), .held_out = {}};
  if (!held_out_documents.empty()) {
    result.held_out = describe(held_out, held_out_documents);
    io::write_token_shard(c.output + "/" + held_out, vocabulary, held_out_documents);
  }
  io::write_token_shard(c.output + "/" + train, vocabulary, documents);
  return result;
}

void add(const PartResult& part, io::Dataset& d) {
  d.train.push_back(part.train.name);
  d.train_documents += part.train.documents;
  d.train_tokens += part.train.tokens;
  d.train_targets += part.train.targets;
  d.train_bytes += part.train.bytes;
  if (part.held_out.documents == 0) return;
  d.held_out.push_back(part.held_out.name);
  d.held_out_documents += part.held_out.documents;
  d.held_out_tokens += part.held_out.tokens;
  d.held_out_targets += part.held_out.targets;
  d.held_out_bytes += part.held_out.bytes;
}

}  // namespace

io::Dataset prepare(Context& ctx, const PrepareConfig& c,
                    const std::function<void(const PrepareProgress&)>& on_progress) {
  const io::Tokenizer tokenizer = io::load_tokenizer_of(c.tokenizer);
  io::Dataset dataset;
  dataset.vocabulary = {.hash = tokenizer.hash(), .size = tokenizer.vocab_size()};
  const DocumentEncoder encoder(c, tokenizer);
  dataset.bos = encoder.bos();
  dataset.eos = encoder.eos();
  io::DocumentReader reader(c.inputs, c.split);
  begin(c, config_json(c, dataset.vocabulary));

  // As many parts at a time as there are threads.
  int64_t number = 0, num_documents = 0;
  for (bool more = true; more;) {
    std::vector<Part> parts;
    while (static_cast<int>(parts.size()) < ctx.threads.num_threads()) {
      Part part{.number = number, .first_document = num_documents, .documents = {}};
      more = read_part(reader, c.part_bytes, part);
      if (!more) break;
      ++number;
      num_documents += static_cast<int64_t>(part.documents.size());
      parts.push_back(std::move(part));
    }
    std::vector<PartResult> results(parts.size());
    ctx.threads.parallel_for(static_cast<int64_t>(parts.size()), [&](int64_t i, int) {
      const auto at = static_cast<size_t>(i);
      results[at] = write_part(c, dataset.vocabulary, encoder, parts[at]);
    });
    for (const PartResult& result : results) add(result, dataset);
    on_progress({.bytes_read = reader.bytes_read(),
                 .total_bytes = reader.total_bytes(),
                 .documents = dataset.train_documents + dataset.held_out_documents,
                 .tokens = dataset.train_tokens + dataset.held_out_tokens});
  }
  HADAL_CHECK(num_documents > 0, "the inputs hold no document; give a text or JSONL with records");
  dataset.write(c.output);
  return dataset;
}

}  // namespace hadal::train
