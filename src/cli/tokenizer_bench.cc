// hadal tokenizer bench: bytes per second of one core, encoding and decoding.
//
// By the processor time of the thread, so that other programs on the machine count only through
// the caches that they share. Texts take turns, so that a slow minute falls on all of them.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>
#include <time.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "cli/tokenizer.h"
#include "core/check.h"
#include "io/atomic.h"

namespace hadal::cli {
namespace {

struct Options {
  std::string tokenizer;
  std::vector<std::string> texts;
  int64_t repeat = 5;
  bool json = false;
};

struct Row {
  std::string file, text;
  size_t num_tokens = 0;
  std::vector<double> encode, decode;  // seconds
};

double thread_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void measure(const io::Tokenizer& tokenizer, Row& row) {
  const double begin = thread_seconds();
  const std::vector<int32_t> ids = tokenizer.encode(row.text);
  const double encoded = thread_seconds();
  const std::string text = tokenizer.decode(ids);
  const double decoded = thread_seconds();
  HADAL_CHECK(text == row.text, row.file, " does not come back from its tokens");
  row.num_tokens = ids.size();
  row.encode.push_back(encoded - begin);
  row.decode.push_back(decoded - encoded);
}

// 10^6 bytes a second at a quantile of the times.
double speed(const Row& row, std::vector<double> seconds, double quantile) {
  std::sort(seconds.begin(), seconds.end());
  const auto last = static_cast<double>(seconds.size() - 1);
  const double at = seconds[static_cast<size_t>(quantile * last + 0.5)];
  return static_cast<double>(row.text.size()) / std::max(at, 1e-9) / 1e6;
}

nlohmann::json to_json(const Row& row, const std::string& tokenizer) {
  const auto speeds = [&](const std::vector<double>& seconds) -> nlohmann::json {
    return {{"median", speed(row, seconds, 0.5)},
            {"p10", speed(row, seconds, 0.9)},
            {"p90", speed(row, seconds, 0.1)}};
  };
  return {{"bench", "tokenizer"},
          {"version", HADAL_VERSION},
          {"tokenizer", tokenizer},
          {"text", row.file},
          {"bytes", row.text.size()},
          {"tokens", row.num_tokens},
          {"repeat", row.encode.size()},
          {"encode_mb_per_cpu_second", speeds(row.encode)},
          {"decode_mb_per_cpu_second", speeds(row.decode)}};
}

void run(const Options& o) {
  HADAL_CHECK(o.repeat >= 1 && o.repeat <= 1000, "--repeat is ", o.repeat, "; allowed: 1 to 1000");
  const io::Tokenizer tokenizer = open_tokenizer(o.tokenizer);
  std::vector<Row> rows;
  for (const std::string& file : o.texts) {
    rows.push_back({.file = file,
                    .text = io::read_file(file, std::numeric_limits<size_t>::max()),
                    .encode = {},
                    .decode = {}});
    HADAL_CHECK(!rows.back().text.empty(), file, " is empty; give a text");
  }
  for (int64_t i = 0; i < o.repeat; ++i)
    for (Row& row : rows) measure(tokenizer, row);
  for (const Row& row : rows) {
    if (o.json) {
      fmt::print("{}\n", to_json(row, o.tokenizer).dump());
      continue;
    }
    fmt::print("{:<24} {:>10} bytes {:>9} tokens   encode {:7.1f} MB/s   decode {:7.1f} MB/s\n",
               row.file, row.text.size(), row.num_tokens, speed(row, row.encode, 0.5),
               speed(row, row.decode, 0.5));
  }
}

}  // namespace

void add_tokenizer_bench(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("bench", "megabytes a second of one core, by processor time");
  command->add_option("--tokenizer", o->tokenizer, "tokenizer.json, or a directory that holds one")
      ->required();
  command->add_option("--text", o->texts, "text file; may be repeated")->required();
  command->add_option("--repeat", o->repeat, "measurements of each text; the median is shown")
      ->capture_default_str();
  command->add_flag("--json", o->json, "print a JSON row for each text");
  command->footer("Example: hadal tokenizer bench --tokenizer data/quickstart --text data/kjv.txt");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
