// Pipeline over links: gradients, losses and counts are bit for bit those of messages in the stream
// of the work, whenever within its bounds a message moves. Ranks are threads.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/pipeline_links.h"

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "model/param_store.h"
#include "ops/copy.h"
#include "parallel/parallel_config.h"
#include "parallel/pipeline.h"
#include "tests/grad/harness.h"

namespace hadal {
namespace {

using test::Machine;

// When a message moves: as soon as both ends are posted and those before it are gone, or not before
// one of them waits for it.
enum class Moves : uint8_t { kAtOnce, kLate };

// The messages of all ranks.
class Post {
 public:
  explicit Post(Moves moves) : moves_(moves) {}

  struct Message {
    const void* from = nullptr;
    void* to = nullptr;
    size_t bytes = 0;
    bool is_through = false;
    std::deque<Message>* link = nullptr;
  };

  Message* send(const Link& link, const Tensor& x) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Message& m = next(link, sent_[link]++);
    m.from = x.raw();
    posted(m, x);
    return &m;
  }
  Message* receive(const Link& link, const Tensor& y) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Message& m = next(link, received_[link]++);
    m.to = y.raw();
    // Who reads it before it has come reads NaN.
    std::memset(m.to, 0xff, static_cast<size_t>(y.num_bytes()));
    posted(m, y);
    return &m;
  }
  void await(const Message& message) {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto is_through = [&] {
      move(*message.link);
      return message.is_through;
    };
    HADAL_CHECK(changed_.wait_for(lock, std::chrono::seconds(60), is_through),
                "the ranks wait for each other");
  }

 private:
  Message& next(const Link& link, size_t number) {
    std::deque<Message>& all = links_[link];
    if (all.size() == number) all.push_back({.link = &all});
    return all[number];
  }
  void posted(Message& m, const Tensor& t) {
    HADAL_CHECK(m.bytes == 0 || m.bytes == static_cast<size_t>(t.num_bytes()),
                "the ends of a message differ");
    m.bytes = static_cast<size_t>(t.num_bytes());
    if (moves_ == Moves::kAtOnce) move(*m.link);
    changed_.notify_all();
  }
  void move(std::deque<Message>& link) {
    for (Message& m : link) {
      if (m.is_through) continue;
      if (m.from == nullptr || m.to == nullptr) return;
      std::memcpy(m.to, m.from, m.bytes);
      m.is_through = true;
      changed_.notify_all();
    }
  }

  const Moves moves_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Link, std::deque<Message>> links_;
  std::map<Link, size_t> sent_, received_;
};

class ThreadLinks final : public PipelineLinks {
 public:
  explicit ThreadLinks(Post& post) : post_(post) {}
  Event send(Context&, const Link& link, In x) override {
    ++num_posted;
    return {post_.send(link, x)};
  }
  Event receive(Context&, const Link& link, Out y) override {
    ++num_posted;
    return {post_.receive(link, y)};
  }
  void await(Context&, Event& event) override {
    if (event.handle == nullptr) return;
    post_.await(*static_cast<const Post::Message*>(std::exchange(event, Event()).handle));
    ++num_awaited;
  }
  int num_sms() const override { return 0; }
  int num_posted = 0, num_awaited = 0;

 private:
  Post& post_;
};

// Groups of messages. What is sent lies ready for its receiver, as in the rings of CPU ranks.
class ThreadComm final : public Comm {
 public:
  ThreadComm(Post& post, int rank, int size) : post_(post), rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void transfer(Context&, std::span<const Message> messages) override {
    std::vector<Post::Message*> expected;
    for (const Message& m : messages)
      if (m.send) {
        const auto* bytes = static_cast<const std::byte*>(m.data.raw());
        sent_.emplace_back(bytes, bytes + m.data.num_bytes());
        post_.send({rank_, m.peer}, Tensor(sent_.back().data(), m.data.dtype(), m.data.shape()));
      } else {
        expected.push_back(post_.receive({m.peer, rank_}, m.data));
      }
    for (const Post::Message* m : expected) post_.await(*m);
  }
  void all_reduce(Context&, Acc) override { HADAL_UNREACHABLE("all_reduce"); }
  void reduce_scatter_v(Context&, In, std::span<const int64_t>, Out) override {
    HADAL_UNREACHABLE("reduce_scatter_v");
  }
  void all_gather_v(Context&, In, std::span<const int64_t>, Out) override {
    HADAL_UNREACHABLE("all_gather_v");
  }
  void all_to_all_v(Context&, In, std::span<const int64_t>, Out,
                    std::span<const int64_t>) override {
    HADAL_UNREACHABLE("all_to_all_v");
  }
  void barrier() override { HADAL_UNREACHABLE("barrier"); }

 private:
  Post& post_;
  int rank_, size_;
  std::deque<std::vector<std::byte>> sent_;
};

Config model() {
  Config c = test::tiny_config();
  c.num_hidden_layers = 8;
  c.num_nextn_predict_layers = 1;
  c.validate();
  return c;
}

// A rank of the pipeline with all weights of the model.
class Rank {
 public:
  Rank(const ParallelConfig& parallel, int rank, int num_microbatches, Post& groups, Post& links)
      : num_microbatches_(num_microbatches),
        masters_(ctx(), config_, DType::kF64, ParamStore::Extent::kAll),
        grads_(ctx(), config_, DType::kF64, ParamStore::Extent::kTrained),
        weights_(weights_of(config_, masters_.tree, nullptr)),
        module_grads_(grads_.tree),
        rows_(ctx(), config_, DType::kF64, 4000),
        exchange_(rows_, config_.n_routed_experts),
        comm_(groups, rank, parallel.mesh.pp),
        links_(links),
        meter_(stage::make_meter(ctx(), stage::whole_model(config_, weights_, exchange_, 1))) {
    init_params(ctx(), config_, 3, masters_.tree);
    std::vector<Pipeline::Local> stages_of_rank;
    for (const LocalStage& s : stages_of(parallel, config_, rank))
      stages_of_rank.push_back({.stage = s.stage,
                                .model = {.config = config_,
                                          .w = weights_,
                                          .exchange = exchange_,
                                          .first_layer = s.range.first_layer,
                                          .last_layer = s.range.first_layer + s.range.num_layers,
                                          .num_mtp = s.range.num_mtp}});
    pipeline_.emplace(schedule_shape(parallel, 1), rank, comm_, stages_of_rank, DType::kF64, true,
                      &links_);
    without_.emplace(schedule_shape(parallel, 1), rank, comm_, stages_of_rank, DType::kF64);
  }

  // Bytes of gradients and of what was measured.
  std::string run() { return run(*pipeline_); }
  std::string run_without_links() { return run(*without_); }
  const ThreadLinks& links() const { return links_; }

 private:
  std::string run(Pipeline& pipeline) {
    ops::fill(ctx(), 0.0, grads_.flat());
    stage::reset(ctx(), meter_);
    const stage::LossScale scale{
        .main = 0.01, .mtp = {0.003}, .balance = 1e-3, .mtp_balance = {1e-3}};
    // Micro-batches of different sizes.
    const auto batch = [&](int i) {
      const auto sequences =
          test::random_sequences(config_, {2 + i % 3, 5}, concat("micro-batch ", i));
      return make_batch(ctx(), config_, sequences, 1, DType::kF64);
    };
    pipeline.run(ctx(), {.num_microbatches = num_microbatches_,
                         .batch = batch,
                         .scale = [&](int) -> const stage::LossScale& { return scale; },
                         .meter = meter_,
                         .grads = module_grads_});
    std::string bytes;
    for (const Tensor& t : {grads_.flat(), meter_.sums, meter_.counts})
      bytes.append(static_cast<const char*>(t.raw()), static_cast<size_t>(t.num_bytes()));
    return bytes;
  }
  Context& ctx() { return machine_.ctx; }

  Machine machine_{1};
  Config config_ = model();
  int num_microbatches_;
  ParamStore masters_, grads_;
  Weights weights_;
  Grads module_grads_;
  RowPool rows_;
  LocalExchange exchange_;
  ThreadComm comm_;
  ThreadLinks links_;
  stage::Meter meter_;
  std::optional<Pipeline> pipeline_, without_;
};

void check(ScheduleKind kind, int pp, int num_microbatches, Moves moves) {
  SCOPED_TRACE(concat(schedule_name(kind), ", ", pp, " ranks, ", num_microbatches,
                      moves == Moves::kLate ? " micro-batches, late" : " micro-batches, at once"));
  ParallelConfig parallel;
  parallel.mesh.pp = pp;
  parallel.schedule = kind;
  Post groups(Moves::kAtOnce), links(moves);
  std::vector<std::string> failures(static_cast<size_t>(pp));
  std::vector<std::thread> threads;
  for (int r = 0; r < pp; ++r)
    threads.emplace_back([&, r] {
      std::string& failure = failures[static_cast<size_t>(r)];
      try {
        Rank rank(parallel, r, num_microbatches, groups, links);
        const std::string bits = rank.run_without_links();
        for (int i = 0; i < 3; ++i) {
          if (rank.run() != bits) failure = "the bits differ";
          // A GPU loads its kernels in the first run.
          if (i == 0 && kind != ScheduleKind::kInterleaved && rank.links().num_posted > 0)
            failure = "links were used in the first run";
        }
        if (pp > 1 && rank.links().num_posted == 0) failure = "no link was used";
        if (rank.links().num_awaited != rank.links().num_posted)
          failure = "a message was not awaited";
      } catch (const std::exception& e) {
        failure = e.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (int r = 0; r < pp; ++r) EXPECT_EQ(failures[static_cast<size_t>(r)], "") << "rank " << r;
}

class OverLinks : public ::testing::TestWithParam<ScheduleKind> {};

TEST_P(OverLinks, HasTheBitsOfMessagesInTheStream) {
  for (const int pp : {1, 2, 4})
    for (const int count : {2 * pp, 4 * pp})
      for (const Moves moves : {Moves::kAtOnce, Moves::kLate}) {
        if (!schedule_fits({GetParam(), pp, count, 2})) continue;
        check(GetParam(), pp, count, moves);
        if (HasFailure()) return;
      }
}

INSTANTIATE_TEST_SUITE_P(Kinds, OverLinks, ::testing::ValuesIn(all_schedules()),
                         [](const auto& info) { return std::string(schedule_name(info.param)); });

}  // namespace
}  // namespace hadal
