// Comm over NCCL: every collective is a batch of messages between all pairs, or two of them.
//
//   G ranks of the group   n elements
//
// Not ncclAllReduce and ncclReduceScatter: these add in an order that depends on the algorithm that
// NCCL picks for the size, the links and its version, and bf16 in bf16 at every stop. Here a rank
// gets its range from all others and adds it in rank order, in f32 for bf16: the bits of CPU ranks,
// at any size. As many bytes cross each link as in a ring: (G-1)/G of the tensor. Small sums of
// ranks that share a model, two a layer, go through windows instead (ops/peer.h), in the same
// order.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/comm_nccl.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <functional>
#include <optional>
#include <utility>

#include "core/check.h"
#include "core/env.h"
#include "core/pinned.h"
#include "core/stream_state.h"
#include "ops/peer.h"
#include "ops/peer_rows.h"
#include "ops/ranks.h"
#include "parallel/comm_host.h"
#include "parallel/comm_parts.h"
#include "parallel/peer_windows.h"

namespace hadal {
namespace {

using namespace comm_parts;

constexpr int64_t kRowBytes = 16;                      // parts begin at multiples of it
constexpr auto kAbortAfter = std::chrono::seconds(2);  // of waiting for a call of NCCL to return

int64_t size_of(const Tensor& t) { return static_cast<int64_t>(dtype_size(t.dtype())); }

// `count` elements of a dense tensor as a vector.
Tensor part_of(const Tensor& t, int64_t begin, int64_t count) {
  return {bytes_at(t, begin), t.dtype(), Shape{count}};
}

class CommNccl final : public Comm {
 public:
  CommNccl(NcclWorld& gpus, std::vector<int> ranks, const char* name, NcclWorld::Channel channel)
      : gpus_(gpus),
        channel_(channel),
        host_(make_comm_host(gpus.world(), ranks, name)),
        ranks_(std::move(ranks)),
        name_(name) {}

  void make_sums() {
    const World& world = gpus_.world();
    const bool one_host = std::all_of(ranks_.begin(), ranks_.end(), [&](int r) {
      return world.host_of(r) == world.host_of(world.rank());
    });
    if (size() == 1 || size() > ops::kMaxSumPeers || !one_host) return;
    const int64_t lines = gpus_.options().window_bytes / 4;
    windows_.emplace(gpus_.world(), ranks_, gpus_.device(),
                     static_cast<size_t>(ops::peer_sums_bytes(size(), lines)));
    sums_ = {.view = windows_->view(), .lines = lines, .stop = gpus_.stop_flag()};
  }
  const ops::PeerSums* peer_sums() const override { return windows_ ? &sums_ : nullptr; }

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  void all_reduce(Context& ctx, Acc x) override {
    check_dense(x);
    const int64_t n = x.num_elements();
    if (size() == 1 || n == 0) return;
    gpus_.world().at("all_reduce", name_);
    if (fits_windows(windows_ ? ops::peer_sum_lines(x) : 0)) return ops::peer_sum(ctx, sums_, x);
    if (n * size_of(x) * size() <= gpus_.options().gather_bytes) return add_all(ctx, x);
    const std::vector<int64_t> bounds = even_bounds(n, size());
    reduce(ctx, x, bounds, bytes_at(x, bounds[index()]));
    gather(ctx, x, bounds);
  }

  void reduce_scatter_v(Context& ctx, In x, std::span<const int64_t> counts, Out y) override {
    check_dense(x);
    check_dense(y);
    const std::vector<int64_t> bounds = bounds_of(x, y, counts, rank(), size());
    if (x.num_elements() == 0) return;
    if (size() == 1) return copy(ctx, x.raw(), y.raw(), x.num_bytes());
    gpus_.world().at("reduce_scatter", name_);
    if (fits_windows(x, bounds)) return ops::peer_sum_scatter(ctx, sums_, bounds, x, y);
    reduce(ctx, x, bounds, bytes_at(y, 0));
  }

  void all_gather_v(Context& ctx, In x, std::span<const int64_t> counts, Out y) override {
    check_dense(x);
    check_dense(y);
    const std::vector<int64_t> bounds = bounds_of(y, x, counts, rank(), size());
    if (y.num_elements() == 0) return;
    if (size() == 1) return copy(ctx, x.raw(), y.raw(), x.num_bytes());
    gpus_.world().at("all_gather", name_);
    if (fits_windows(y, bounds)) return ops::peer_gather(ctx, sums_, bounds, x, y);
    copy(ctx, x.raw(), bytes_at(y, bounds[index()]), x.num_bytes());
    gather(ctx, y, bounds);
  }

  void all_to_all_v(Context& ctx, In x, std::span<const int64_t> send, Out y,
                    std::span<const int64_t> recv) override {
    check_dense(x);
    check_dense(y);
    gpus_.world().at("all_to_all", name_);
    const int64_t row = check_all_to_all(x, send, y, recv, rank(), size());
    std::vector<NcclWorld::Piece> pieces;
    std::byte *from = bytes_at(x, 0), *to = bytes_at(y, 0);
    for (size_t r = 0; r < ranks_.size(); ++r) {
      const int64_t out = send[r] * row, in = recv[r] * row;
      if (r == index()) {
        copy(ctx, from, to, out);
      } else {
        add(pieces, true, r, from, out);
        add(pieces, false, r, to, in);
      }
      from += out;
      to += in;
    }
    gpus_.exchange(ctx.stream, pieces, channel_);
  }

  void transfer(Context& ctx, std::span<const Message> messages) override {
    if (messages.empty()) return;
    gpus_.world().at("transfer", name_);
    std::vector<NcclWorld::Piece> pieces;
    for (const Message& m : messages) {
      check_message(m, rank(), size());
      add(pieces, m.send, static_cast<size_t>(m.peer), m.data.raw(), m.data.num_bytes());
    }
    gpus_.exchange(ctx.stream, pieces, channel_);
  }

  // Of the hosts: what their GPUs do may be under way.
  void barrier() override { host_->barrier(); }

 private:
  size_t index() const { return static_cast<size_t>(rank()); }

  // Whether kernels of our own move so many lines, or rows with these bounds. Then they do.
  bool fits_windows(int64_t lines) const {
    if (lines == 0 || lines > sums_.lines) return false;
    gpus_.check_alive();
    gpus_.world().maybe_die("die_in_collective");
    return true;
  }
  bool fits_windows(const Tensor& all, std::span<const int64_t> bounds) const {
    return fits_windows(windows_ ? ops::peer_row_lines(all, bounds) : 0);
  }

  void add(std::vector<NcclWorld::Piece>& pieces, bool send, size_t peer, void* data,
           int64_t bytes) const {
    if (bytes > 0)
      pieces.push_back({.send = send, .peer = ranks_[peer], .data = data, .bytes = bytes});
  }
  static void copy(Context& ctx, const void* from, void* to, int64_t bytes) {
    if (from == to || bytes == 0) return;
    device::copy_on_device(ctx.device, ctx.stream, from, to, static_cast<size_t>(bytes));
  }

  // Room for n elements of each of the other ranks.
  Block take_parts(Context& ctx, const Tensor& x, int64_t n, Tensor* parts) const {
    const int64_t unit = kRowBytes / size_of(x);
    return ctx.memory.take_tensor(x.dtype(), {size() - 1, (n + unit - 1) / unit * unit}, parts);
  }
  // What another rank sends lands in its row of the parts.
  static int64_t row_of(size_t r, size_t me) { return static_cast<int64_t>(r < me ? r : r - 1); }

  // A small tensor: everybody's to everybody, and each rank adds.
  void add_all(Context& ctx, const Tensor& x) {
    const int64_t n = x.num_elements();
    Tensor parts;
    const Block memory = take_parts(ctx, x, n, &parts);
    std::vector<NcclWorld::Piece> pieces;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      if (r == index()) continue;
      add(pieces, true, r, x.raw(), x.num_bytes());
      add(pieces, false, r, parts.row(row_of(r, index())).raw(), x.num_bytes());
    }
    gpus_.exchange(ctx.stream, pieces, channel_);
    const Tensor own = part_of(x, 0, n);
    ops::sum_of_ranks(ctx, rank(), own, parts.cols(0, n), Tensor(own));
  }

  // This rank's range of x, summed over the ranks, to `out`; slice by slice, so that what waits to
  // be added has a bound.
  void reduce(Context& ctx, const Tensor& x, const std::vector<int64_t>& bounds, std::byte* out) {
    int64_t longest = 0;
    for (size_t r = 0; r < ranks_.size(); ++r)
      longest = std::max(longest, bounds[r + 1] - bounds[r]);
    const int64_t unit = kRowBytes / size_of(x);
    const int64_t most = gpus_.options().stage_bytes / (size() - 1) / kRowBytes * unit;
    const int64_t slice = std::min(longest, most);
    Tensor parts;
    const Block memory = take_parts(ctx, x, slice, &parts);
    for (int64_t at = 0; at < longest; at += slice) {
      const auto count_of = [&](size_t r) {
        return std::clamp<int64_t>(bounds[r + 1] - bounds[r] - at, 0, slice);
      };
      const int64_t n = count_of(index());
      std::vector<NcclWorld::Piece> pieces;
      for (size_t r = 0; r < ranks_.size(); ++r) {
        if (r == index()) continue;
        add(pieces, true, r, bytes_at(x, bounds[r] + at), count_of(r) * size_of(x));
        add(pieces, false, r, parts.row(row_of(r, index())).raw(), n * size_of(x));
      }
      gpus_.exchange(ctx.stream, pieces, channel_);
      if (n > 0)
        ops::sum_of_ranks(ctx, rank(), part_of(x, bounds[index()] + at, n), parts.cols(0, n),
                          Tensor(out + at * size_of(x), x.dtype(), Shape{n}));
    }
  }

  // Every rank's range of y to every rank.
  void gather(Context& ctx, const Tensor& y, const std::vector<int64_t>& bounds) {
    const auto bytes_of = [&](size_t r) { return (bounds[r + 1] - bounds[r]) * size_of(y); };
    std::vector<NcclWorld::Piece> pieces;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      if (r == index()) continue;
      add(pieces, true, r, bytes_at(y, bounds[index()]), bytes_of(index()));
      add(pieces, false, r, bytes_at(y, bounds[r]), bytes_of(r));
    }
    gpus_.exchange(ctx.stream, pieces, channel_);
  }

  NcclWorld& gpus_;
  NcclWorld::Channel channel_;
  std::unique_ptr<Comm> host_;
  std::vector<int> ranks_;
  const char* name_;
  std::optional<PeerWindows> windows_;
  ops::PeerSums sums_;
};

}  // namespace

Device gpu_of_rank(const World& world) {
  int index = 0, ranks = 0;
  for (int r = 0; r < world.size(); ++r) {
    if (world.host_of(r) != world.host_of(world.rank())) continue;
    ++ranks;
    if (r < world.rank()) ++index;
  }
  const int gpus = device::num_devices(DeviceKind::kCuda);
  HADAL_CHECK(gpus > 0, ranks, " ranks of this host need a GPU each: ", device::why_no_cuda(),
              ", or use cpu");
  HADAL_CHECK(ranks <= gpus || env::share_gpus(), ranks,
              " ranks of this host need a GPU each, and it has ", gpus,
              "; start fewer ranks here, or use cpu");
  return {.kind = DeviceKind::kCuda, .index = index % gpus};
}

// While one lives, this rank's thread is in NCCL.
class NcclWorld::Calling {
 public:
  explicit Calling(NcclWorld& gpus) : gpus_(gpus), lock_(gpus.calls_) {
    gpus_.in_call_.store(true);
  }
  Calling(const Calling&) = delete;
  Calling& operator=(const Calling&) = delete;
  ~Calling() { gpus_.in_call_.store(false); }

 private:
  NcclWorld& gpus_;
  std::lock_guard<std::timed_mutex> lock_;
};

NcclWorld::NcclWorld(World& world, Context& ctx, const NcclOptions& options)
    : world_(world),
      ctx_(ctx),
      options_(options),
      side_(ctx.device),
      sums_side_(ctx.device),
      api_(nccl()),
      stop_flag_(static_cast<int*>(device::allocate_pinned(ctx.device, sizeof(int)))) {
  *stop_flag_ = 0;
  const NcclId id = tell_id(std::nullopt);
  world.watch({.is_waiting =
                   [this] {
                     if (in_call_.load()) return true;
                     bool idle = true;
                     device::look_unless_recording(ctx_.device, ctx_.stream,
                                                   [&] { idle = is_idle(); });
                     return !idle;
                   },
               .on_failure =
                   [this] {
                     stopped_.store(true);
                     aborter_ = std::thread([this] { abort(); });
                   }});
  try {
    {
      const Calling calling(*this);
      api_.check(api_.init(&comm_, world.size(), id, world.rank()), "ncclCommInitRank");
    }
    connect(world.all_ranks(), Channel::kWork);
  } catch (...) {
    end_watch();
    throw;
  }
}

NcclWorld::~NcclWorld() {
  // NOTE: after an error of its own a rank leaves the communicator to the end of its process: what
  // it has put into its stream ends by itself, as the others come to the same calls.
  if (std::uncaught_exceptions() == 0 && !stopped_.load()) {
    // Until all have come this far another one may still read what this one has sent.
    try {
      device::synchronize(ctx_.device, ctx_.stream);
      side_.synchronize();
      sums_side_.synchronize();
      for (const Line& line : lines_) device::synchronize(ctx_.device, line.stream);
      make_comm_host(world_, world_.all_ranks(), "NCCL")->barrier();
      // From here on nobody waits for another one: a rank that is already gone has not failed, and
      // this one's last call, which takes a while, is not watched.
      end_watch();
      const Calling calling(*this);
      if (!stopped_.load()) {
        for (Line& line : lines_)
          api_.check(api_.destroy(std::exchange(line.comm, nullptr)), "ncclCommDestroy");
        for (ncclComm** const comm : {&beside_, &comm_})
          if (*comm != nullptr)
            api_.check(api_.destroy(std::exchange(*comm, nullptr)), "ncclCommDestroy");
      }
    } catch (const Error&) {
      // It was said when it happened, or the launcher will say it.
    }
  }
  end_watch();
  for (const Line& line : lines_) device::destroy(ctx_.device, line.stream);
  device::release_pinned(ctx_.device, stop_flag_);
}

// NOTE: the World watches until an abort is done: one that hangs ends with the process.
void NcclWorld::end_watch() {
  while (stopped_.load() && !is_aborted_.load())
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  world_.stop_watching();
  if (aborter_.joinable()) aborter_.join();
}

std::unique_ptr<Comm> NcclWorld::make_comm(std::vector<int> ranks, const char* name) {
  return std::make_unique<CommNccl>(*this, std::move(ranks), name, Channel::kWork);
}

// The messages of a group that sums are between its ranks alone, so only these are connected.
std::unique_ptr<Comm> NcclWorld::make_comm_beside(std::vector<int> ranks, const char* name) {
  if (beside_ == nullptr) {
    NcclConfig config;
    config.min_ctas = 1;
    config.max_ctas = options_.beside_ctas;
    const NcclId id = tell_id(std::nullopt);
    const Calling calling(*this);
    check_alive();
    api_.check(api_.init_with(&beside_, world_.size(), id, world_.rank(), &config),
               "ncclCommInitRankConfig");
  }
  connect(ranks, Channel::kBeside);
  return std::make_unique<CommNccl>(*this, std::move(ranks), name, Channel::kBeside);
}

std::unique_ptr<Comm> NcclWorld::make_comm_with_sums(std::vector<int> ranks, const char* name) {
  auto comm = std::make_unique<CommNccl>(*this, std::move(ranks), name, Channel::kWork);
  comm->make_sums();
  return comm;
}

void NcclWorld::check_alive() const {
  if (stopped_.load())
    throw PeerFailure(world_.error_of(world_.rank()), __FILE__, __LINE__, nullptr);
}

void NcclWorld::exchange(Stream stream, std::span<const Piece> pieces, Channel channel) {
  put(channel == Channel::kWork ? comm_ : beside_, stream, pieces);
}

// NOTE: a communicator is read when the aborter cannot change it any more.
void NcclWorld::put(ncclComm* const& comm, Stream stream, std::span<const Piece> pieces) {
  if (pieces.empty()) return;
  const Calling calling(*this);
  check_alive();
  int result = api_.group_start();
  for (const Piece& p : pieces) {
    if (result != 0) break;
    const auto bytes = static_cast<size_t>(p.bytes);
    result = p.send ? api_.send(p.data, bytes, NcclApi::kUint8, p.peer, comm, stream.handle)
                    : api_.recv(p.data, bytes, NcclApi::kUint8, p.peer, comm, stream.handle);
  }
  const int ended = api_.group_end();
  api_.check(result, "a transfer of NCCL");
  api_.check(ended, "ncclGroupEnd");
  world_.maybe_die("die_in_collective");
}

bool NcclWorld::is_idle() {
  const std::lock_guard<std::mutex> lock(making_);
  return device::is_idle(ctx_.device, ctx_.stream) && side_.is_idle() && sums_side_.is_idle() &&
         std::all_of(lines_.begin(), lines_.end(), [this](const Line& line) {
           return device::is_idle(ctx_.device, line.stream);
         });
}

// As connect() does between all, a byte each way makes the connections.
const NcclWorld::Line& NcclWorld::line(int peer, bool send, int number) {
  for (const Line& known : lines_)
    if (known.peer == peer && known.send == send && known.number == number) return known;
  const NcclId id =
      tell_id(Ends{.from = send ? world_.rank() : peer, .to = send ? peer : world_.rank()});
  Line made{.peer = peer,
            .send = send,
            .number = number,
            .stream = device::make_message_stream(ctx_.device)};
  {
    const Calling calling(*this);
    check_alive();
    NcclConfig config;
    config.min_ctas = config.max_ctas = options_.line_ctas;
    api_.check(api_.init_with(&made.comm, 2, id, send ? 0 : 1, &config), "ncclCommInitRankConfig");
  }
  {
    const std::lock_guard<std::mutex> lock(making_);
    lines_.push_back(made);
  }
  const Line& last = lines_.back();
  Tensor bytes;
  const Block memory = ctx_.memory.take_tensor(DType::kE4M3, {2}, &bytes);
  const Piece pieces[] = {
      {.send = true, .peer = send ? 1 : 0, .data = bytes_at(bytes, 0), .bytes = 1},
      {.send = false, .peer = send ? 1 : 0, .data = bytes_at(bytes, 1), .bytes = 1}};
  // NOTE: the memory may have been another's before, in the stream of the context.
  device::synchronize(ctx_.device, ctx_.stream);
  put(last.comm, last.stream, pieces);
  device::synchronize(ctx_.device, last.stream);
  check_alive();
  return last;
}

void NcclWorld::move(const Line& line, void* data, int64_t bytes) {
  const Piece piece{.send = line.send, .peer = line.send ? 1 : 0, .data = data, .bytes = bytes};
  if (bytes > 0) put(line.comm, line.stream, {&piece, 1});
}

// A byte between every two of them: NCCL makes its connections at the first message of a pair,
// which takes memory and time and waits for the other one. After this, calls only put work into
// streams.
void NcclWorld::connect(const std::vector<int>& ranks, Channel channel) {
  const auto N = static_cast<int64_t>(ranks.size());
  Tensor bytes;
  const Block memory = ctx_.memory.take_tensor(DType::kE4M3, {2 * N}, &bytes);
  std::vector<Piece> pieces;
  for (int64_t i = 0; i < N; ++i) {
    const int r = ranks[static_cast<size_t>(i)];
    if (r == world_.rank()) continue;
    pieces.push_back({.send = true, .peer = r, .data = bytes_at(bytes, i), .bytes = 1});
    pieces.push_back({.send = false, .peer = r, .data = bytes_at(bytes, N + i), .bytes = 1});
  }
  exchange(ctx_.stream, pieces, channel);
  device::synchronize(ctx_.device, ctx_.stream);
  check_alive();
}

// A new communicator's name, from its first rank to the others: of all, or of two.
NcclId NcclWorld::tell_id(const std::optional<Ends>& two) {
  const int first = two ? two->from : 0, me = world_.rank();
  NcclId id;
  if (me == first) api_.check(api_.get_unique_id(&id), "ncclGetUniqueId");
  world_.at("start", "NCCL");
  std::vector<Parcel> parcels;
  for (const int r : two ? std::vector<int>{two->from, two->to} : world_.all_ranks())
    if (r != me && (r == first || me == first))
      parcels.push_back(
          {.send = me == first, .peer = r, .data = &id, .bytes = sizeof(id), .tag = 0x4e434cu});
  world_.exchange(parcels);
  return id;
}

// NOTE: a rank that is inside a call of NCCL which does not return keeps the mutex; the World ends
// its process.
void NcclWorld::abort() {
  std::atomic_ref<int>(*stop_flag_).store(1);
  std::unique_lock<std::timed_mutex> lock(calls_, std::defer_lock);
  if (lock.try_lock_for(kAbortAfter)) {
    std::vector<ncclComm*> all = {std::exchange(comm_, nullptr), std::exchange(beside_, nullptr)};
    {
      const std::lock_guard<std::mutex> making(making_);
      for (Line& line : lines_) all.push_back(std::exchange(line.comm, nullptr));
    }
    // Together: what one still has in a stream may stand behind what another one has there.
    std::vector<std::thread> aborters;
    for (ncclComm* const comm : all)
      if (comm != nullptr) aborters.emplace_back([this, comm] { api_.abort(comm); });
    for (std::thread& aborter : aborters) aborter.join();
  }
  is_aborted_.store(true);
}

}  // namespace hadal
