#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Removes or changes single terms of backward code and checks that a gradient test fails each time.

Works on a copy of the sources; the checkout is never edited. For each mutation it rebuilds what changed and
runs the gradient tests, the one named in the table first, until one fails. Prints a line per mutation. A
survivor, a mutation that does not compile, or an old text that is not found exactly once in its file is an
error (exit status 1).

Usage: python3 scripts/mutate.py [--build DIR] [--only N[,N...]] [--list] [--jobs J]
--build keeps the copy and its build for the next run.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEST_TIMEOUT_S = 120

# (file, exact old text, new text, gradient test to run first)
MUTATIONS = [
    # Latent attention.
    ("src/model/mla.cc", "rotate(ctx, c, s.seq, ops::RopeDirection::kBackward, dq, kv_sums.all(0));",
     "rotate(ctx, c, s.seq, ops::RopeDirection::kForward, dq, kv_sums.all(0));", "mla"),
    ("src/model/mla.cc", "rotate(ctx, c, s.seq, ops::RopeDirection::kBackward, dq, kv_sums.all(0));", "", "mla"),
    ("src/model/mla.cc", "ops::cast(ctx, dk_pe, d.dkv_lat.cols(Rkv, Dr));",
     "ops::fill(ctx, 0.0, d.dkv_lat.cols(Rkv, Dr));", "mla"),
    ("src/model/mla.cc", "linear::backward_input_acc(ctx, dq_rows, w.wq, Acc(dx));", "", "mla"),
    ("src/model/mla.cc", "linear::backward_input_acc(ctx, linear::Rows(ctx, d.dq_lat, d.fp8, rule), w.wq_a,\n                                 Acc(dx));", "", "mla"),
    ("src/model/mla.cc", "ops::add_acc(ctx, d.dq_norm, dw.q_norm);", "", "mla"),
    ("src/model/mla.cc", "ops::add_acc(ctx, d.dkv_norm, dw.kv_norm);", "", "mla"),
    ("src/model/mla.cc", "linear::backward_weight(ctx, columns(d.dkv), columns(d.kv_n), dw.wkv_b);", "", "mla"),
    ("src/model/mla.cc", "linear::backward_weight(ctx, columns(d.dy), columns(d.out), dw.wo);", "", "mla"),
    # Dense MLP and experts.
    ("src/model/mlp.cc", "linear::backward_input_acc(ctx, dup, w.w3, Acc(dx));", "", "mlp"),
    ("src/model/mlp.cc", "linear::backward_weight(ctx, dup, x, dw.w3);",
     "linear::backward_weight(ctx, dgate, x, dw.w3);", "mlp"),
    ("src/model/experts.cc",
     "multiply_back_acc(ctx, r.layout, TiledRows(dup), w.w3, dx);", "", "experts"),
    ("src/model/experts.cc", "add_gradient(ctx, d.layout, columns(d.dy), columns(d.hidden), dw.w2);", "",
     "experts"),
    # Gate, mixture, exchange.
    ("src/model/gate.cc", "if (balance_scale != 0.0)", "if (balance_scale == 123.0)", "gate"),
    ("src/model/gate.cc", "ops::gemm_nn_acc(ctx, d.dlogits, w.weight, dx);", "", "gate"),
    ("src/model/moe.cc", "if (d.has_shared) ops::add_acc(ctx, d.dx_shared, Acc(dx));", "", "moe"),
    ("src/model/moe.cc",
     "if (d.has_shared) mlp::backward_weight(ctx, std::move(d.shared), dw.shared);", "", "moe"),
    ("src/model/exchange.cc",
     "ops::gather_choices(ctx, drow_weight, ticket.row_of_choice, dtopk_weight);",
     "ops::gather_choices(ctx, ticket.row_weight, ticket.row_of_choice, dtopk_weight);", "experts"),
    # One layer.
    ("src/model/block.cc", "ops::add_acc(ctx, d.dy, d.dh);", "", "block"),
    ("src/model/block.cc", "ops::add_acc(ctx, d.dh, Acc(dx));", "", "block"),
    ("src/model/block.cc", "ops::add_acc(ctx, d.dffn_norm, dw.ffn_norm);", "", "block"),
    ("src/model/block.cc", "ops::add_acc(ctx, d.dattn_norm, dw.attn_norm);", "", "block"),
    # Head and MTP.
    ("src/model/head.cc", "s.lse.rows(begin, count), scale, dlogits);",
     "s.lse.rows(begin, count), 1.0, dlogits);", "head"),
    ("src/model/head.cc", "d.scale, converted ? converted->rows : Tensor());",
     "1.0, converted ? converted->rows : Tensor());", "head"),
    ("src/model/mtp.cc", "scatter_rows(ctx, m.tensor, depth, dy, dh_prev);", "", "mtp"),
    ("src/model/mtp.cc", "ops::gemm_tn_acc(ctx, d.dx, d.z, dw.eh_proj);", "", "mtp"),
    ("src/model/mtp.cc", "ops::add_acc(ctx, d.denorm, dw.enorm);", "", "mtp"),
    ("src/model/mtp.cc", "ops::add_acc(ctx, d.dhnorm, dw.hnorm);", "", "mtp"),
    ("src/model/mtp.cc", "embed::backward_weight(ctx, d.de, d.ids, dembed);", "", "mtp"),
    # The whole model.
    ("src/model/stage.cc", "if (!dstate.empty()) ops::add_acc(ctx, dstate, dout);", "", "stage"),
    ("src/model/stage.cc", "std::move(s.mtp_head[k]), scale.mtp[k],",
     "std::move(s.mtp_head[k]), scale.mtp[0],", "stage"),
    ("src/model/stage.cc", ".balance_scale = scale.mtp_balance[k]}", ".balance_scale = scale.balance}",
     "stage"),
    ("src/model/stage.cc", "    sink.norm(dnorm);", "", "stage"),
    ("src/model/stage.cc", "    sink.norm(d.dnorm);", "", "stage"),
    ("src/model/stage.cc", "    sink.embed(dx);\n  else", "    ;\n  else", "stage"),
    ("src/model/stage.cc", "  if (stage.is_first()) sink.embed(d.dx);", "", "stage"),
    # Ops: normalisation, SwiGLU, softmax, rope.
    ("src/ops/cpu/norm.cc", "const R c = r * r * r * along / static_cast<R>(D);",
     "const R c = R(0) * along;", "mla"),
    ("src/ops/cpu/norm.cc", "for (int64_t block = 0; block < B; ++block) {\n      kernels.add(total,",
     "for (int64_t block = 0; block < 1; ++block) {\n      kernels.add(total,", "mla"),
    ("src/ops/cpu/isa/rows.inc.h", "dgain[i] += dy[i] * (x[i] * rstd);", "dgain[i] += dy[i] * x[i];",
     "mla"),
    ("src/ops/cpu/isa/rows.inc.h", "(z * (R(1) + g[j] * (R(1) - z)))", "z", "mlp"),
    ("src/ops/cpu/isa/rows.inc.h", "tile[1][j] = weight * ((d[j]", "tile[1][j] = ((d[j]", "experts"),
    ("src/ops/cpu/isa/rows.inc.h", "tile[2][j] = weight * (d[j] * silu);", "tile[2][j] = d[j] * silu;",
     "experts"),
    ("src/ops/cpu/isa/rows.inc.h", "tile[3][j] = weight * out;", "tile[3][j] = out;", "experts"),
    ("src/ops/cpu/isa/rows.inc.h", "tile[0][j] = d[j] * out;", "tile[0][j] = d[j] * silu;", "experts"),
    ("src/ops/cpu/isa/softmax.inc.h", "dp[i] = p[i] * (dp[i] - delta) * scale;",
     "dp[i] = p[i] * dp[i] * scale;", "mla"),
    ("src/ops/cpu/isa/softmax.inc.h", "dp[i] = p[i] * (dp[i] - delta) * scale;",
     "dp[i] = p[i] * (dp[i] - delta);", "mla"),
    ("src/ops/cpu/rope.cc", "s = sine * sines[j];", "s = sines[j];", "mla"),
    # Ops: attention.
    ("src/ops/cpu/attention.cc", "std::fill(dp + visible, dp + n, T(0));", "", "mla"),
    ("src/ops/cpu/attention.cc", "{dk_pe, kT, h.Dr},\n              Start::kOld);", "{dk_pe, kT, h.Dr},\n              Start::kZero);",
     "mla"),
    ("src/ops/cpu/attention.cc", "{scratch.dk, kT, h.Dn},\n              Start::kOld);",
     "{scratch.dk, kT, h.Dn},\n              Start::kZero);", "mla"),
    ("src/ops/cpu/attention.cc", "{scratch.dv, kT, h.Dv},\n              Start::kOld);",
     "{scratch.dv, kT, h.Dv},\n              Start::kZero);", "mla"),
    ("src/ops/cpu/attention.cc", "for (int64_t h = 0; h < H; ++h)\n        for (int64_t j = 0; j < Dr; ++j)",
     "for (int64_t h = 0; h < 1; ++h)\n        for (int64_t j = 0; j < Dr; ++j)", "mla"),
    # Ops: gate and balance loss.
    ("src/ops/cpu/routing.cc", "dscores[e] * scores[e] * (R(1) - scores[e]);", "dscores[e] * scores[e];",
     "gate"),
    ("src/ops/cpu/routing.cc", "scores[e] * (dscores[e] - along);", "scores[e] * dscores[e];", "gate"),
    ("src/ops/cpu/routing.cc", "const R mean = rule.norm_topk_prob ? along / divisor : R(0);",
     "const R mean = R(0) * along;", "gate"),
    ("src/ops/cpu/routing.cc", "dscores[idx[k]] = (dweight[k] - mean) / divisor * factor;",
     "dscores[idx[k]] = (dweight[k] - mean) / divisor;", "gate"),
    ("src/ops/cpu/routing.cc", "dscores[e] = each * (f[e] - mean);", "dscores[e] = each * f[e];", "gate"),
    ("src/ops/cpu/routing.cc", "static_cast<R>(scale) / length / total;", "static_cast<R>(scale) / total;",
     "gate"),
    # Ops: loss, embedding, products.
    ("src/ops/cpu/loss.cc", "to[target] -= static_cast<R>(scale);", "", "head"),
    ("src/ops/cpu/loss.cc", "std::fill(to, to + V, R(0));", "", "head"),
    ("src/ops/cpu/copy.cc", "kernels.add(old, dx_row, row, count);", "std::copy(dx_row, dx_row + count, row);",
     "head"),
    ("src/ops/cpu/gemm.cc", ".c = result(c)},\n        Start::kOld);",
     ".c = result(c)},\n        Start::kZero);", "stage"),
    ("src/ops/cpu/gemm.cc", "    run(ctx, products, Start::kOld);", "    run(ctx, products, Start::kZero);",
     "experts"),
    ("src/ops/cpu/gemm.cc", "grouped(ctx, layout, a, w, c, true, Start::kOld);",
     "grouped(ctx, layout, a, w, c, true, Start::kZero);", "experts"),
]


def run(command, **kwargs):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)


def sync(root):
    """Makes root/ hold what the gradient tests are built from; files that are equal keep their times."""
    wanted = {}
    for part in ("src/core", "src/ops", "src/model", "tests/grad", "tests/ref", "cmake"):
        wanted |= {f.relative_to(ROOT): f.read_bytes() for f in (ROOT / part).rglob("*") if f.is_file()}
    for name in ("CMakeLists.txt", "tests/CMakeLists.txt", "tests/compare.h"):
        wanted[pathlib.Path(name)] = (ROOT / name).read_bytes()
    # A removed term may leave an unused variable behind.
    top = pathlib.Path("CMakeLists.txt")
    wanted[top] = wanted[top].replace(b"-Werror", b"")
    for old in [f for f in root.rglob("*") if f.is_file() and f.relative_to(root) not in wanted]:
        old.unlink()
    for name, data in wanted.items():
        path = root / name
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


class Copy:
    """The copy of the sources and its build directory."""

    def __init__(self, directory, jobs):
        self.root, self.build, self.jobs = directory / "source", directory / "build", jobs
        sync(self.root)
        self.tests = sorted(f.name.removesuffix("_test.cc") for f in self.root.glob("tests/grad/*_test.cc"))
        result = run(["cmake", "-S", self.root, "-B", self.build, "-G", "Ninja",
                      "-DCMAKE_BUILD_TYPE=Release"])
        if result.returncode:
            sys.exit(result.stdout)

    def compile(self, tests):
        return run(["ninja", "-C", self.build, f"-j{self.jobs}", *(f"grad_{t}_test" for t in tests)])

    def test(self, name):
        """None if it passes, else what failed."""
        try:
            result = run([self.build / "tests" / f"grad_{name}_test", "--gtest_brief=1"], cwd=self.root,
                         timeout=TEST_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"grad_{name} ran into its time limit"
        if result.returncode == 0:
            return None
        failed = [line for line in result.stdout.splitlines() if line.startswith("[  FAILED  ]")]
        return failed[0].split()[3].rstrip(",") if failed else f"grad_{name} crashed"

    def kill(self, mutation):
        """(verdict, detail) of one mutation; the file is as before afterwards."""
        name, old, new, first = mutation
        path = self.root / name
        text = path.read_text() if path.exists() else ""
        if text.count(old) != 1:
            return "ERROR", f"the old text is found {text.count(old)} times, not once"
        path.write_text(text.replace(old, new))
        try:
            for test in [first] + [t for t in self.tests if t != first]:
                result = self.compile([test])
                if result.returncode:
                    return "ERROR", "does not compile:\n" + result.stdout[-2000:]
                failure = self.test(test)
                if failure:
                    return "killed", failure
            return "SURVIVED", "every gradient test passes"
        finally:
            path.write_text(text)


def describe(number):
    name, old, new, _ = MUTATIONS[number - 1]
    return f"{name}: {' '.join(old.split())} -> {' '.join(new.split()) or '(removed)'}"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, help="directory of the copy and its build")
    parser.add_argument("--only", help="numbers of the mutations to run, as --list shows them")
    parser.add_argument("--list", action="store_true", help="list the mutations and stop")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    chosen = [int(n) for n in args.only.split(",")] if args.only else range(1, len(MUTATIONS) + 1)
    if args.list:
        for number in range(1, len(MUTATIONS) + 1):
            print(f"{number:3} {describe(number)}")
        return 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hadal-mutate-") as temporary:
        copy = Copy((args.build or pathlib.Path(temporary)).resolve(), args.jobs)
        result = copy.compile(copy.tests)
        if result.returncode:
            sys.exit("the sources do not build without a mutation:\n" + result.stdout[-4000:])
        for test in copy.tests:
            if failure := copy.test(test):
                sys.exit(f"a gradient test fails without a mutation: {failure}")
        bad = 0
        for number in chosen:
            verdict, detail = copy.kill(MUTATIONS[number - 1])
            bad += verdict != "killed"
            print(f"{number:3} {verdict:8} {describe(number)}  [{detail}]", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutations killed, {time.monotonic() - start:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
