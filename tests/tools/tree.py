"""A small repository in a temporary directory, for tests of the checkers in tools/."""
# SPDX-License-Identifier: Apache-2.0
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]


class TreeTest(unittest.TestCase):
    """self.write() files, then self.expect() the lines that the checker prints."""
    CHECKER = ""

    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.root = pathlib.Path(holder.name)

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, bytes):
            path.write_bytes(text)
        else:
            path.write_text(text, encoding="utf-8")

    def expect(self, *lines):
        run = subprocess.run([sys.executable, str(ROOT / "tools" / self.CHECKER), str(self.root)],
                             capture_output=True, text=True, check=False)
        self.assertEqual(run.stderr, "")
        printed = run.stdout.splitlines()
        if lines:
            self.assertEqual(printed, list(lines))
            self.assertEqual(run.returncode, 1)
        else:
            self.assertEqual(run.returncode, 0, run.stdout)
