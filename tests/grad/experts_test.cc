// Routed experts over dispatched rows: backward against complex step of the reference.
//
//   T tokens   D model width   K choices of a token   P pages
//
// The choice is given, so that one expert has no token, one has a single token and one has most.
// SPDX-License-Identifier: Apache-2.0
#include "model/experts.h"

#include "model/exchange.h"
#include "tests/grad/harness.h"

namespace hadal::test {
namespace {

constexpr int64_t kChoices = 3;

// Experts {0, 1 or 2, 4 to 6} of each token; 3 for the first alone; 7 never.
std::vector<int32_t> some_choices(int64_t num_tokens) {
  std::vector<int32_t> idx;
  for (int32_t t = 0; t < num_tokens; ++t) {
    idx.push_back(0);
    idx.push_back(t == 0 ? 3 : 1 + t % 2);
    idx.push_back(4 + t % 3);
  }
  return idx;
}

void check(const std::string& name, int64_t num_tokens, Scope scope) {
  const Config c = tiny_config();
  Machine machine(2);
  Context& ctx = machine.ctx;
  Arrays weights = random_weights(c);
  Product product = make_product(machine, c, weights, DType::kF64);
  const Shape shape{num_tokens, c.hidden_size}, choices{num_tokens, kChoices};
  const Array<double> x = ref::random("x", shape, 0.0, 1.0),
                      dy = ref::random("dy", shape, 0.0, 1.0);
  const Array<double> weight = ref::random("weight", choices, 0.5, 0.5);
  const std::vector<int32_t> idx = some_choices(num_tokens);

  const int64_t num_pages = ops::max_pages(num_tokens * kChoices, c.n_routed_experts);
  RowPool pool(ctx, c, DType::kF64, num_pages);
  LocalExchange exchange(pool, c.n_routed_experts);
  const Tensor px = machine.put(x, DType::kF64), pdy = machine.put(dy, DType::kF64);
  Tensor py = machine.tensor(DType::kF64, shape), pdx = machine.tensor(DType::kF64, shape);
  Tensor pdweight = machine.tensor(DType::kF64, choices);
  experts::Saved saved;
  Ticket ticket =
      exchange.dispatch_start(ctx, px, machine.put(idx, choices), machine.put(weight, DType::kF64));
  exchange.dispatch_finish(ctx, ticket, &saved.rows);
  const experts::Rows rows{
      .layout = ticket.layout, .row_weight = ticket.row_weight, .num_pages = num_pages};
  ops::PagedRows row_buffer;
  row_buffer.slab = machine.tensor(DType::kF64, {num_pages, ops::kPageRows, c.hidden_size});
  experts::forward(ctx, c, product.w.layers[1].moe.experts, rows, saved, row_buffer);
  exchange.combine_start(ctx, ticket, row_buffer);
  exchange.combine_finish(ctx, ticket, row_buffer, py);

  Tensor drow_weight = machine.tensor(DType::kF64, {num_pages * ops::kPageRows});
  experts::Deferred deferred =
      experts::make_deferred(ctx, c, ticket.layout, num_pages, DType::kF64);
  exchange.combine_backward_start(ctx, ticket, pdy, deferred.dy);
  exchange.combine_backward_finish(ctx, ticket, deferred.dy);
  experts::backward_input(ctx, c, product.w.layers[1].moe.experts, rows, std::move(saved), deferred,
                          row_buffer, drow_weight);
  exchange.dispatch_backward_start(ctx, ticket, row_buffer, drow_weight);
  exchange.dispatch_backward_finish(ctx, ticket, row_buffer, drow_weight, pdx, pdweight);
  experts::backward_weight(ctx, std::move(deferred), product.grads.layers[1].moe.experts);
  EXPECT_EQ(pool.num_free_pages(), num_pages);

  ComplexArrays w = as_complex(c, weights);
  Array<Complex> cx = ref::as<Complex>(x);
  ref::Routing<Complex> routing;
  routing.weight = ref::as<Complex>(weight);
  for (int64_t t = 0; t < num_tokens; ++t)
    routing.choice.push_back({idx.begin() + t * kChoices, idx.begin() + (t + 1) * kChoices});
  const auto f = [&] {
    return ref::dot(dy, ref::experts_forward(w.layers[1].moe.experts, routing, cx));
  };
  EXPECT_NEAR(ref::dot(dy, ref::from_tensor<double>(py)), f().real(),
              1e-12 * static_cast<double>(num_tokens));
  GradientCheck gradients("experts, " + name, c, scope);
  gradients.input("x", pdx, cx, f);
  gradients.input("weight", pdweight, routing.weight, f);
  gradients.params("layers.1.ffn.experts.", product.grads, w, f);
}

TEST(ExpertsGrad, OnePageEach) { check("one page each", kTokens, Scope::kElements); }

// 300 rows of expert 0 fill two pages and a part of a third.
TEST(ExpertsGrad, SeveralPages) { check("several pages", 300, Scope::kDirections); }

}  // namespace
}  // namespace hadal::test
