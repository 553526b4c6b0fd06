// hadal tokenizer: train a byte-level BPE vocabulary, encode, decode.
// SPDX-License-Identifier: Apache-2.0
#include "cli/tokenizer.h"

#include <fmt/core.h>

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "core/check.h"
#include "io/atomic.h"
#include "io/bpe_train.h"
#include "io/json.h"
#include "io/utf8.h"
#include "train/data.h"

namespace hadal::cli {
namespace {

namespace fs = std::filesystem;

struct TrainOptions {
  std::string input, output;
  int64_t vocab_size = 0;
  double held_out = 0.0;
  std::vector<std::string> special;
};

struct CodeOptions {
  std::string tokenizer, text, file, ids, json_lines;
  bool json = false;
};

void train(const TrainOptions& o) {
  HADAL_CHECK(o.held_out >= 0.0 && o.held_out <= 0.9, "--held-out is ", o.held_out,
              "; allowed: 0 to 0.9");
  const std::string text = io::read_file(o.input, std::numeric_limits<size_t>::max());
  HADAL_CHECK(!text.empty(), o.input, " is empty; give a text to train on");
  const size_t used = train::training_bytes(text, o.held_out);
  std::vector<std::string> special = o.special;
  if (special.empty()) special = {io::kBeginOfSentence, io::kEndOfSentence};
  const io::Tokenizer tokenizer =
      io::train_bpe(std::string_view(text).substr(0, used), o.vocab_size, special);
  std::error_code error;
  fs::create_directories(o.output, error);
  HADAL_CHECK(!error, "cannot make ", o.output, ": ", error.message());
  tokenizer.save(o.output + "/tokenizer.json");
  const size_t tokens = tokenizer.encode(std::string_view(text).substr(used)).size();
  fmt::print("{} tokens from {} bytes of {}, written to {}/tokenizer.json\n",
             tokenizer.vocab_size(), used, o.input, o.output);
  if (tokens > 0)
    fmt::print("held out: {} bytes, {:.3f} bytes per token\n", text.size() - used,
               static_cast<double>(text.size() - used) / static_cast<double>(tokens));
}

// --text, --file or standard input.
std::string input_text(const CodeOptions& o) {
  if (!o.text.empty()) return o.text;
  if (!o.file.empty()) return io::read_file(o.file, std::numeric_limits<size_t>::max());
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

// Calls `convert` for each line of a file of JSON, and prints what it returns in a line.
template <class Convert>
void each_line(const std::string& path, const Convert& convert) {
  const std::string text = io::read_file(path, std::numeric_limits<size_t>::max());
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string where = concat(path, ":", ++number);
    const io::Json line = io::parse_json(std::string_view(text).substr(begin, end - begin), where);
    fmt::print("{}\n", convert(line, where).dump());
    begin = end + 1;
  }
}

// A list of integers from 0 to `most`.
std::vector<int32_t> integers(const io::Json& line, int32_t most, const std::string& where,
                              const char* needed) {
  std::vector<int32_t> list;
  HADAL_CHECK(line.is_array(), where, " is ", line.type_name(), "; ", needed, " is needed");
  for (const io::Json& item : line) {
    HADAL_CHECK(item.is_number_unsigned() && item <= most, where, " holds ", item.dump(), "; ",
                needed, " is needed");
    list.push_back(item.get<int32_t>());
  }
  return list;
}

io::Json bytes_to_json(const std::string& bytes) {
  if (io::utf8_valid_prefix(bytes) == bytes.size()) return bytes;
  io::Json list = io::Json::array();
  for (char c : bytes) list.push_back(static_cast<uint8_t>(c));
  return list;
}

std::string json_to_bytes(const io::Json& line, const std::string& where) {
  if (line.is_string()) return line.get<std::string>();
  std::string bytes;
  for (int32_t byte : integers(line, 255, where, "a text, or a list of bytes,"))
    bytes += static_cast<char>(byte);
  return bytes;
}

void encode(const CodeOptions& o) {
  HADAL_CHECK(!o.text.empty() + !o.file.empty() + !o.json_lines.empty() <= 1,
              "give one of --text, --file and --json-lines");
  const io::Tokenizer tokenizer = open_tokenizer(o.tokenizer);
  if (!o.json_lines.empty())
    return each_line(o.json_lines, [&](const io::Json& line, const std::string& where) {
      return io::Json(tokenizer.encode(json_to_bytes(line, where)));
    });
  const std::vector<int32_t> ids = tokenizer.encode(input_text(o));
  if (o.json) {
    fmt::print("{}\n", nlohmann::json(ids).dump());
    return;
  }
  std::string line;
  for (int32_t id : ids) line += fmt::format("{}{}", line.empty() ? "" : ",", id);
  fmt::print("{}\n", line);
}

void decode(const CodeOptions& o) {
  HADAL_CHECK(o.ids.empty() != o.json_lines.empty(), "give --ids or --json-lines");
  const io::Tokenizer tokenizer = open_tokenizer(o.tokenizer);
  if (!o.json_lines.empty())
    return each_line(o.json_lines, [&](const io::Json& line, const std::string& where) {
      return bytes_to_json(tokenizer.decode(
          integers(line, std::numeric_limits<int32_t>::max(), where, "a list of token ids")));
    });
  const std::string text = tokenizer.decode(parse_ids(o.ids));
  std::fwrite(text.data(), 1, text.size(), stdout);
  fmt::print("\n");
}

void add_train(CLI::App& app) {
  auto o = std::make_shared<TrainOptions>();
  auto* command = app.add_subcommand("train", "make a vocabulary from a text");
  command->add_option("--input", o->input, "text file")->required();
  command
      ->add_option("--vocab-size", o->vocab_size, "tokens, with 2 special ones and the 256 bytes")
      ->required();
  command->add_option("--output", o->output, "directory for tokenizer.json")->required();
  command
      ->add_option("--held-out", o->held_out,
                   "last share of the bytes to leave unseen, as data.held_out does")
      ->capture_default_str();
  command->add_option("--special", o->special,
                      "special tokens in the order of their ids from 0, may be repeated; default: "
                      "<|begin_of_sentence|> and <|end_of_sentence|>");
  command->footer(
      "Example: hadal tokenizer train --input kjv.txt --vocab-size 2048 --output data/kjv");
  command->callback([o] { train(*o); });
}

void add_encode(CLI::App& app) {
  auto o = std::make_shared<CodeOptions>();
  auto* command = app.add_subcommand(
      "encode", "text to token ids; reads standard input without --text or --file");
  command->add_option("--tokenizer", o->tokenizer, "tokenizer.json, or a directory that holds one")
      ->required();
  command->add_option("--text", o->text, "text to encode");
  command->add_option("--file", o->file, "file to encode");
  command->add_option("--json-lines", o->json_lines,
                      "file of lines, each a JSON text or a list of bytes; prints a line for each");
  command->add_flag("--json", o->json, "print the ids as a JSON list");
  command->footer(
      "Example: hadal tokenizer encode --tokenizer data/kjv --text \"In the beginning\"");
  command->callback([o] { encode(*o); });
}

void add_decode(CLI::App& app) {
  auto o = std::make_shared<CodeOptions>();
  auto* command = app.add_subcommand("decode", "token ids to text");
  command->add_option("--tokenizer", o->tokenizer, "tokenizer.json, or a directory that holds one")
      ->required();
  command->add_option("--ids", o->ids, "token ids: 5,9,200");
  command->add_option("--json-lines", o->json_lines,
                      "file of lines, each a JSON list of ids; prints a JSON text for each, or a "
                      "list of bytes if they are no UTF-8");
  command->footer("Example: hadal tokenizer decode --tokenizer data/kjv --ids 5,9,200");
  command->callback([o] { decode(*o); });
}

}  // namespace

io::Tokenizer open_tokenizer(const std::string& path) {
  return io::Tokenizer::load(fs::is_directory(path) ? resolve_model(path) + "/tokenizer.json"
                                                    : path);
}

void add_tokenizer_command(CLI::App& app) {
  auto* command = app.add_subcommand("tokenizer", "train a vocabulary, encode, decode, measure");
  command->require_subcommand(1);
  add_train(*command);
  add_encode(*command);
  add_decode(*command);
  add_tokenizer_bench(*command);
}

}  // namespace hadal::cli
