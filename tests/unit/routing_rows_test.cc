// Movement of tokens to experts' rows and back, and the stack of pages.
//
//   T tokens   K choices of a token   E experts   D model width
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>

#include "ops/routing.h"
#include "tests/unit/ops.h"

namespace hadal::test {
namespace {

// Choices of T tokens among E experts of which the last is never chosen; different for each token.
std::vector<int32_t> choices(int64_t T, int64_t K, int64_t E) {
  const Rng rng(4, stream_id("choices"));
  std::vector<int32_t> idx;
  for (int64_t t = 0; t < T; ++t) {
    std::set<int32_t> mine;
    for (uint64_t draw = 0; static_cast<int64_t>(mine.size()) < K; ++draw)
      mine.insert(static_cast<int32_t>(rng.u64(static_cast<uint64_t>(t) << 20 | draw) %
                                       static_cast<uint64_t>(E - 1)));
    idx.insert(idx.end(), mine.begin(), mine.end());
  }
  return idx;
}

struct Routed {
  Tensor idx;
  ops::ExpertLayout layout;
  Tensor row_of_choice;
  std::vector<int64_t> rows, begin, counts;
  Routed(Machine& machine, const std::vector<int32_t>& choice, int64_t T, int64_t K, int64_t E)
      : idx(machine.put(choice, {T, K})),
        layout{machine.tensor(DType::kI32, {E}), machine.tensor(DType::kI32, {E + 1})},
        row_of_choice(machine.tensor(DType::kI32, {T, K})) {
    ops::expert_layout(machine.ctx, idx, layout, row_of_choice);
    rows = integers(row_of_choice), begin = integers(layout.page_begin),
    counts = integers(layout.counts);
  }
};

TEST(ExpertLayout, RowsOfAnExpertAreInTokenOrderOnItsPages) {
  Machine machine(2);
  for (const auto& [T, K, E] : {std::array<int64_t, 3>{0, 2, 4},
                                {1, 1, 2},
                                {5, 3, 6},
                                {129, 1, 2},
                                {128, 1, 2},
                                {700, 4, 9}}) {
    const std::vector<int32_t> choice = choices(T, K, E);
    const Routed r(machine, choice, T, K, E);
    int64_t total = 0;
    for (int64_t e = 0; e < E; ++e) {
      const auto i = static_cast<size_t>(e);
      ASSERT_EQ(r.counts[i], std::count(choice.begin(), choice.end(), e));
      ASSERT_EQ(r.begin[i + 1] - r.begin[i], (r.counts[i] + 127) / 128);
      int64_t next = r.begin[i] * ops::kPageRows;
      for (size_t j = 0; j < choice.size(); ++j) {
        if (choice[j] == e) {
          ASSERT_EQ(r.rows[j], next++);
        }
      }
      total += r.counts[i];
    }
    ASSERT_EQ(total, T * K);
    ASSERT_EQ(r.counts.back(), 0);  // the expert that no token chose
    ASSERT_LE(r.begin.back(), ops::max_pages(T * K, E));
  }
}

// max_pages is reached: all experts but one have one row, and the last the rest.
TEST(ExpertLayout, MaxPagesIsTheWorstCase) {
  for (int64_t num_experts : {1, 2, 5})
    for (int64_t num_rows : {0, 1, 4, 5, 127, 128, 129, 300, 1000}) {
      int64_t worst = 0;
      const int64_t others = std::min(num_experts - 1, std::max<int64_t>(0, num_rows - 1));
      for (int64_t used = 0; used <= others; ++used)  // experts with one row
        worst = std::max(worst, used + (num_rows - used + 127) / 128);
      EXPECT_EQ(ops::max_pages(num_rows, num_experts), worst) << num_rows << " of " << num_experts;
    }
}

TEST(Rows, ScatterAndCombineMatchThePlainLoop) {
  Machine machine(2);
  constexpr int64_t T = 150, K = 3, E = 5, D = 21;
  const Routed r(machine, choices(T, K, E), T, K, E);
  const int64_t num_pages = r.begin.back();
  std::vector<int32_t> page;
  for (int64_t i = 0; i < num_pages; ++i) page.push_back(static_cast<int32_t>((i * 7 + 3) % 11));
  ASSERT_LE(num_pages, 11);
  const struct {
    DType x, rows;
  } types[] = {{DType::kF32, DType::kF32},
               {DType::kF64, DType::kF64},
               {DType::kBF16, DType::kBF16},
               {DType::kF32, DType::kBF16},
               {DType::kBF16, DType::kF32}};
  for (const auto& type : types) {
    const Array<double> x = random_in("x", {T, D}, DType::kBF16);
    const Tensor old = machine.put(random_in("old", {11, ops::kPageRows, D}, type.rows), type.rows);
    const ops::PagedRows rows{
        machine.put(random_in("old", {11, ops::kPageRows, D}, type.rows), type.rows),
        machine.put(page, {num_pages})};
    ops::scatter_rows(machine.ctx, put_strided(machine, x, type.x), r.row_of_choice, rows);
    std::set<int64_t> used;
    for (int64_t t = 0; t < T; ++t)
      for (int64_t k = 0; k < K; ++k) {
        const int64_t row = r.rows[static_cast<size_t>(t * K + k)];
        const Array<double> got =
            values(rows.slab.row(page[static_cast<size_t>(row / 128)]).row(row % 128));
        used.insert(page[static_cast<size_t>(row / 128)] * 128 + row % 128);
        for (int64_t d = 0; d < D; ++d) ASSERT_EQ(got[d], x(t, d));
      }
    for (int64_t row = 0; row < 11 * 128; ++row) {
      if (!used.contains(row))
        expect_bits_equal("an unused row", rows.slab.row(row / 128).row(row % 128),
                          old.row(row / 128).row(row % 128));
    }
    Tensor y = strided(machine, type.x, {T, D});
    ops::combine_rows(machine.ctx, rows, r.row_of_choice, y);
    Array<double> want = x;
    for (double& v : want.data) v *= K;
    expect_close("y", values(y), want, op_bound(type.x, 4, 12));
  }
}

// A combined token is the sum of its rows in the order of its choices, in f32.
TEST(Rows, CombineAddsInTheOrderOfTheChoices) {
  Machine machine(1);
  const ops::PagedRows rows{machine.tensor(DType::kF32, {1, ops::kPageRows, 1}), Tensor()};
  auto* r = rows.slab.data<float>();
  r[0] = 1e8f, r[1] = -1e8f, r[2] = 1.0f;
  Tensor y = machine.tensor(DType::kF32, {2, 1});
  ops::combine_rows(machine.ctx, rows, machine.put({0, 1, 2, 0, 2, 1}, {2, 3}), y);
  EXPECT_EQ(y.data<float>()[0], 1.0f);
  EXPECT_EQ(y.data<float>()[1], 0.0f);  // 1e8 + 1 is 1e8 in f32
}

TEST(Rows, ChoicesGoToTheirRowsAndBack) {
  Machine machine(2);
  constexpr int64_t T = 140, K = 2, E = 4;
  const Routed r(machine, choices(T, K, E), T, K, E);
  for (const DType dtype : {DType::kF64, DType::kF32}) {
    const Array<double> value = random_in("v", {T, K}, dtype);
    const int64_t num_rows = r.begin.back() * ops::kPageRows;
    Tensor row_value = machine.tensor(dtype, {num_rows}), back = machine.tensor(dtype, {T, K});
    ops::scatter_choices(machine.ctx, machine.put(value, dtype), r.row_of_choice, row_value);
    for (int64_t i = 0; i < T * K; ++i)
      ASSERT_EQ(values(row_value)[r.rows[static_cast<size_t>(i)]], value[i]);
    ops::gather_choices(machine.ctx, row_value, r.row_of_choice, back);
    expect_close("values", values(back), value, 0.0);
  }
}

TEST(Pages, TakingAndGivingBackRestoresTheStack) {
  Machine machine(1);
  const Routed r(machine, choices(300, 2, 5), 300, 2, 5);
  const int64_t needed = r.begin.back();
  const ops::PageStack stack{machine.put({5, 2, 7, 0, 1, 6, 3, 4, 8, 9}, {10}),
                             machine.put({10}, {1})};
  Tensor first = machine.tensor(DType::kI32, {10}), second = machine.tensor(DType::kI32, {10});
  const std::vector<int64_t> before = integers(stack.free);
  ASSERT_GT(needed, 3);
  ops::take_pages(machine.ctx, r.layout, stack, first);
  EXPECT_EQ(*stack.count.data<int32_t>(), 10 - needed);
  std::set<int64_t> taken;
  for (int64_t i = 0; i < needed; ++i) taken.insert(integers(first)[static_cast<size_t>(i)]);
  EXPECT_EQ(static_cast<int64_t>(taken.size()), needed);
  EXPECT_ERROR(ops::take_pages(machine.ctx, r.layout, stack, second),
               concat("the experts need ", needed, " pages of 128 rows, but only ", 10 - needed,
                      " of 10 are free; give the pool more pages or use a smaller micro-batch"));
  EXPECT_EQ(*stack.count.data<int32_t>(), 10 - needed);
  ops::give_back_pages(machine.ctx, r.layout, stack, first);
  EXPECT_EQ(*stack.count.data<int32_t>(), 10);
  EXPECT_EQ(integers(stack.free), before);
  EXPECT_ERROR(ops::give_back_pages(machine.ctx, r.layout, stack, first),
               concat(needed, " pages are given back, but 10 of 10 are free already"));
  EXPECT_ERROR(ops::take_pages(machine.ctx, r.layout, stack, second.rows(0, 2)),
               concat("the experts need ", needed, " pages, but the page list has 2 places"));
}

// A pool that counts: the spare page stands for those that it does not have.
TEST(Pages, MissingOnesAreCountedAndTheSpareStaysOut) {
  Machine machine(1);
  const Routed r(machine, choices(300, 2, 5), 300, 2, 5);
  const int64_t needed = r.begin.back(), pages = needed - 2;
  ASSERT_GT(pages, 1);
  ops::PageStack stack{machine.tensor(DType::kI32, {pages}), machine.tensor(DType::kI32, {1})};
  for (int64_t i = 0; i < pages; ++i)
    stack.free.data<int32_t>()[i] = static_cast<int32_t>(pages - 1 - i);
  stack.count.data<int32_t>()[0] = static_cast<int32_t>(pages);
  stack.missing = machine.tensor(DType::kI64, {1});
  stack.missing.data<int64_t>()[0] = 40;
  const std::vector<int64_t> before = integers(stack.free);
  Tensor page = machine.tensor(DType::kI32, {needed});
  ops::take_pages(machine.ctx, r.layout, stack, page);
  EXPECT_EQ(stack.missing.data<int64_t>()[0], 42);
  EXPECT_EQ(stack.count.data<int32_t>()[0], 0);
  const std::vector<int64_t> taken = integers(page);
  for (int64_t i = 0; i < needed; ++i)
    EXPECT_EQ(taken[static_cast<size_t>(i)], std::min(i, pages)) << i;
  ops::give_back_pages(machine.ctx, r.layout, stack, page);
  EXPECT_EQ(stack.count.data<int32_t>()[0], pages);
  EXPECT_EQ(integers(stack.free), before);
}

TEST(Rows, SameBitsAtAllThreadCounts) {
  expect_same_at_all_thread_counts([](Machine& machine) {
    const Routed r(machine, choices(400, 3, 6), 400, 3, 6);
    const ops::PagedRows rows{
        machine.put(ref::random("old", {r.begin.back(), ops::kPageRows, 40}, 0, 1), DType::kBF16),
        Tensor()};
    Tensor y = machine.tensor(DType::kBF16, {400, 40});
    ops::combine_rows(machine.ctx, rows, r.row_of_choice, y);
    ops::scatter_rows(machine.ctx, y, r.row_of_choice, rows);
    return std::vector<Tensor>{r.row_of_choice, y, rows.slab};
  });
}

// A choice that is left out has row -1: it brings nothing and gets nothing.
TEST(Rows, ChoicesThatAreLeftOut) {
  Machine machine(1);
  const ops::PagedRows rows{machine.tensor(DType::kF32, {1, ops::kPageRows, 2}), Tensor()};
  Array<double> threes({1, 2});
  threes.data = {3.0, 3.0};
  const Tensor x = machine.put(threes, DType::kF32);
  Tensor y = machine.tensor(DType::kF32, {1, 2});
  const Tensor row_of_choice = machine.put({1, -1}, {1, 2});
  ops::scatter_rows(machine.ctx, x, row_of_choice, rows);
  EXPECT_EQ(values(rows.slab).data[2], 3.0);
  EXPECT_EQ(values(rows.slab).data[0], 0.0);
  ops::combine_rows(machine.ctx, rows, row_of_choice, y);
  EXPECT_EQ(values(y).data[0], 3.0);
}

// A rank's experts are counted from its first; what belongs to others is left out.
TEST(Rows, ChoicesOfExpertsThatAreHere) {
  Machine machine(1);
  Tensor here = machine.tensor(DType::kI32, {2, 3}), other = machine.tensor(DType::kI32, {2, 2});
  const Tensor idx = machine.put({0, 4, 7, 3, 5, 6}, {2, 3});
  ops::choices_here(machine.ctx, idx, 4, 2, here);
  EXPECT_EQ(integers(here), (std::vector<int64_t>{-1, 0, -1, -1, 1, -1}));
  ops::choices_here(machine.ctx, idx, 0, 8, here);
  EXPECT_EQ(integers(here), (std::vector<int64_t>{0, 4, 7, 3, 5, 6}));
  EXPECT_ERROR(ops::choices_here(machine.ctx, idx, 0, 8, other),
               "choices must have shape [2, 3], has [2, 2]");
}

TEST(Rows, NamesTheWrongArgument) {
  Machine machine(1);
  const ops::PagedRows rows{machine.tensor(DType::kF32, {1, ops::kPageRows, 4}), Tensor()};
  Tensor y = machine.tensor(DType::kF32, {1, 4}), three = machine.tensor(DType::kF32, {1, 3});
  EXPECT_ERROR(ops::combine_rows(machine.ctx, rows, machine.put({128}, {1, 1}), y),
               "position 1 of the layout is page 1, but the slab has 1 pages; give the expert rows "
               "more pages");
  EXPECT_ERROR(ops::combine_rows(machine.ctx, rows, machine.put({-2}, {1, 1}), y),
               "row number -2 is negative: row_of_choice does not come from expert_layout");
  EXPECT_ERROR(ops::scatter_rows(machine.ctx, three, machine.put({0}, {1, 1}), rows),
               "rows.slab must have shape [pages, 128, 3], is f32 [1, 128, 4]");
  EXPECT_ERROR(ops::scatter_rows(machine.ctx, y, machine.put({0, 1}, {2, 1}), rows),
               "x has 1 rows, but row_of_choice has 2");
  Tensor row_value = machine.tensor(DType::kF32, {128});
  EXPECT_ERROR(ops::scatter_choices(machine.ctx, machine.tensor(DType::kF32, {1, 1}),
                                    machine.put({128}, {1, 1}), row_value),
               "choice 0 of token 0 is row 128, but row_value has 128 rows");
  const ops::ExpertLayout layout{machine.tensor(DType::kI32, {2}),
                                 machine.tensor(DType::kI32, {3})};
  Tensor row_of_choice = machine.tensor(DType::kI32, {1, 2});
  EXPECT_ERROR(ops::expert_layout(machine.ctx, machine.put({0, 2}, {1, 2}), layout, row_of_choice),
               "choice 1 of token 0 is expert 2, but there are 2 experts");
}

}  // namespace
}  // namespace hadal::test
