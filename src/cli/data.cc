// hadal data: prepare token shards, and check them.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "core/check.h"
#include "core/timer.h"
#include "io/chat_template.h"
#include "io/token_shard.h"
#include "train/prepare.h"

namespace hadal::cli {
namespace {

struct PrepareOptions {
  train::PrepareConfig config;
  std::string documents = "file";
  double part_megabytes = 64.0;
  int threads = 0;
  bool json = false;
};

struct CheckOptions {
  std::string dir;
  bool json = false;
};

io::DocumentSplit parse_split(const std::string& name) {
  if (name == "file") return io::DocumentSplit::kFile;
  if (name == "line") return io::DocumentSplit::kLine;
  if (name == "paragraph") return io::DocumentSplit::kParagraph;
  HADAL_FAIL("--documents is ", name, "; allowed: file, line, paragraph");
}

void check_rate(const char* flag, double value, double high) {
  HADAL_CHECK(value >= 0.0 && value <= high, flag, " is ", value, "; allowed: 0 to ", high);
}

// A line that is drawn over while stdout is a terminal.
void show(const train::PrepareProgress& p, double seconds) {
  constexpr int64_t kWidth = 24;
  const double share = p.total_bytes > 0
                           ? static_cast<double>(p.bytes_read) / static_cast<double>(p.total_bytes)
                           : 1.0;
  const auto full = static_cast<size_t>(static_cast<double>(kWidth) * share);
  fmt::print("\r[{}{}] {:.0f}%  {} documents, {} tokens, {:.1f} MB/s\x1b[K", std::string(full, '#'),
             std::string(kWidth - full, '.'), 100.0 * share, p.documents, p.tokens,
             static_cast<double>(p.bytes_read) / 1e6 / seconds);
  std::fflush(stdout);
}

nlohmann::json to_json(const io::Dataset& d) {
  return {{"train",
           {{"documents", d.train_documents},
            {"tokens", d.train_tokens},
            {"text_bytes", d.train_bytes}}},
          {"held_out",
           {{"documents", d.held_out_documents},
            {"tokens", d.held_out_tokens},
            {"text_bytes", d.held_out_bytes}}},
          {"shards", d.train.size() + d.held_out.size()}};
}

void print(const io::Dataset& d, const std::string& dir, bool json) {
  if (json) {
    fmt::print("{}\n", to_json(d).dump());
    return;
  }
  fmt::print(
      "{}: {} documents, {} tokens, {:.3f} bytes per token; held out: {} documents, {} tokens\n",
      dir, d.train_documents, d.train_tokens,
      static_cast<double>(d.train_bytes) /
          static_cast<double>(std::max<int64_t>(1, d.train_tokens)),
      d.held_out_documents, d.held_out_tokens);
}

void prepare(PrepareOptions& o) {
  o.config.split = parse_split(o.documents);
  check_rate("--held-out", o.config.held_out, 0.9);
  check_rate("--fim-rate", o.config.fim_rate, 1.0);
  check_rate("--split-rate", o.config.split_rate, 1.0);
  HADAL_CHECK(o.part_megabytes >= 1e-6 && o.part_megabytes <= 1e5, "--part-megabytes is ",
              o.part_megabytes, "; allowed: 1e-06 to 100000");
  o.config.part_bytes = static_cast<int64_t>(o.part_megabytes * 1e6);
  if (!o.config.chat_template.empty())
    static_cast<void>(io::ChatTemplate::named(o.config.chat_template));
  Machine machine(o.threads, {});
  Context ctx = machine.context();
  const bool terminal = !o.json && ::isatty(STDOUT_FILENO) != 0;
  const Timer timer;
  const io::Dataset dataset =
      train::prepare(ctx, o.config, [&](const train::PrepareProgress& progress) {
        if (terminal) show(progress, timer.seconds());
      });
  if (terminal) fmt::print("\n");
  print(dataset, o.config.output, o.json);
}

void check(const CheckOptions& o) {
  const io::Dataset dataset = io::Dataset::read(o.dir);
  for (const auto* list : {&dataset.train, &dataset.held_out})
    for (const std::string& name : *list)
      io::TokenShard(o.dir + "/" + name, dataset.vocabulary).check_payload();
  print(dataset, o.dir, o.json);
}

void add_prepare(CLI::App& app) {
  auto o = std::make_shared<PrepareOptions>();
  auto* command = app.add_subcommand(
      "prepare", "text, JSONL and chats, plain or .zst, to token shards; goes on where it stopped");
  train::PrepareConfig& c = o->config;
  command->add_option("inputs", c.inputs, "files: .jsonl, .jsonl.zst; all else is text")
      ->required();
  command->add_option("--tokenizer", c.tokenizer, "directory with tokenizer.json")->required();
  command->add_option("--output", c.output, "directory for the shards")->required();
  command->add_option("--documents", o->documents, "of text files: file, line or paragraph")
      ->capture_default_str();
  command->add_option("--text-key", c.text_key, "key of the text in JSONL records")
      ->capture_default_str();
  command->add_option("--chat-template", c.chat_template,
                      "template of records with \"messages\": deepseek-v3, deepseek-r1, ...");
  command->add_option("--bos", c.bos, "token that begins a document");
  command->add_option("--eos", c.eos, "token that ends a document");
  command->add_option("--held-out", c.held_out, "share of the documents, never trained on")
      ->capture_default_str();
  command
      ->add_option("--fim-rate", c.fim_rate, "share of the documents put into fill-in-the-middle")
      ->capture_default_str();
  command
      ->add_option("--split-rate", c.split_rate,
                   "share of punctuation-and-line-break tokens that are split in two")
      ->capture_default_str();
  command->add_option("--seed", c.seed, "of all that is drawn")->capture_default_str();
  command->add_option("--part-megabytes", o->part_megabytes, "text of one shard")
      ->capture_default_str();
  command->add_option("--threads", o->threads, "CPU threads; 0 uses every core")
      ->capture_default_str();
  command->add_flag("--json", o->json, "print one JSON object, and no progress bar");
  command->footer(
      "Example: hadal data prepare code.jsonl.zst --tokenizer data/kjv --output data/code "
      "--fim-rate 0.1");
  command->callback([o] { prepare(*o); });
}

void add_check(CLI::App& app) {
  auto o = std::make_shared<CheckOptions>();
  auto* command = app.add_subcommand("check", "read all shards of a data set and verify them");
  command->add_option("dir", o->dir, "directory of hadal data prepare")->required();
  command->add_flag("--json", o->json, "print one JSON object");
  command->footer("Example: hadal data check data/code");
  command->callback([o] { check(*o); });
}

}  // namespace

void add_data_command(CLI::App& app) {
  auto* command = app.add_subcommand("data", "prepare training data");
  command->require_subcommand(1);
  add_prepare(*command);
  add_check(*command);
}

}  // namespace hadal::cli
