#!/usr/bin/env python3
"""Checks who includes whom (the table in CONTRIBUTING.md): prints each violation, exits 1 if there is one.

    tools/check_includes.py [ROOT]

ROOT is the repository. Rules, each with the place that breaks it:
  - a layer of src/ includes only itself and the layers below it; io and plan also pure headers;
  - a pure header, and the source beside it, includes only core and pure headers;
  - CUDA, NCCL, MPI, JSON, PCRE2, CLI11 and file access only in the layers that are for them;
  - ops/cpu and ops/cuda are bodies: nothing outside ops includes them, and neither the other;
  - foo.cc includes foo.h first, so that foo.h is compiled on its own;
  - paths start at src/ (in tests and bench: or at the repository), never at ./ or ../.
"""
# SPDX-License-Identifier: Apache-2.0
import pathlib
import re
import sys

PURE = {"model/config.h", "model/precision.h", "model/params.h", "model/param_layout.h",
        "model/bytes.h", "parallel/mesh.h", "parallel/schedule.h", "parallel/schedule_groups.h",
        "parallel/schedule_rank.h", "parallel/stages.h", "parallel/parallel_config.h",
        "parallel/placement.h"}
MAY = {
    "core": set(),
    "ops": {"core"},
    "model": {"core", "ops"},
    "io": {"core"},
    "parallel": {"core", "ops", "model"},
    "train": {"core", "ops", "model", "io", "parallel"},
    "serve": {"core", "ops", "model", "io", "parallel"},
    "eval": {"core", "ops", "model", "io", "parallel", "serve"},
    "server": {"core", "io", "serve"},
    "plan": {"core", "io"},
    "cli": {"core", "ops", "model", "io", "parallel", "train", "serve", "server", "eval", "plan"},
}
USES_PURE = {"io", "plan"}
# Outside headers and the layers that may use them. CUDA belongs to files (CUDA_FILES), not layers.
EXTERNAL = [
    (re.compile(r"(cuda|cublas|cudnn|cute/|cutlass/|mma\.h)"), set(), "CUDA"),
    (re.compile(r"nccl"), {"parallel"}, "NCCL"),
    (re.compile(r"mpi\.h"), {"parallel"}, "MPI"),
    (re.compile(r"nlohmann/"), {"io", "train", "serve", "server", "eval", "plan", "cli"}, "JSON"),
    (re.compile(r"pcre2"), {"io"}, "PCRE2"),
    (re.compile(r"CLI/"), {"cli"}, "CLI11"),
    (re.compile(r"(filesystem|fstream|fcntl\.h|sys/stat\.h)$"),
     {"io", "train", "serve", "server", "eval", "cli", "plan"}, "file access"),
    (re.compile(r"boost/"), {"server"}, "Boost"),
    (re.compile(r"sys/mman\.h"), {"core", "io", "parallel"}, "memory mapping"),
]
CUDA_FILES = re.compile(r"(ops/cuda/.*|core/device(_memory|_window)?_cuda\.cc)$")
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')


def includes(path):
    """(line number, quoted path or None, angle path or None) of each #include."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match[1], match[2]


def check_quoted(name, layer, target):
    """What is wrong with src/NAME including "TARGET", or None."""
    to = target.split("/")[0]
    header = str(pathlib.PurePosixPath(name).with_suffix(".h"))
    if header in PURE and to != "core" and target not in PURE:
        return f"{header} is pure: it may include core and pure headers only, not {target}"
    if to not in MAY:
        return f"{target} is not in a layer of src/"
    if to != layer and to not in MAY[layer]:
        if not (layer in USES_PURE and target in PURE):
            return f"{layer} may not include {target}"
    for body, other in (("ops/cpu/", "ops/cuda/"), ("ops/cuda/", "ops/cpu/")):
        if target.startswith(body) and (layer != "ops" or name.startswith(other)):
            return f"{target} is a body of ops: include the op's own header"
    return None


def check_angle(name, layer, target):
    for pattern, layers, what in EXTERNAL:
        if not pattern.match(target):
            continue
        if what == "CUDA" and CUDA_FILES.match(name):
            continue
        if layer not in layers:
            return f"{layer} may not use {what}: <{target}>"
    return None


def check_source(path, src):
    name = path.relative_to(src).as_posix()
    layer = name.split("/")[0]
    if layer not in MAY:
        yield f"src/{name}:1: {layer} is not a layer; known: {', '.join(MAY)}"
        return
    own = path.with_suffix(".h")
    first = True
    for number, quoted, angle in includes(path):
        at = f"src/{name}:{number}"
        if first and path.suffix == ".cc" and own.exists():
            own_name = own.relative_to(src).as_posix()
            if quoted != own_name:
                yield f"{at}: the first include must be {own_name}"
        first = False
        if angle is not None:
            wrong = check_angle(name, layer, angle)
        elif quoted.startswith("."):
            wrong = f"{quoted} must be a path from src/"
        else:
            wrong = check_quoted(name, layer, quoted)
            if wrong is None and not (src / quoted).exists():
                wrong = f"there is no src/{quoted}"
        if wrong:
            yield f"{at}: {wrong}"


def check_outside(path, root):
    """tests and bench may include everything, by its path from src/ or from the repository."""
    name = path.relative_to(root).as_posix()
    for number, quoted, _ in includes(path):
        if quoted is None:
            continue
        if quoted.startswith("."):
            yield f"{name}:{number}: {quoted} must be a path from src/ or the repository"
        elif not (root / "src" / quoted).exists() and not (root / quoted).exists():
            yield f"{name}:{number}: there is neither src/{quoted} nor {quoted}"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    src, bad, count = root / "src", [], 0
    if not src.is_dir():
        sys.exit(f"check_includes.py: there is no {src}")
    for folder in ("src", "tests", "bench"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in SUFFIXES:
                continue
            count += 1
            bad += check_source(path, src) if folder == "src" else check_outside(path, root)
    print("\n".join(bad) if bad else f"check_includes: {count} files")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
