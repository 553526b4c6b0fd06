// Rendezvous: the file, the list, and the connections of every two hosts.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/rendezvous.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>
#include <thread>
#include <type_traits>

namespace hadal {
namespace {

constexpr double kHelloSeconds = 2.0;    // for a peer to say who it is
constexpr double kConnectSeconds = 2.0;  // for an address to answer
constexpr auto kRetry = std::chrono::milliseconds(50);
constexpr const char* kStranger = "the secret of this run is another one";

static_assert(std::is_trivially_copyable_v<Hello> && sizeof(Hello) == sizeof(Greeting) + 416);

template <size_t N>
void put(char (&to)[N], const std::string& text) {
  HADAL_CHECK(text.size() < N, "internal error: ", text, " is longer than ", N - 1, " characters");
  std::memcpy(to, text.c_str(), text.size() + 1);
}

template <size_t N>
std::string text_of(const char (&from)[N]) {
  return {from, strnlen(from, N)};
}

std::vector<std::string> words_of(const std::string& text) {
  std::stringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

std::string joined(const std::vector<std::string>& words, size_t most) {
  std::string text;
  for (const std::string& word : words)
    if (text.size() + word.size() + 1 < most) text += (text.empty() ? "" : " ") + word;
  return text;
}

// "" if there is no such file.
std::string first_line_of(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return "";
  std::string line(1024, '\0');
  line.resize(std::fread(line.data(), 1, line.size(), file));
  std::fclose(file);
  return line.substr(0, line.find('\n'));
}

std::string name_of(const Hello& h) {
  return concat("rank ", h.greeting.rank, " (host ", text_of(h.host), ")");
}

class Start {
 public:
  explicit Start(const RendezvousOptions& options)
      : o_(options), end_(monotonic_seconds() + options.seconds) {
    HADAL_CHECK(o_.rank >= 0 && o_.rank < o_.num_ranks, "this process is rank ", o_.rank, " of ",
                o_.num_ranks, "; ranks count from 0");
    uint16_t port = 0;
    listener_ = listen_anywhere(2 * o_.num_ranks + 8, &port);
    memory_ = Descriptor(memfd_create("hadal", MFD_CLOEXEC));
    HADAL_CHECK(memory_.is_open(), "cannot make shared memory: ", std::strerror(errno));
    me_.greeting.rank = static_cast<uint32_t>(o_.rank);
    me_.build = o_.build;
    me_.config = o_.config;
    me_.num_ranks = static_cast<uint32_t>(o_.num_ranks);
    me_.pid = getpid();
    me_.memory = memory_.fd();
    me_.port = port;
    put(me_.host, o_.host);
    put(me_.addresses, joined(own_addresses(), sizeof(me_.addresses)));
  }
  Start(const Start&) = delete;
  Start& operator=(const Start&) = delete;
  ~Start() {
    if (wrote_file_) unlink(o_.file.c_str());
  }

  Meeting meet() {
    all_.resize(static_cast<size_t>(o_.num_ranks));
    all_[index()] = me_;
    if (o_.rank == 0)
      gather();
    else
      report();
    Meeting m{.rank = o_.rank,
              .members = {},
              .local = {},
              .data = {},
              .status = {},
              .memory = {},
              .seconds = 0.0};
    m.data.resize(all_.size());
    m.status.resize(all_.size());
    for (int r = 0; r < o_.num_ranks; ++r) {
      const Hello& h = all_[static_cast<size_t>(r)];
      m.members.push_back({.host = text_of(h.host), .pid = h.pid});
      if (is_local(r)) m.local.push_back(r);
    }
    connect(m);
    m.memory = open_memory(m.local.front());
    m.seconds = left();
    return m;
  }

 private:
  size_t index() const { return static_cast<size_t>(o_.rank); }
  double left() const { return std::max(0.0, end_ - monotonic_seconds()); }
  bool is_local(int r) const { return text_of(all_[static_cast<size_t>(r)].host) == o_.host; }
  std::string sent_away() const {
    return strangers_ == 0
               ? ""
               : concat("; ", strangers_, " connections of others were refused, the last from ",
                        last_stranger_, ": ", why_stranger_);
  }

  static void refuse(const Socket& s, const std::string& why) {
    Answer answer;
    std::strncpy(answer.why_not, why.c_str(), sizeof(answer.why_not) - 1);
    (void)s.send_all(&answer, sizeof(answer), kHelloSeconds);
  }
  static std::string welcome(const Socket& s) {
    Answer answer;
    answer.welcome = 1;
    return s.send_all(&answer, sizeof(answer), kHelloSeconds);
  }
  void stranger(const Socket& s, const std::string& from, const std::string& why) {
    ++strangers_;
    last_stranger_ = from;
    why_stranger_ = why;
    refuse(s, why);
  }

  // Why this peer cannot be of this world; "" if it can.
  std::string misfit(const Hello& h) const {
    if (h.build != o_.build)
      return concat(name_of(h), " runs another build of hadal than rank ", o_.rank, " (host ",
                    o_.host, "); install the same one everywhere");
    if (h.config != o_.config)
      return concat(name_of(h), " has another config than rank ", o_.rank, " (host ", o_.host,
                    "); start all ranks with the same one");
    if (h.num_ranks != me_.num_ranks)
      return concat(name_of(h), " is one of ", h.num_ranks, " ranks, rank ", o_.rank, " one of ",
                    me_.num_ranks);
    if (h.greeting.rank >= me_.num_ranks) return concat("there is no rank ", h.greeting.rank);
    return "";
  }

  // The next peer that belongs here and who it is; none within the time. Throws if one of this
  // run's does not fit.
  bool next_peer(Socket* peer, Hello* hello) {
    while (left() > 0.0) {
      auto connection = accept_within(listener_, std::min(left(), 1.0));
      if (!connection) continue;
      auto& [socket, from] = *connection;
      Greeting& g = hello->greeting;
      std::string error = socket.receive_all(&g, sizeof(g), kHelloSeconds);
      if (error.empty() && std::memcmp(g.magic, me_.greeting.magic, sizeof(g.magic)) != 0)
        error = "it does not speak hadal's protocol";
      if (error.empty() && std::memcmp(g.token, me_.greeting.token, sizeof(g.token)) != 0)
        error = kStranger;
      if (!error.empty()) {
        stranger(socket, from, error);
        continue;
      }
      if (g.protocol != me_.greeting.protocol) {
        const std::string why =
            concat("rank ", g.rank, " (", from, ") speaks version ", g.protocol,
                   " of hadal's protocol, rank ", o_.rank, " version ", me_.greeting.protocol,
                   "; install the same build everywhere");
        refuse(socket, why);
        HADAL_FAIL(why);
      }
      error = socket.receive_all(reinterpret_cast<char*>(hello) + sizeof(g),
                                 sizeof(Hello) - sizeof(g), kHelloSeconds);
      if (!error.empty()) {
        stranger(socket, from, error);
        continue;
      }
      if (const std::string why = misfit(*hello); !why.empty()) {
        refuse(socket, why);
        HADAL_FAIL(why);
      }
      *peer = std::move(socket);
      return true;
    }
    return false;
  }

  void write_file() {
    std::random_device random;
    for (uint64_t& word : me_.greeting.token) word = (uint64_t{random()} << 32) | random();
    all_[0] = me_;
    const std::string text = concat("hadal ", me_.greeting.token[0], " ", me_.greeting.token[1],
                                    " ", me_.port, " ", me_.addresses, "\n");
    std::string temporary = o_.file + ".XXXXXX";
    const Descriptor fd(mkstemp(temporary.data()));  // that only this user reads
    HADAL_CHECK(fd.is_open() &&
                    write(fd.fd(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
                    rename(temporary.c_str(), o_.file.c_str()) == 0,
                "cannot write ", o_.file, ", where ranks find each other: ", std::strerror(errno),
                "; name a file in a folder that all hosts see with HADAL_RENDEZVOUS");
    wrote_file_ = true;
  }

  // Rank 0: all others come; then each gets the list.
  void gather() {
    write_file();
    std::vector<Socket> peers(all_.size());
    std::string failure;
    try {
      for (int here = 1; here < o_.num_ranks; ++here) {
        Socket peer;
        Hello hello;
        if (!next_peer(&peer, &hello)) break;
        Socket& place = peers[hello.greeting.rank];
        if (hello.greeting.rank == 0 || place.is_open()) {
          const std::string why = concat(name_of(hello), " is there twice");
          refuse(peer, why);
          HADAL_FAIL(why);
        }
        all_[hello.greeting.rank] = hello;
        place = std::move(peer);
      }
      std::vector<std::string> missing;
      for (size_t r = 1; r < peers.size(); ++r)
        if (!peers[r].is_open()) missing.push_back(std::to_string(r));
      HADAL_CHECK(missing.empty(), "ranks that have not come to rank 0 (host ", o_.host,
                  ") within ", o_.seconds, " s: ", joined(missing, 200), sent_away());
    } catch (const Error& e) {
      for (const Socket& peer : peers)
        if (peer.is_open()) refuse(peer, e.what());
      throw;
    }
    for (size_t r = 1; r < peers.size(); ++r) {
      std::string error = welcome(peers[r]);
      if (error.empty())
        error = peers[r].send_all(all_.data(), all_.size() * sizeof(Hello), kHelloSeconds);
      HADAL_CHECK(error.empty(), name_of(all_[r]), " went away at the start: ", error);
    }
  }

  // Another rank: says that it is here, and gets the list.
  void report() {
    std::string why = concat("there is no file ", o_.file,
                             " from rank 0; is its folder on all hosts? "
                             "HADAL_RENDEZVOUS names another");
    while (left() > 0.0) {
      std::stringstream words(first_line_of(o_.file));
      std::string word;
      uint32_t port = 0;
      if (words >> word >> me_.greeting.token[0] >> me_.greeting.token[1] >> port &&
          word == "hadal") {
        std::string rest;
        std::getline(words, rest);
        const Socket s = connect_to(words_of(rest), static_cast<uint16_t>(port),
                                    std::min(left(), kConnectSeconds));
        if (!s.is_open())
          why = concat("rank 0 does not answer at", rest, ", port ", port);
        else if (try_list(s, &why))
          return;
      }
      std::this_thread::sleep_for(kRetry);
    }
    HADAL_FAIL("rank ", o_.rank, " (host ", o_.host, ") has not found the others within ",
               o_.seconds, " s: ", why);
  }

  // False: that was not this run's rank 0, but one of an older file.
  bool try_list(const Socket& s, std::string* why) {
    std::string error = s.send_all(&me_, sizeof(me_), kHelloSeconds);
    Answer answer;
    if (error.empty()) error = s.receive_all(&answer, sizeof(answer), left());
    const std::string refusal = text_of(answer.why_not);
    if (error.empty() && answer.welcome == 0 && refusal != kStranger) HADAL_FAIL(refusal);
    if (error.empty() && answer.welcome == 1) {
      error = s.receive_all(all_.data(), all_.size() * sizeof(Hello), left());
      if (error.empty()) return true;
    }
    *why = concat("rank 0: ", error.empty() ? refusal : error);
    return false;
  }

  // Lower ranks accept, higher ones connect; nobody waits for an answer before all have called.
  void connect(Meeting& m) {
    constexpr Channel kChannels[] = {Channel::kData, Channel::kStatus};
    const auto place = [&](Channel c, size_t r) -> Socket& {
      return c == Channel::kData ? m.data[r] : m.status[r];
    };
    size_t expected = 0;
    for (size_t r = 0; r < all_.size(); ++r) {
      if (is_local(static_cast<int>(r))) continue;
      if (r > index()) expected += std::size(kChannels);
      if (r > index()) continue;
      for (const Channel c : kChannels) {
        const std::vector<std::string> addresses = words_of(text_of(all_[r].addresses));
        Socket s = connect_to(addresses, static_cast<uint16_t>(all_[r].port),
                              std::min(left(), kConnectSeconds));
        HADAL_CHECK(s.is_open(), "rank ", o_.rank, " (host ", o_.host, ") cannot reach ",
                    name_of(all_[r]), " at ", text_of(all_[r].addresses), ", port ", all_[r].port,
                    "; hosts need TCP connections between each other");
        me_.channel = static_cast<uint32_t>(c);
        const std::string error = s.send_all(&me_, sizeof(me_), kHelloSeconds);
        HADAL_CHECK(error.empty(), name_of(all_[r]), " went away at the start: ", error);
        place(c, r) = std::move(s);
      }
    }
    while (expected > 0) {
      Socket peer;
      Hello hello;
      HADAL_CHECK(next_peer(&peer, &hello), "rank ", o_.rank, " (host ", o_.host,
                  ") waited in vain for ", expected, " connections of other hosts", sent_away());
      const size_t r = hello.greeting.rank;
      const auto c = static_cast<Channel>(hello.channel);
      const bool fits = (c == Channel::kData || c == Channel::kStatus) && r > index() &&
                        !is_local(static_cast<int>(r)) && !place(c, r).is_open();
      HADAL_CHECK(fits, name_of(hello), " connects to rank ", o_.rank,
                  " in a way that it must not");
      const std::string error = welcome(peer);
      HADAL_CHECK(error.empty(), name_of(hello), " went away at the start: ", error);
      place(c, r) = std::move(peer);
      --expected;
    }
    for (size_t r = 0; r < index(); ++r)
      for (const Channel c : kChannels) {
        if (is_local(static_cast<int>(r))) continue;
        Answer answer;
        const std::string error = place(c, r).receive_all(&answer, sizeof(answer), left());
        HADAL_CHECK(error.empty() && answer.welcome == 1, name_of(all_[r]), " does not let rank ",
                    o_.rank, " in: ", error.empty() ? text_of(answer.why_not) : error);
      }
  }

  Descriptor open_memory(int owner) {
    if (owner == o_.rank) return std::move(memory_);
    const Hello& h = all_[static_cast<size_t>(owner)];
    const std::string path = concat("/proc/", h.pid, "/fd/", h.memory);
    std::FILE* file = std::fopen(path.c_str(), "r+e");
    Descriptor fd(file == nullptr ? -1 : dup(fileno(file)));
    if (file != nullptr) std::fclose(file);
    HADAL_CHECK(fd.is_open(), "rank ", o_.rank, " cannot open the memory of ", name_of(h), ", ",
                path, ": ", std::strerror(errno),
                "; ranks of a host run as one user and see each other's processes");
    return fd;
  }

  RendezvousOptions o_;
  double end_;
  Hello me_;
  std::vector<Hello> all_;  // [N]
  Socket listener_;
  Descriptor memory_;
  bool wrote_file_ = false;
  int strangers_ = 0;
  std::string last_stranger_, why_stranger_;
};

}  // namespace

Meeting meet(const RendezvousOptions& options) { return Start(options).meet(); }

void size_memory(int memory, size_t bytes) {
  HADAL_CHECK(ftruncate(memory, static_cast<off_t>(bytes)) == 0, "cannot make ", bytes,
              " bytes of shared memory: ", std::strerror(errno));
}

}  // namespace hadal
