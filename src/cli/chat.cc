// hadal chat: talk with a model in the terminal, or line by line from another program.
//
// ctrl-c stops a reply; another one before the next line ends the program.
// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/model_run.h"
#include "core/check.h"
#include "core/timer.h"
#include "io/atomic.h"
#include "io/json.h"
#include "serve/conversation.h"

namespace hadal::cli {
namespace {

struct Options {
  ModelOptions model;
  SamplingOptions sampling{.temperature = 0.6, .top_p = 0.95};
  SpeculateOptions speculation;
  std::string system, chat_template;
  int64_t max_tokens = 1024, context = 0;
  bool thinking = false;
};

constexpr const char* kHelp =
    "/help               this list\n"
    "/reset              forget all turns\n"
    "/system TEXT        set the system prompt and forget all turns\n"
    "/set NAME VALUE     NAME: temperature, top_p, top_k, max_tokens, seed, thinking (0 or 1)\n"
    "/save FILE          write the conversation as JSON\n"
    "/exit               leave; so does ctrl-d\n"
    "ctrl-c stops a reply, a second one ends the program.\n";

std::atomic<int> interrupts{0};

void on_interrupt(int) {
  if (interrupts.fetch_add(1) == 0) return;
  // Only what is allowed in a signal handler.
  const char line = '\n';
  [[maybe_unused]] const auto written = ::write(STDOUT_FILENO, &line, 1);
  ::_exit(130);
}

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  ::sigemptyset(&action.sa_mask);
  action.sa_flags = 0;  // reading a line ends, instead of going on
  ::sigaction(SIGINT, &action, nullptr);
}

double parse_number(const std::string& name, const std::string& text, double low, double high) {
  double value = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  HADAL_CHECK(
      error == std::errc() && end == text.data() + text.size() && value >= low && value <= high,
      name, " is \"", text, "\"; allowed: ", low, " to ", high);
  return value;
}

void set(serve::Conversation::Settings& s, const std::string& name, const std::string& value) {
  const auto whole = [&](double low) {
    return static_cast<int64_t>(parse_number(name, value, low, 1e9));
  };
  if (name == "temperature") {
    s.sampling.temperature = parse_number(name, value, 0.0, 100.0);
  } else if (name == "top_p") {
    s.sampling.top_p = parse_number(name, value, 1e-6, 1.0);
  } else if (name == "top_k") {
    s.sampling.top_k = whole(0);
  } else if (name == "max_tokens") {
    s.max_tokens = whole(1);
  } else if (name == "seed") {
    s.sampling.seed = static_cast<uint64_t>(whole(0));
  } else if (name == "thinking") {
    s.thinking = parse_number(name, value, 0.0, 1.0) != 0.0;
  } else {
    HADAL_FAIL("there is no setting \"", name,
               "\"; allowed: temperature, top_p, top_k, max_tokens, seed, thinking");
  }
}

void save(const serve::Conversation& conversation, const std::string& path) {
  HADAL_CHECK(!path.empty(), "/save needs a file name");
  io::Json messages = io::Json::array();
  for (const io::ChatMessage& m : conversation.messages())
    messages.push_back({{"role", m.role}, {"content", m.content.value_or("")}});
  io::write_json(path, {{"messages", messages}});
  fmt::print("saved to {}\n", path);
}

// The part before the first blank, and the rest without blanks around it.
std::pair<std::string, std::string> split(const std::string& text) {
  const size_t blank = text.find(' ');
  const size_t rest = text.find_first_not_of(' ', blank);
  if (rest == text.npos) return {text.substr(0, blank), ""};
  return {text.substr(0, blank), text.substr(rest, text.find_last_not_of(' ') + 1 - rest)};
}

// False to leave.
bool run_command(serve::Conversation& conversation, const std::string& line) {
  const auto [command, rest] = split(line);
  if (command == "/exit" || command == "/quit") return false;
  if (command == "/help") {
    fmt::print("{}", kHelp);
  } else if (command == "/reset") {
    conversation.reset();
    fmt::print("forgotten\n");
  } else if (command == "/system") {
    conversation.reset(rest);
    fmt::print("{}\n", rest.empty() ? "no system prompt" : "system prompt set");
  } else if (command == "/set") {
    const auto [name, value] = split(rest);
    set(conversation.settings, name, value);
    fmt::print("{} is {}\n", name, value);
  } else if (command == "/save") {
    save(conversation, rest);
  } else {
    HADAL_FAIL("there is no command ", command, "; /help lists them");
  }
  return true;
}

void answer(serve::Conversation& conversation, const std::string& line, bool terminal) {
  const Timer timer;
  const serve::Conversation::Reply reply = conversation.reply(line, [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
    return true;
  });
  fmt::print("\n");
  if (!terminal) return;
  const double speed = static_cast<double>(reply.num_tokens) / std::max(timer.seconds(), 1e-9);
  std::string drafts;
  if (conversation.settings.speculate > 0)
    drafts = fmt::format(", first draft accepted {:.1f}%", 100.0 * reply.acceptance);
  fmt::print(stderr, "\x1b[2m[{} tokens, {:.1f} tokens/s{}{}]\x1b[0m\n", reply.num_tokens, speed,
             drafts,
             reply.complete          ? ""
             : interrupts.load() > 0 ? ", stopped"
                                     : ", cut at max_tokens or the end of the context");
}

void talk(serve::Conversation& conversation) {
  const bool terminal = ::isatty(STDIN_FILENO) != 0;
  if (terminal) fmt::print("/help lists the commands; /exit leaves.\n");
  for (std::string line;;) {
    if (terminal) fmt::print("\x1b[1m> \x1b[0m");
    std::fflush(stdout);
    if (!std::getline(std::cin, line)) {
      if (interrupts.load() == 0 || std::cin.bad()) break;
      // ctrl-c while waiting.
      std::cin.clear();
      ::clearerr(stdin);
      fmt::print("\nctrl-c again or /exit leaves\n");
      continue;
    }
    interrupts = 0;
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    try {
      if (line[0] != '/') {
        answer(conversation, line, terminal);
      } else if (!run_command(conversation, line)) {
        return;
      }
    } catch (const PeerFailure&) {
      throw;  // a rank of the model is gone
    } catch (const Error& error) {
      fmt::print("{}\n", error.what());
    }
  }
  if (terminal) fmt::print("\n");
}

void run(const Options& o) {
  o.model.check();
  o.sampling.check();
  o.speculation.check();
  HADAL_CHECK(o.max_tokens >= 1, "--max-tokens is ", o.max_tokens, "; give 1 or more");
  const std::string dir = resolve_model(o.model.model);
  const io::ChatTemplate chat_template = o.chat_template.empty()
                                             ? io::ChatTemplate::of_model(dir)
                                             : io::ChatTemplate::named(o.chat_template);
  const OpenedModel model(o.model.model, o.model.dtype);
  o.speculation.check(model.config());
  const io::Tokenizer tokenizer = model.tokenizer();
  chat_template.check_tokens(tokenizer);
  const int64_t longest = model.config().max_position_embeddings;
  const int64_t context = o.context > 0 ? o.context : std::min<int64_t>(longest, 8192);
  HADAL_CHECK(context >= 2 && context <= longest, "--context is ", context,
              "; allowed: 2 to max_position_embeddings = ", longest);
  const Decoder::Limits limits = limits_of_one(model, o.model, context, o.speculation.speculate);
  const PlanInput plan{.model = model,
                       .options = o.model,
                       .limits = limits,
                       .num_logits = 1,
                       .num_states = (1 + limits.num_mtp) * limits.max_tokens};
  check_ranks_of(plan);
  run_model(plan, [&](ModelLead& lead) {
    Decoder decoder = lead.decoder(limits);
    serve::Conversation conversation(lead.ctx, decoder, tokenizer, chat_template,
                                     model.config().eos_token_ids);
    conversation.should_stop = [] { return interrupts.load() > 0; };
    conversation.settings.sampling = o.sampling.rule();
    conversation.settings.max_tokens = o.max_tokens;
    conversation.settings.speculate = o.speculation.speculate;
    conversation.settings.thinking = o.thinking;
    conversation.reset(o.system);
    catch_interrupts();
    talk(conversation);
  });
}

}  // namespace

void add_chat_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("chat", "talk with a model; a line of input is a turn");
  o->model.add_to(*command);
  command->add_option("--chat-template", o->chat_template,
                      "deepseek-v3, deepseek-v3-0324, deepseek-r1 or deepseek-v3.1; without it, "
                      "by chat_template in tokenizer_config.json");
  command->add_option("--system", o->system, "system prompt");
  command->add_flag("--thinking", o->thinking, "let deepseek-v3.1 reason before it replies");
  command->add_option("--max-tokens", o->max_tokens, "tokens of one reply")->capture_default_str();
  o->sampling.add_to(*command);
  o->speculation.add_to(*command);
  command->add_option("--context", o->context,
                      "tokens of the whole conversation; 0 is the model's, at most 8192");
  command->footer("Example: hadal chat --model DeepSeek-V3 --system \"Answer briefly.\"");
  command->callback([o] { run(*o); });
}

}  // namespace hadal::cli
