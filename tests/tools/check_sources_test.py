"""tools/check_sources.py passes a good tree and fails on each planted violation."""
# SPDX-License-Identifier: Apache-2.0
import subprocess
import unittest

from tree import TreeTest

SPDX = "// SPDX-License-Identifier: Apache-2.0\n"


class CheckSources(TreeTest):
    CHECKER = "check_sources.py"

    def setUp(self):
        super().setUp()
        self.write("src/a.cc", SPDX + '#include "core/a.h"\n')
        self.write("README.md", "# Caf\u00e9\n")
        self.write("Makefile", "# SPDX-License-Identifier: Apache-2.0\nall:\n\ttrue\n")
        self.write("build/bad.cc", "\t\n")

    def test_good_tree(self):
        self.expect()

    def plant(self, line, message, name="src/b.cc"):
        self.write(name, SPDX + line + "\n")
        self.expect(f"{name}:2: {message}")

    def test_not_ascii(self):
        self.plant("// caf\u00e9", "not ASCII")

    def test_tab(self):
        self.plant("\tint a;", "tab")

    def test_trailing_whitespace(self):
        self.plant("int a; ", "trailing whitespace")

    def test_trailing_whitespace_in_text(self):
        self.write("docs/a.md", "text \n")
        self.expect("docs/a.md:1: trailing whitespace")

    def test_to_do(self):
        self.plant("// TO" "DO: later", "to-do without an issue number, like TO" "DO(#123)")
        self.write("src/b.cc", SPDX + "// TO" "DO(#12): later\n")
        self.expect()

    def test_include_that_climbs(self):
        self.plant('#include "../core/a.h"', "include paths start at src/, never at ./ or ../")

    def test_disabled_code(self):
        self.plant("#if " "0", "disabled code: delete it")

    def test_environment(self):
        self.plant('auto v = std::getenv' '("X");',
                   "environment variables are read in src/core/env.cc alone")
        self.write("src/b.cc", SPDX)
        self.write("src/core/env.cc", SPDX + 'auto v = std::getenv' '("X");\n')
        self.expect()

    def test_no_spdx_line(self):
        message = "no line 'SPDX-License-Identifier: Apache-2.0' in the first 30"
        for text in ("int a;\n", "// What it is. " + SPDX[3:], SPDX.replace("Apache", "MIT")):
            self.write("src/b.cc", text)
            self.expect(f"src/b.cc: {message}")

    def test_no_final_newline(self):
        self.write("src/b.cc", SPDX + "int a;")
        self.expect("src/b.cc: no newline at the end")

    def test_too_many_lines(self):
        self.write("src/b.cc", SPDX + "int a;\n" * 799)
        self.expect()
        self.write("src/b.cc", SPDX + "int a;\n" * 800)
        self.expect("src/b.cc: 801 lines, more than 800")

    def test_too_large(self):
        self.write("data.bin", bytes((8 << 20) + 1))
        self.expect("data.bin: 8388609 bytes, more than 8388608")

    def test_binary_without_a_known_suffix(self):
        self.write("thing", b"\xff\xfe\x00")
        self.expect("thing: not UTF-8 text; list its suffix in BINARY if it is data")

    def test_untracked_files_count_and_ignored_ones_do_not(self):
        subprocess.run(["git", "init", "-q", str(self.root)], check=True)
        self.write(".gitignore", "/build/\n")
        self.expect()
        self.write("src/b.cc", SPDX + "int a; \n")
        self.expect("src/b.cc:2: trailing whitespace")


if __name__ == "__main__":
    unittest.main()
