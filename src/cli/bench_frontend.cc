// hadal bench frontend: the HTTP server and the API without a model, loaded by a client of the same
// process.
//
// With a stub for the engine (server/stub_server.h), what is measured is parsing, scheduling of
// replies, JSON, events, chunks and sockets, on both sides.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include "cli/bench.h"
#include "cli/bench_load.h"
#include "cli/serve.h"
#include "server/files.h"
#include "server/stub_server.h"

namespace hadal::cli {
namespace {

using nlohmann::json;

struct Options {
  LoadShape shape;
  std::string picture;
};

void run(const Options& o) {
  o.shape.check();
  const int64_t streams = o.shape.max_open() == 0 ? o.shape.requests : o.shape.max_open();
  server::allow_files(2 * streams);  // both ends
  server::ModelInfo info;
  info.id = "stub";
  info.vocab_size = o.shape.vocab;
  info.context = o.shape.prompt_tokens + o.shape.output_tokens;
  server::StubServer stub(info, {.port = 0, .max_connections = streams});

  LoadShape shape = o.shape;
  shape.model = info.id;
  const server::LoadResult result =
      server::run_load({.url = {.host = "127.0.0.1", .port = std::to_string(stub.port())},
                        .max_open = shape.max_open()},
                       make_requests(shape));
  json row = load_row(result);
  row.update({{"commit", built_commit()},
              {"requests", shape.requests},
              {"concurrency", shape.max_open()},
              {"steps", stub.num_steps()}});
  fmt::print("{}\n", row.dump());
  if (!o.picture.empty()) draw_load(result, "the front end alone", o.picture);
}

}  // namespace

void add_bench_frontend_command(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  o->shape.requests = o->shape.concurrency = 2000;
  o->shape.prompt_tokens = 16;
  o->shape.output_tokens = 200;
  auto* command =
      bench.add_subcommand("frontend", "the server without a model: chunks per second, streams");
  add_load_options(*command, o->shape);
  command->add_option("--picture", o->picture, "write distributions and rate to this SVG file");
  command->footer("Example: hadal bench frontend --requests 2000 --concurrency 2000");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
