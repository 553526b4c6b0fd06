// Metrics: JSON lines and the progress bar.
// SPDX-License-Identifier: Apache-2.0
#include "train/metrics.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>

#include "core/check.h"
#include "io/atomic.h"

namespace hadal::train {
namespace {

double mean(int64_t sum, int64_t count) {
  return static_cast<double>(sum) / static_cast<double>(count);
}

constexpr double kSmooth = 0.05;      // weight of the newest step in the average step time
constexpr double kShowEvery = 0.25;   // seconds between redraws of the bar
constexpr double kPlainEvery = 10.0;  // seconds between lines where stdout is not a terminal

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  return s >= 3600 ? fmt::format("{}h{:02}m", s / 3600, s / 60 % 60)
                   : fmt::format("{}m{:02}s", s / 60, s % 60);
}

// Keeps the lines whose "step" is at most last_step, and all events if asked to, and returns them;
// a damaged last line (from a crash) goes too.
std::vector<io::Json> cut_after(const std::string& path, int64_t last_step, bool keep_events) {
  std::vector<io::Json> lines;
  if (!std::filesystem::exists(path)) return lines;
  const std::string text = io::read_file(path, std::numeric_limits<size_t>::max());
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    io::Json line = io::Json::parse(text.substr(begin, end - begin), nullptr, false);
    if (line.is_object() && line.contains("step") && line["step"].is_number_integer() &&
        (line["step"].get<int64_t>() <= last_step || (keep_events && line.contains("event")))) {
      kept.append(text, begin, end + 1 - begin);
      lines.push_back(std::move(line));
    }
    begin = end + 1;
  }
  io::write_file_atomic(path, kept);
  return lines;
}

double unix_seconds() {
  using std::chrono::duration;
  return duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

Metrics::Metrics(const std::string& output, int64_t last_step)
    : path_(output + "/metrics.jsonl"),
      events_path_(output + "/tensorboard/events.out.tfevents.0.hadal"),
      terminal_(isatty(STDOUT_FILENO) != 0) {
  open(last_step, Events::kCut);
}

void Metrics::open(int64_t last_step, Events events) {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
  const std::vector<io::Json> kept = cut_after(path_, last_step, events == Events::kKeep);
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  HADAL_CHECK(fd_ >= 0, "cannot write ", path_, ": ", io::errno_text());
  events_ = std::make_unique<EventWriter>(events_path_);
  for (const io::Json& line : kept) events_->add(line);
}

Metrics::~Metrics() {
  end_line();
  close(fd_);
}

void Metrics::write(const io::Json& line) {
  const std::string text = line.dump() + "\n";
  HADAL_CHECK(io::write_all(fd_, text.data(), text.size()), "cannot write ", path_, ": ",
              io::errno_text(), "; free some space, then --resume");
  events_->add(line);
}

void Metrics::step(const StepLine& s, const StepResult& r, const Recipe& recipe) {
  const double seconds = since_last_.seconds();
  since_last_ = Timer();
  average_step_seconds_ = average_step_seconds_ == 0.0
                              ? seconds
                              : (1.0 - kSmooth) * average_step_seconds_ + kSmooth * seconds;
  const double bits = r.main / std::numbers::ln2 / s.bytes_per_target;
  io::Json line = {{"step", s.done.steps},
                   {"loss", r.main},
                   {"bits_per_byte", bits},
                   {"mtp_loss", r.mtp},
                   {"balance_loss", r.balance},
                   {"grad_norm", r.grad_norm},
                   {"lr", recipe.lr},
                   {"mtp_weight", recipe.mtp_weight},
                   {"bias_gamma", recipe.bias_gamma},
                   {"max_violation", r.max_violation()},
                   {"sequences", s.sequences},
                   {"tokens", s.tokens},
                   {"total_tokens", s.done.tokens},
                   {"expert_counts", r.counts},
                   {"time",
                    {{"seconds", run_.seconds()},
                     {"unix", unix_seconds()},
                     {"tokens_per_second", static_cast<double>(s.tokens) / seconds}}}};
  if (const ExchangeCounters& e = r.exchange; e.tokens > 0)
    line["exchange"] = {{"ranks_per_token", mean(e.rank_visits, e.tokens)},
                        {"nodes_per_token", mean(e.node_visits, e.tokens)},
                        {"most_nodes", e.most_nodes},
                        {"node_bytes", e.node_bytes},
                        {"link_bytes", e.link_bytes}};
  if (s.skipped) line["skipped"] = true;
  if (r.splits > 0) line["splits"] = r.splits;
  if (s.checkpoint_seconds > 0.0) line["time"]["checkpoint_seconds"] = s.checkpoint_seconds;
  write(line);
  show(s, r, bits);
}

void Metrics::show(const StepLine& s, const StepResult& r, double bits_per_byte) {
  const double now = run_.seconds();
  if (first_progress_ < 0.0) first_progress_ = s.progress;
  if (s.progress < 1.0 && now - last_shown_ < (terminal_ ? kShowEvery : kPlainEvery)) return;
  last_shown_ = now;
  const double gone = s.progress - first_progress_;
  const std::string left =
      gone > 0.0 ? duration(now * (1.0 - s.progress) / gone) + " left" : "time left unknown";
  const std::string text = fmt::format(
      "step {} ({:.1f}%)  loss {:.3f}  bits/byte {:.3f}  MaxVio {:.2f}  {:.0f} tokens/s  {}{}",
      s.done.steps, 100.0 * s.progress, r.main, bits_per_byte, r.max_violation(),
      static_cast<double>(s.tokens) / average_step_seconds_, left, s.skipped ? "  skipped" : "");
  if (terminal_) {
    constexpr int64_t kWidth = 24;
    const auto full = static_cast<int64_t>(kWidth * s.progress);
    fmt::print("\r[{}{}] {}\x1b[K", std::string(static_cast<size_t>(full), '#'),
               std::string(static_cast<size_t>(kWidth - full), '.'), text);
    line_open_ = true;
  } else {
    fmt::print("{}\n", text);
  }
  std::fflush(stdout);
}

void Metrics::rolled_back(int64_t from, int64_t to) {
  open(to, Events::kKeep);
  // Of the step after, so that a run resumed at `to` writes this line again when it gets here.
  write({{"step", to + 1}, {"event", "roll_back"}, {"from", from}});
  end_line();
  fmt::print(
      "step {}: the loss spiked; back to the checkpoint of step {}, on with the data after\n", from,
      to);
  std::fflush(stdout);
}

void Metrics::evaluation(int64_t step, double loss, double bits_per_byte,
                         const std::vector<double>& mtp, double max_violation) {
  write({{"step", step},
         {"held_out_loss", loss},
         {"held_out_bits_per_byte", bits_per_byte},
         {"held_out_mtp_loss", mtp},
         {"held_out_max_violation", max_violation},
         {"time", {{"seconds", run_.seconds()}, {"unix", unix_seconds()}}}});
  end_line();
  fmt::print("step {}: held out: loss {:.4f}, {:.4f} bits per byte, MaxVio {:.2f}\n", step, loss,
             bits_per_byte, max_violation);
  std::fflush(stdout);
}

void Metrics::end_line() {
  if (line_open_) fmt::print("\n");
  line_open_ = false;
}

}  // namespace hadal::train
