#!/usr/bin/env python3
"""Checks what no compiler does: prints each violation, exits 1 if there is one.

    tools/check_sources.py [ROOT]

Every file: no trailing whitespace in text, a final newline, at most 8 MB.
Code besides: ASCII only, an SPDX line of its own near the top, at most 800 lines, no tabs (but in
Makefiles), no to-do without an issue number, no include that climbs with "../", no disabled code
(`#if` 0), no environment variable read outside src/core/env.cc.
Files are those that git tracks or would add; without git, all below ROOT.
"""
# SPDX-License-Identifier: Apache-2.0
import pathlib
import re
import subprocess
import sys

MAX_BYTES = 8 << 20
MAX_LINES = 800
SPDX_WITHIN = 30  # lines from the top
SPDX = re.compile(r"(//|#) SPDX-License-Identifier: Apache-2\.0")
CODE = {".h", ".cc", ".cu", ".cuh", ".py", ".sh", ".cmake"}
CODE_NAMES = {"CMakeLists.txt", "Makefile", "run"}
BINARY = {".safetensors", ".png", ".jpg", ".bin", ".gz", ".zst"}
# Reference data and the script that made it: kept byte for byte, only the size is checked.
AS_IT_WAS = "tests/goldens/"
SKIPPED_FOLDERS = {".git", "build", "data", "runs", "__pycache__"}

TO_DO = re.compile(r"\b(TO" r"DO|FIX" r"ME)\b(?!\(#\d+\))")
CLIMBS = re.compile(r'\s*#\s*include\s*[<"]\.\.?/')
DISABLED = re.compile(r"\s*#\s*if\s+0\b")
READS_ENVIRONMENT = re.compile(r"\b(secure_)?getenv\s*\(")
CPP = {".h", ".cc", ".cu", ".cuh"}


def is_code(path):
    return path.suffix in CODE or path.name in CODE_NAMES


def files_of(root):
    if (root / ".git").exists():
        listed = subprocess.run(
            ["git", "-C", str(root), "ls-files", "-z", "-c", "-o", "--exclude-standard"],
            check=True, capture_output=True).stdout.decode().split("\0")
        return sorted({name for name in listed if name and (root / name).is_file()})
    found = (p.relative_to(root) for p in root.rglob("*") if p.is_file())
    return sorted(p.as_posix() for p in found if not SKIPPED_FOLDERS & set(p.parts))


def check_line(name, path, line):
    """What is wrong with one line of code."""
    if not line.isascii():
        yield "not ASCII"
    if "\t" in line and path.name != "Makefile":
        yield "tab"
    if TO_DO.search(line):
        yield "to-do without an issue number, like TO" "DO(#123)"
    if path.suffix not in CPP:
        return
    if CLIMBS.match(line):
        yield "include paths start at src/, never at ./ or ../"
    if DISABLED.match(line):
        yield "disabled code: delete it"
    if READS_ENVIRONMENT.search(line) and name != "src/core/env.cc":
        yield "environment variables are read in src/core/env.cc alone"


def check_file(root, name):
    path = root / name
    size = path.stat().st_size
    if size > MAX_BYTES:
        yield f"{name}: {size} bytes, more than {MAX_BYTES}"
    if path.suffix in BINARY or name.startswith(AS_IT_WAS):
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        yield f"{name}: not UTF-8 text; list its suffix in BINARY if it is data"
        return
    lines = text.split("\n")
    if text and lines.pop() != "":
        yield f"{name}: no newline at the end"
    code = is_code(path)
    for number, line in enumerate(lines, 1):
        if line != line.rstrip():
            yield f"{name}:{number}: trailing whitespace"
        if code:
            for wrong in check_line(name, path, line):
                yield f"{name}:{number}: {wrong}"
    if not code:
        return
    if len(lines) > MAX_LINES:
        yield f"{name}: {len(lines)} lines, more than {MAX_LINES}"
    if not any(SPDX.fullmatch(line) for line in lines[:SPDX_WITHIN]):
        yield f"{name}: no line 'SPDX-License-Identifier: Apache-2.0' in the first {SPDX_WITHIN}"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    if not root.is_dir():
        sys.exit(f"check_sources.py: there is no {root}")
    names = files_of(root)
    bad = [wrong for name in names for wrong in check_file(root, name)]
    print("\n".join(bad) if bad else f"check_sources: {len(names)} files")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
