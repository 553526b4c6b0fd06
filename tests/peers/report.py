"""The table: a line for each checkpoint with the figure of every check, which is a failure beyond
its bound; at the end the worst figure of each check over all lines.
"""
# SPDX-License-Identifier: Apache-2.0


class Report:
    def __init__(self):
        self.passed = self.failed = 0
        self.name, self.cells, self.worst = "", [], {}

    def begin(self, name):
        """Starts a line, and prints the one before."""
        if self.cells:
            print(f"{self.name:<46}", "  ".join(self.cells), flush=True)
        self.name, self.cells = name, []

    def count(self, good, failure):
        self.passed += good
        self.failed += not good
        if not good:
            print(f"FAILED: {self.name}: {failure}", flush=True)

    def figure(self, check, value, bound):
        """Passes when value <= bound; NaN fails."""
        self.cells.append(f"{check} {value:.2g}")
        if check not in self.worst or not value <= self.worst[check][0]:
            self.worst[check] = (value, bound, self.name)
        self.count(value <= bound, f"{check} is {value:.3g}, the bound {bound:.3g}")

    def problems(self, check, problems):
        """Passes when the list is empty; shows its beginning otherwise."""
        self.figure(check, len(problems), 0)
        for problem in problems[:5]:
            print(f"    {problem}")

    def noticed(self, fault, value, bound):
        """Of a planted fault: passes when the check fails on it."""
        self.begin(f"planted: {fault}")
        good = not value <= bound
        self.cells.append(f"{'' if good else 'not '}noticed, {value:.2g} where {bound:.2g} passes")
        self.count(good, f"not noticed: {value:.3g} where {bound:.3g} passes")

    def close(self):
        self.begin("")
        print("\nworst of all:")
        for check, (value, bound, name) in self.worst.items():
            print(f"  {check:<14} {value:<8.2g} of {bound:<8.3g} {name}")
        print(f"peers: {self.passed} passed, {self.failed} failed")
        return 1 if self.failed or not self.passed else 0
