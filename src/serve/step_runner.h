// StepRunner: steps of many sequences whose tokens are drawn on the device and read later.
//
//   T tokens of a step   S sequences   R draws: rows that a token is drawn from   P pages of a
//   sequence   G homes
//
// launch() returns before a step is done. A token that it draws can be a token of the next launch
// before the host has seen it, so the device goes from step to step without waiting for the host.
// A step is one run of the model over all its tokens, which reads every weight once. Where the
// device can record work, steps of one token of each sequence are recorded for some numbers of
// sequences and launched whole; fewer sequences than the next such number are filled up with rows
// that nobody reads.
//
// Of several ranks the leader announces each launch, and the others make the same one
// (serve/follower.h): all draw the same tokens, as all have the same logits; or, where sequences
// have homes, each draws those of its own, which stay there for its next launch and go to the
// leader. A step is recorded for as many sequences as the fullest home has, and all homes fill up.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <map>
#include <vector>

#include "ops/draw.h"
#include "serve/paged_step.h"

namespace hadal::serve {

class StepRunner {
 public:
  struct Draw {
    int64_t row = 0;       // of the step's tokens: the new token comes after this one
    int64_t position = 0;  // of the new token
    ops::SampleRule rule = {};
  };
  struct Input {
    PagedTokens tokens;       // id -1-r: what draw r of the launch before brought
    std::vector<Draw> draws;  // [R] by row, at most one of a sequence
  };
  // Where there are homes a sequence that refers to a draw has the home that it had then.

  // REQUIRES: ctx and decoder outlive it; the decoder's pages are lent and all its sequences open.
  StepRunner(Context& ctx, Decoder& decoder);
  ~StepRunner();
  StepRunner(const StepRunner&) = delete;
  StepRunner& operator=(const StepRunner&) = delete;

  // Runs a step of the most tokens, so that no later one asks the system for memory. Writes to the
  // first pages of the cache.
  void run_largest();
  // Records steps. Rows that fill up write to this page. REQUIRES: device::can_record().
  void record_steps(int64_t scratch_page);

  // At most two launches may be under way.
  void launch(const Input& input);
  // Waits for the oldest launch: its [R] tokens, of all homes on the rank that leads. Throws what
  // its kernels found wrong.
  std::vector<int32_t> take();
  int64_t num_under_way() const { return num_launched_ - num_taken_; }

  // Seconds that the device spent in the launches taken so far, and between two of them where the
  // second was launched while the first was under way. 0 on the CPU.
  double busy_seconds() const { return busy_seconds_; }
  double idle_seconds() const { return idle_seconds_; }

 private:
  // What a recorded step reads, on the device; on the host it has the same layout.
  struct Fields {
    Tensor given, positions;    // [S] i32
    Tensor top_k, seed;         // [S] i64
    Tensor temperature, top_p;  // [S] f64
    Tensor where;               // [S] i32
    Tensor table;               // [S, P] i32
  };
  struct Slot {
    std::byte* staged = nullptr;     // the fields, pinned
    int32_t* drawn = nullptr;        // [G, S] pinned
    std::vector<int64_t> num_draws;  // [G] of them
  };
  // What this home does of a launch.
  struct Part {
    Input input;                     // draws that it refers to are its own
    std::vector<int64_t> of_ranks;   // Step::of_ranks
    std::vector<int64_t> num_draws;  // [G]
    int64_t most_seqs;               // of a home
    bool one_each;                   // one token of each sequence of all homes, each drawn from
  };
  // Of a launch; four, as one is read while two more are under way.
  struct Marks {
    Event begin, done;
    bool follows = false;  // launched while the one before was under way
  };
  template <class T>
  T* staged(const Slot& slot, const Tensor& field) const;
  Part part_of(const Input& input) const;
  void stage(const Slot& slot, const Input& input, int64_t size);
  void recorded_work(int64_t size);
  std::map<int64_t, Graph>::const_iterator recorded(const Part& part) const;
  void run(const Part& part);
  void draw(const Input& input, const Tensor& h);
  void gather_draws();

  Context& ctx_;
  Decoder& decoder_;
  int num_homes_, home_;
  int64_t max_seqs_, scratch_page_ = -1;
  GraphMemory temporaries_;  // of recorded steps
  Block memory_;
  Fields fields_;
  size_t staged_bytes_ = 0;
  Tensor offsets_, ids_, rope_, inv_freq_;  // [S+1] i32  [S] i32  [S, Dr]  [Dr/2] f64
  Tensor all_drawn_;                        // [G, S] i32: of all homes
  Tensor drawn_;                            // [S] i32: this home's, filled-up rows included
  Tensor table_;                            // [S, P] i32   the decoder's
  std::array<Slot, 2> slots_;
  std::array<Marks, 4> marks_;
  std::map<int64_t, Graph> graphs_;  // by number of sequences
  int64_t num_launched_ = 0, num_taken_ = 0;
  int64_t first_drawn_ = 0;  // of the draws of the launch before: this home's first
  double busy_seconds_ = 0.0, idle_seconds_ = 0.0;
};

}  // namespace hadal::serve
