#!/usr/bin/env python3
"""Writes src/io/unicode_table.cc: the classes of all code points in the version of Unicode that
Hugging Face tokenizers 0.23 matches by. Needs the package unicodedata2 16.0.0 of PyPI:

    pip install unicodedata2==16.0.0 && scripts/make_unicode_table.py
"""
# SPDX-License-Identifier: Apache-2.0
import pathlib
import sys

import unicodedata2

VERSION = "16.0.0"
BITS = {"L": 1, "M": 2, "N": 4, "P": 8, "S": 16}  # kLetter to kSymbol of io/unicode.h
SPACE = 32
# White_Space of PropList.txt, which unicodedata2 does not have; unchanged since Unicode 6.3.
WHITE_SPACE = {*range(0x9, 0xE), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029,
               0x202F, 0x205F, 0x3000}

HEAD = """\
// The classes of Unicode {version}. Written by scripts/make_unicode_table.py; do not edit.
// SPDX-License-Identifier: Apache-2.0
#include "io/unicode.h"

namespace hadal::io {{

// First code point << 8 | classes of a range, which ends where the next begins.
const std::vector<uint32_t>& unicode_ranges() {{
  static const std::vector<uint32_t> ranges = {{
"""
TAIL = """\
  };
  return ranges;
}

}  // namespace hadal::io
"""


def classes(point):
    major = unicodedata2.category(chr(point))[0]
    return BITS.get(major, 0) | (SPACE if point in WHITE_SPACE else 0)


def main():
    if unicodedata2.unidata_version != VERSION:
        sys.exit(f"unicodedata2 is of Unicode {unicodedata2.unidata_version}; install {VERSION}")
    ranges, last = [], None
    for point in range(0x110000):
        now = classes(point)
        if now != last:
            ranges.append(f"0x{point << 8 | now:x},")
            last = now
    lines, line = [], ""
    for item in ranges:
        if len(line) + len(item) + 5 > 100:
            lines.append(line)
            line = ""
        line += (" " if line else "      ") + item
    lines.append(line)
    path = pathlib.Path(__file__).parent.parent / "src/io/unicode_table.cc"
    path.write_text(HEAD.format(version=VERSION) + "\n".join(lines) + "\n" + TAIL)


if __name__ == "__main__":
    main()
