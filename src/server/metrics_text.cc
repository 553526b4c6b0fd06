// The engine's counters as Prometheus reads them; names as vLLM's where it has the same.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "server/service.h"

namespace hadal::server {
namespace {

class Writer {
 public:
  explicit Writer(const std::string& model)
      : label_(fmt::format("model_name={}", dump(io::Json(model)))) {}

  void gauge(const char* name, const char* help, double value) { one(name, help, "gauge", value); }
  void counter(const char* name, const char* help, int64_t value) {
    one(name, help, "counter", static_cast<double>(value));
  }
  void histogram(const char* name, const char* help, const serve::Histogram& h) {
    head(name, help, "histogram");
    int64_t below = 0;
    for (size_t i = 0; i < h.counts().size(); ++i) {
      below += h.counts()[i];
      const std::string bound =
          i < h.kBounds.size() ? fmt::format("{}", h.kBounds[i]) : std::string("+Inf");
      text_ += fmt::format("hadal:{}_bucket{{{},le=\"{}\"}} {}\n", name, label_, bound, below);
    }
    text_ += fmt::format("hadal:{}_sum{{{}}} {}\nhadal:{}_count{{{}}} {}\n", name, label_, h.sum(),
                         name, label_, h.count());
  }
  void head(const char* name, const char* help, const char* type) {
    text_ += fmt::format("# HELP hadal:{} {}\n# TYPE hadal:{} {}\n", name, help, name, type);
  }
  void labelled(const char* name, const char* key, const char* value, int64_t count) {
    text_ += fmt::format("hadal:{}{{{},{}=\"{}\"}} {}\n", name, label_, key, value, count);
  }
  std::string text() && { return std::move(text_); }

 private:
  void one(const char* name, const char* help, const char* type, double value) {
    head(name, help, type);
    text_ += fmt::format("hadal:{}{{{}}} {}\n", name, label_, value);
  }
  std::string label_, text_;
};

}  // namespace

std::string metrics_text(const serve::EngineStats& s, const std::string& model) {
  Writer w(model);
  w.gauge("num_requests_running", "Sequences that run.", static_cast<double>(s.num_running));
  w.gauge("num_requests_waiting", "Sequences that wait.", static_cast<double>(s.num_waiting));
  w.gauge("kv_cache_usage_perc", "Part of the cache's pages in use, 0 to 1.",
          static_cast<double>(s.num_pages_in_use) /
              static_cast<double>(std::max<int64_t>(1, s.num_pages)));
  w.gauge("kv_cache_pages", "Pages of the cache.", static_cast<double>(s.num_pages));
  w.gauge("prefix_cache_pages", "Pages kept for prefixes, in use by none.",
          static_cast<double>(s.num_pages_cached));
  w.counter("prefix_cache_queries_total", "Prompt tokens that were looked up.", s.prefix_queries);
  w.counter("prefix_cache_hits_total", "Prompt tokens that were found.", s.prefix_hits);
  w.counter("prefix_cache_evictions_total", "Pages given to something else.", s.num_evictions);
  w.counter("prompt_tokens_total", "Prompt tokens of requests that got to their first token.",
            s.prompt_tokens);
  w.counter("generation_tokens_total", "Tokens generated.", s.generated_tokens);
  w.counter("num_preemptions_total", "Sequences that gave up their pages.", s.num_preemptions);
  w.counter("spec_decode_num_draft_tokens_total", "Drafts verified.", s.num_drafted);
  w.counter("spec_decode_num_accepted_tokens_total", "Drafts accepted.", s.num_accepted);
  w.counter("requests_submitted_total", "Sequences accepted.", s.num_submitted);
  w.counter("requests_rejected_total", "Sequences refused because the queue was full.",
            s.num_rejected);
  w.head("request_success_total", "Sequences that ended, by reason.", "counter");
  for (size_t i = 0; i < s.num_finished.size(); ++i)
    w.labelled("request_success_total", "finished_reason",
               serve::finish_name(static_cast<serve::Finish>(i)), s.num_finished[i]);
  w.counter("engine_steps_total", "Steps of the model.", s.num_steps);
  w.counter("engine_step_tokens_total", "Tokens that went through the model.", s.num_step_tokens);
  w.gauge("engine_step_seconds_total", "Seconds spent in steps.", s.step_seconds);
  w.gauge("device_busy_seconds_total", "Seconds that the GPU spent in steps.",
          s.device_busy_seconds);
  w.gauge("device_idle_seconds_total", "Seconds that it waited for the next step.",
          s.device_idle_seconds);
  w.histogram("request_queue_time_seconds", "From arrival until it runs.", s.queue);
  w.histogram("request_prefill_time_seconds", "From then to the first token.", s.prefill);
  w.histogram("request_decode_time_seconds", "From the first token to the end.", s.decode);
  w.histogram("time_to_first_token_seconds", "From arrival to the first token.", s.first_token);
  w.histogram("inter_token_latency_seconds", "Between two steps that brought tokens.",
              s.between_tokens);
  w.histogram("e2e_request_latency_seconds", "From arrival to the end.", s.whole);
  return std::move(w).text();
}

}  // namespace hadal::server
