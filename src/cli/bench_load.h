// What hadal bench serve sends, and what it makes of the answers.
//
// TTFT: from sending a request (its connection included) to the first part of its answer.
// TPOT: the mean over one request's tokens after the first.
// ITL: between two parts of a stream, which may hold several tokens.
// E2E: to the end of the answer.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "server/load_client.h"

namespace hadal::cli {

struct LoadShape {
  std::string model, endpoint = "completions", arrivals = "closed", jsonl, extra_body;
  int64_t requests = 64, concurrency = 0;  // 0: 8 in a closed loop, no limit otherwise
  int64_t prompt_tokens = 128, shared_tokens = 0, output_tokens = 64, vocab = 256;
  double rate = 1.0;  // requests per second
  uint64_t seed = 0;
  bool respect_eos = false;

  // An Error says what cannot be.
  void check() const;
  int64_t max_open() const { return concurrency > 0 ? concurrency : arrivals == "closed" ? 8 : 0; }
};

// The options that every load has.
void add_load_options(CLI::App& command, LoadShape& shape);

// Bodies and times of all requests; a pure function of the shape and the file that it names.
std::vector<server::StreamRequest> make_requests(const LoadShape& shape);

// Counts, rates, errors, and quantiles of TTFT, TPOT, ITL and E2E in milliseconds.
nlohmann::json load_row(const server::LoadResult& result);

// An SVG file: the distributions of the four times, and tokens per second over the run.
void draw_load(const server::LoadResult& result, const std::string& title, const std::string& path);

}  // namespace hadal::cli
