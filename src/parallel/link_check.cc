// LinkCheck: ping-pong of every pair.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/link_check.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <functional>
#include <thread>

#include "core/check.h"
#include "core/env.h"
#include "core/rng.h"
#include "core/timer.h"
#include "core/transfer.h"

namespace hadal {
namespace {

constexpr int kPings = 50;  // of a round; their mean is the round's latency

// What rank `from` sends to rank `to`.
std::vector<int64_t> payload(int from, int to, int64_t words) {
  const Rng rng(static_cast<uint64_t>(from), stream_id(concat("link to ", to)));
  std::vector<int64_t> values(static_cast<size_t>(words));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int64_t>(rng.u64(i));
  return values;
}

int64_t wrong_bytes(const std::vector<int64_t>& got, const std::vector<int64_t>& want) {
  const auto* a = reinterpret_cast<const char*>(got.data());
  const auto* b = reinterpret_cast<const char*>(want.data());
  int64_t wrong = 0;
  for (size_t i = 0; i < want.size() * sizeof(int64_t); ++i) wrong += a[i] != b[i] ? 1 : 0;
  return wrong;
}

// One rank's half of a pair.
class End {
 public:
  End(Context& ctx, Comm& world, int peer, const LinkCheckOptions& options)
      : ctx_(ctx), world_(world), peer_(peer), options_(options) {
    const int64_t words = options.large_bytes / 8;
    out_memory_ = ctx.memory.take_tensor(DType::kI64, {words}, &out_);
    in_memory_ = ctx.memory.take_tensor(DType::kI64, {words}, &in_);
    std::vector<int64_t> values = payload(world.rank(), peer, words);
    if (env::sabotage() == "flip_bit" && world.rank() == 1) values[values.size() / 2] ^= 1;
    upload(ctx, values, out_);
  }

  Link measure() {
    Link link;
    link.latency_seconds = 1e9;
    double seconds = 1e9;
    for (int round = 0; round < options_.rounds; ++round) {
      link.latency_seconds =
          std::min(link.latency_seconds, back_and_forth(out_.rows(0, 0), in_.rows(0, 0), kPings));
      seconds = std::min(seconds, back_and_forth(out_, in_, 1));
    }
    link.bytes_per_second = static_cast<double>(options_.large_bytes) / seconds;
    link.wrong_bytes = wrong_bytes(download<int64_t>(ctx_, in_),
                                   payload(peer_, world_.rank(), options_.large_bytes / 8));
    return link;
  }

 private:
  // Seconds of one message one way, from the first rank's view: it sends, the other answers.
  double back_and_forth(const Tensor& out, const Tensor& in, int times) {
    const Timer timer;
    for (int i = 0; i < times; ++i) {
      if (env::sabotage() == "slow_rank" && world_.rank() == 1)
        std::this_thread::sleep_for(std::chrono::milliseconds(times > 1 ? 2 : 20));
      if (world_.rank() < peer_) world_.send(ctx_, out, peer_);
      world_.recv(ctx_, Tensor(in), peer_);
      if (world_.rank() > peer_) world_.send(ctx_, out, peer_);
    }
    return timer.seconds() / (2.0 * times);
  }

  Context& ctx_;
  Comm& world_;
  int peer_;
  const LinkCheckOptions& options_;
  Block out_memory_, in_memory_;
  Tensor out_, in_;
};

// What a pair saw: latency and rate of the lower rank, wrong bytes of both.
constexpr int64_t kFields = 3;

// The better of the two middle ones, so that one bad rank among four is not the rule.
template <class Better>
double typical(std::vector<double> values, Better better) {
  std::sort(values.begin(), values.end(), better);
  return values.empty() ? 0.0 : values[(values.size() - 1) / 2];
}

std::string figures(double latency, double rate) {
  return concat(std::round(latency * 1e7) / 10, " us and ", std::round(rate * 1e-7) / 100, " GB/s");
}

// The typical link of those.
struct Typical {
  explicit Typical(const std::vector<Link>& links) {
    std::vector<double> latencies, rates;
    for (const Link& l : links) {
      latencies.push_back(l.latency_seconds);
      rates.push_back(l.bytes_per_second);
    }
    latency = typical(latencies, std::less<>());
    rate = typical(rates, std::greater<>());
  }
  double latency = 0.0, rate = 0.0;
};

std::vector<std::string> problems_of(const std::vector<Link>& links, int num_ranks,
                                     const LinkCheckOptions& options) {
  const double factor = options.slow_factor;
  const auto is_within = [&](const Link& l) {
    const std::vector<int>& host = options.host_of_rank;
    return host.empty() || host[static_cast<size_t>(l.a)] == host[static_cast<size_t>(l.b)];
  };
  std::vector<Link> within, across;
  for (const Link& l : links) (is_within(l) ? within : across).push_back(l);
  const Typical of_within(within), of_across(across);
  const auto typical_of = [&](const Link& l) { return is_within(l) ? of_within : of_across; };
  const auto is_slow = [&](const Link& l) {
    return l.bytes_per_second * factor < typical_of(l).rate ||
           l.latency_seconds > typical_of(l).latency * factor;
  };
  const Typical& usual = within.empty() ? of_across : of_within;
  std::vector<std::string> problems;
  std::vector<bool> slow_rank;
  for (int r = 0; r < num_ranks; ++r) {
    slow_rank.push_back(num_ranks > 2 &&
                        std::all_of(links.begin(), links.end(), [&](const Link& l) {
                          return (l.a != r && l.b != r) || is_slow(l);
                        }));
    if (slow_rank.back())
      problems.push_back(concat("rank ", r, ": all its links are slow; the typical link has ",
                                figures(usual.latency, usual.rate)));
  }
  for (const Link& l : links) {
    const std::string pair = concat("ranks ", l.a, " and ", l.b);
    if (l.wrong_bytes > 0)
      problems.push_back(concat(pair, ": ", l.wrong_bytes,
                                " bytes arrived otherwise than they were sent; do not train over "
                                "this link"));
    if (is_slow(l) && !slow_rank[static_cast<size_t>(l.a)] && !slow_rank[static_cast<size_t>(l.b)])
      problems.push_back(concat(pair, ": their link is slow, ",
                                figures(l.latency_seconds, l.bytes_per_second),
                                "; the typical link ", is_within(l) ? "" : "between hosts ", "has ",
                                figures(typical_of(l).latency, typical_of(l).rate)));
  }
  return problems;
}

// Ranks whose binary is not that of most of them; on a tie the first rank's counts.
std::vector<std::string> other_builds(const std::vector<int64_t>& builds) {
  int64_t common = builds[0];
  for (const int64_t b : builds)
    if (std::count(builds.begin(), builds.end(), b) >
        std::count(builds.begin(), builds.end(), common))
      common = b;
  std::vector<std::string> problems;
  for (size_t r = 0; r < builds.size(); ++r)
    if (builds[r] != common)
      problems.push_back(concat("rank ", r,
                                " runs another build of hadal than the others; install "
                                "the same one on its host"));
  return problems;
}

}  // namespace

LinkReport check_links(Context& ctx, Comm& world, const LinkCheckOptions& options) {
  const int N = world.size(), me = world.rank();
  LinkReport report;
  for (int a = 0; a < N; ++a)
    for (int b = a + 1; b < N; ++b) report.links.push_back({.a = a, .b = b});
  const auto num_links = static_cast<int64_t>(report.links.size());

  const bool other = env::sabotage() == "other_build" && me == 1;
  Tensor build, builds;
  const Block builds_memory = ctx.memory.take_tensor(DType::kI64, {N}, &builds);
  build = builds.rows(me, 1);
  upload(ctx, std::vector<int64_t>{static_cast<int64_t>(options.build) + (other ? 1 : 0)}, build);
  world.all_gather(ctx, build, builds);
  if (env::sabotage() == "mute_rank" && me == 1) kill(getpid(), SIGSTOP);

  std::vector<double> mine(static_cast<size_t>(num_links * kFields));
  for (size_t i = 0; i < report.links.size(); ++i) {
    const Link& l = report.links[i];
    world.barrier();
    if (me != l.a && me != l.b) continue;
    const Link seen = End(ctx, world, me == l.a ? l.b : l.a, options).measure();
    double* fields = mine.data() + static_cast<int64_t>(i) * kFields;
    if (me == l.a) {
      fields[0] = seen.latency_seconds;
      fields[1] = seen.bytes_per_second;
    }
    fields[2] = static_cast<double>(seen.wrong_bytes);
  }
  if (num_links > 0) {
    Tensor sums;
    const Block sums_memory = ctx.memory.take_tensor(DType::kF64, {num_links * kFields}, &sums);
    upload(ctx, mine, sums);
    world.all_reduce(ctx, sums);
    mine = download<double>(ctx, sums);
  }
  for (size_t i = 0; i < report.links.size(); ++i) {
    const double* fields = mine.data() + static_cast<int64_t>(i) * kFields;
    report.links[i].latency_seconds = fields[0];
    report.links[i].bytes_per_second = fields[1];
    report.links[i].wrong_bytes = static_cast<int64_t>(fields[2]);
  }
  report.problems = other_builds(download<int64_t>(ctx, builds));
  for (std::string& problem : problems_of(report.links, N, options))
    report.problems.push_back(std::move(problem));
  return report;
}

}  // namespace hadal
