// LinkCheck: ping-pong of every pair.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/link_check.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <functional>
#include <numeric>
#include <thread>

#include "core/check.h"
#include "core/env.h"
#include "core/rng.h"
#include "core/timer.h"
#include "core/transfer.h"

namespace hadal {
namespace {

constexpr int kPings = 50;  // of a round; their mean is the round's latency
// A link that looks slow is measured so many times more, since the machine may have been busy.
constexpr int kAgain = 3;

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
      const Timer trip;
      if (world_.rank() < peer_) world_.send(ctx_, out, peer_);
      world_.recv(ctx_, Tensor(in), peer_);
      if (world_.rank() > peer_) world_.send(ctx_, out, peer_);
      // Slower than the machine, whatever else that does.
      if (env::sabotage() == "slow_rank" && world_.rank() == 1)
        std::this_thread::sleep_for(
            std::chrono::duration<double>(std::clamp(20.0 * trip.seconds(), 1e-3, 0.2)));
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
constexpr size_t kFields = 3;

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
  Typical() = default;
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

// Which links stand out among those of their kind.
class Usual {
 public:
  Usual(const std::vector<Link>& links, const LinkCheckOptions& options) : options_(options) {
    std::vector<Link> within, across;
    for (const Link& l : links) (is_within(l) ? within : across).push_back(l);
    within_ = Typical(within);
    across_ = Typical(across);
    any_ = within.empty() ? across_ : within_;
  }
  bool is_within(const Link& l) const {
    const std::vector<int>& host = options_.host_of_rank;
    return host.empty() || host[static_cast<size_t>(l.a)] == host[static_cast<size_t>(l.b)];
  }
  const Typical& of(const Link& l) const { return is_within(l) ? within_ : across_; }
  const Typical& of_any() const { return any_; }
  bool is_slow(const Link& l) const {
    return l.bytes_per_second * options_.slow_factor < of(l).rate ||
           l.latency_seconds > of(l).latency * options_.slow_factor;
  }

 private:
  const LinkCheckOptions& options_;
  Typical within_, across_, any_;
};

std::vector<std::string> problems_of(const std::vector<Link>& links, int num_ranks,
                                     const LinkCheckOptions& options) {
  const Usual usual(links, options);
  std::vector<std::string> problems;
  std::vector<bool> slow_rank;
  for (int r = 0; r < num_ranks; ++r) {
    slow_rank.push_back(num_ranks > 2 &&
                        std::all_of(links.begin(), links.end(), [&](const Link& l) {
                          return (l.a != r && l.b != r) || usual.is_slow(l);
                        }));
    if (slow_rank.back())
      problems.push_back(concat("rank ", r, ": all its links are slow; the typical link has ",
                                figures(usual.of_any().latency, usual.of_any().rate)));
  }
  for (const Link& l : links) {
    const std::string pair = concat("ranks ", l.a, " and ", l.b);
    if (l.wrong_bytes > 0)
      problems.push_back(concat(pair, ": ", l.wrong_bytes,
                                " bytes arrived otherwise than they were sent; do not train over "
                                "this link"));
    if (usual.is_slow(l) && !slow_rank[static_cast<size_t>(l.a)] &&
        !slow_rank[static_cast<size_t>(l.b)])
      problems.push_back(concat(pair, ": their link is slow, ",
                                figures(l.latency_seconds, l.bytes_per_second),
                                "; the typical link ", usual.is_within(l) ? "" : "between hosts ",
                                "has ", figures(usual.of(l).latency, usual.of(l).rate)));
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

// Measures those links, one after the other; of what was known of them the better counts.
void measure(Context& ctx, Comm& world, const LinkCheckOptions& options,
             const std::vector<int64_t>& which, std::vector<Link>* links) {
  if (which.empty()) return;
  const int me = world.rank();
  std::vector<double> mine(which.size() * kFields);
  for (size_t i = 0; i < which.size(); ++i) {
    const Link& l = (*links)[static_cast<size_t>(which[i])];
    world.barrier();
    if (me != l.a && me != l.b) continue;
    const Link seen = End(ctx, world, me == l.a ? l.b : l.a, options).measure();
    double* fields = mine.data() + i * kFields;
    if (me == l.a) {
      fields[0] = seen.latency_seconds;
      fields[1] = seen.bytes_per_second;
    }
    fields[2] = static_cast<double>(seen.wrong_bytes);
  }
  Tensor sums;
  const Block sums_memory =
      ctx.memory.take_tensor(DType::kF64, {static_cast<int64_t>(mine.size())}, &sums);
  upload(ctx, mine, sums);
  world.all_reduce(ctx, sums);
  mine = download<double>(ctx, sums);
  for (size_t i = 0; i < which.size(); ++i) {
    const double* fields = mine.data() + i * kFields;
    Link& l = (*links)[static_cast<size_t>(which[i])];
    const bool is_new = l.bytes_per_second == 0.0;
    l.latency_seconds = is_new ? fields[0] : std::min(l.latency_seconds, fields[0]);
    l.bytes_per_second = std::max(l.bytes_per_second, fields[1]);
    l.wrong_bytes = std::max(l.wrong_bytes, static_cast<int64_t>(fields[2]));
  }
}

}  // namespace

LinkReport check_links(Context& ctx, Comm& world, const LinkCheckOptions& options) {
  const int N = world.size(), me = world.rank();
  LinkReport report;
  for (int a = 0; a < N; ++a)
    for (int b = a + 1; b < N; ++b) report.links.push_back({.a = a, .b = b});

  const bool other = env::sabotage() == "other_build" && me == 1;
  Tensor build, builds;
  const Block builds_memory = ctx.memory.take_tensor(DType::kI64, {N}, &builds);
  build = builds.rows(me, 1);
  upload(ctx, std::vector<int64_t>{static_cast<int64_t>(options.build) + (other ? 1 : 0)}, build);
  world.all_gather(ctx, build, builds);
  if (env::sabotage() == "mute_rank" && me == 1) kill(getpid(), SIGSTOP);

  std::vector<int64_t> all(report.links.size());
  std::iota(all.begin(), all.end(), int64_t{0});
  measure(ctx, world, options, all, &report.links);
  for (int again = 0; again < kAgain; ++again) {
    const Usual usual(report.links, options);
    std::vector<int64_t> slow;
    for (const int64_t i : all)
      if (usual.is_slow(report.links[static_cast<size_t>(i)])) slow.push_back(i);
    if (slow.empty()) break;
    measure(ctx, world, options, slow, &report.links);
  }
  report.problems = other_builds(download<int64_t>(ctx, builds));
  for (std::string& problem : problems_of(report.links, N, options))
    report.problems.push_back(std::move(problem));
  return report;
}

}  // namespace hadal
