#!/usr/bin/env python3
"""hadal serve --ranks 2: the texts of hadal generate --ranks 2, and of one rank where sequences are
split; ranks that die, ranks that sleep."""
# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import tempfile
import time
import unittest

import harness
from harness import Server, generate
from operation_test import LONG, wait_until

COMPLETIONS = "/v1/completions"
RANKS = ["--ranks", "2", "--context", "256"]
SEQUENCES = [*RANKS, "--attention", "sequences"]
PROMPTS = ["the quick brown", "over the lazy dog; some more words are here and there " * 4,
           "some more words are here\n" * 7 + "the", "x"]


def text_of_ranks(prompt, **settings):
    return generate(prompt, "--ranks", "2", **settings)["text"]


def ranks_of(server):
    pid = server.process.pid
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Ranks(unittest.TestCase):
    def test_texts_are_those_of_generate_under_load(self):
        cases = []
        for i in range(8):
            prompt = PROMPTS[i % len(PROMPTS)]
            settings = {"max_tokens": 20 + 10 * i}
            if i % 2:
                settings.update(temperature=0.9, top_p=0.9, top_k=40, seed=i)
            cases.append((prompt, settings, text_of_ranks(prompt, **settings)))
        # Room for one long sequence, or two.
        for options in (["--cache-tokens", "256", "--chunk", "7"],
                        ["--no-prefix-cache", "--speculate", "2", "--cache-tokens", "320"]):
            with Server(*RANKS, "--max-seqs", "4", *options) as server:
                self.assertIn("memory of each of 2 ranks: ", server.errors())
                got = server.complete_at_once(
                    [{"prompt": prompt, **settings} for prompt, settings, _ in cases],
                    lambda i: i % 3, len(options))
                for i, (_, settings, want) in enumerate(cases):
                    self.assertEqual(got[i], want, (options, settings))
                metrics = server.metrics()
                self.assertEqual(metrics["requests_submitted_total"], len(cases))
                # What the host decides about a token, the other rank need not know.
                body = {"prompt": "the", "max_tokens": 8, "temperature": 0, "logprobs": 1,
                        "frequency_penalty": 1, "logit_bias": {"20": 5}}
                self.assertEqual(server.post(COMPLETIONS, body)[0], 200)
                server.process.send_signal(signal.SIGTERM)
                self.assertEqual(server.process.wait(20), 0)

    def test_texts_of_split_sequences_are_those_of_one_rank(self):
        cases = []
        for i in range(12):
            prompt = PROMPTS[i % len(PROMPTS)]
            settings = {"max_tokens": 20 + 5 * i}
            if i % 2:
                settings.update(temperature=0.9, top_p=0.9, top_k=40, seed=i)
            cases.append((prompt, settings, generate(prompt, **settings)["text"]))
        for options in (["--cache-tokens", "256", "--chunk", "7"],
                        ["--speculate", "2", "--speculate-seqs", "6", "--cache-tokens", "320"]):
            with Server(*SEQUENCES, "--max-seqs", "4", *options) as server:
                got = server.complete_at_once(
                    [{"prompt": prompt, **settings} for prompt, settings, _ in cases],
                    lambda i: i % 3, len(options))
                for i, (_, settings, want) in enumerate(cases):
                    self.assertEqual(got[i], want, (options, settings))
                body = {"prompt": "the", "max_tokens": 8, "temperature": 0, "logprobs": 1,
                        "frequency_penalty": 1, "logit_bias": {"20": 5}, "n": 2}
                self.assertEqual(server.post(COMPLETIONS, body)[0], 200)
                server.process.send_signal(signal.SIGTERM)
                self.assertEqual(server.process.wait(20), 0)

    def test_a_rank_with_sequences_that_dies_ends_the_server(self):
        with Server("--ranks", "2", "--attention", "sequences", "--context", "8000",
                    "--quiet") as server:
            connection, response = server.open_stream(COMPLETIONS, LONG)
            self.assertTrue(response.readline().startswith(b"data: "))
            os.kill(ranks_of(server)[1], signal.SIGKILL)
            self.assertIn("rank 1 failed at step ", response.read().decode())
            connection.close()
            self.assertEqual(server.process.wait(30), 1)

    def test_attention_is_for_several_ranks(self):
        for options, error in (
                (["--attention", "sequences"],
                 "--attention sequences is for a model on several ranks; give --ranks 2 or more"),
                (["--ranks", "2", "--attention", "rows"],
                 "--attention is rows; allowed: heads, sequences")):
            done = subprocess.run([harness.HADAL, "serve", "--model", Server.model, *options],
                                  capture_output=True, text=True, check=False)
            self.assertEqual((done.returncode, done.stderr), (1, f"hadal: {error}\n"))

    def test_a_rank_that_dies_under_load_ends_the_server_with_its_name(self):
        with Server("--ranks", "2", "--context", "8000", "--quiet") as server:
            connection, response = server.open_stream(COMPLETIONS, LONG)
            self.assertTrue(response.readline().startswith(b"data: "))
            os.kill(ranks_of(server)[1], signal.SIGKILL)
            # The stream ends with an error, and does not hang.
            rest = response.read().decode()
            self.assertIn("rank 1 failed at step ", rest)
            self.assertIn('"error"', rest.strip().split("\n")[-1])
            connection.close()
            self.assertEqual(server.process.wait(30), 1)
            last = server.errors().strip().split("\n")[-1]
            self.assertRegex(last, r"^hadal: rank 1 failed at step \d+, in \w+ \([a-z ]+\): it was "
                                   r"killed by signal 9 \(Killed\)$")

    def test_a_rank_that_dies_without_load_does_so_too(self):
        with Server(*RANKS, "--quiet") as server:
            self.assertEqual(server.post(COMPLETIONS, {"prompt": "x", "max_tokens": 2})[0], 200)
            os.kill(ranks_of(server)[1], signal.SIGKILL)
            self.assertEqual(server.process.wait(30), 1)
            self.assertIn("hadal: rank 1 failed at step ", server.errors())

    def test_ranks_without_work_sleep(self):
        with Server(*RANKS, "--quiet") as server:
            self.assertEqual(server.post(COMPLETIONS, {"prompt": "x", "max_tokens": 2})[0], 200)
            time.sleep(0.5)
            ranks = ranks_of(server)
            before = [cpu_seconds(pid) for pid in ranks]
            time.sleep(3)
            for pid, then in zip(ranks, before):
                self.assertLess(cpu_seconds(pid) - then, 0.15)

    def test_what_does_not_divide_is_a_sentence(self):
        done = subprocess.run([harness.HADAL, "serve", "--model", Server.model, "--ranks", "3"],
                              capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stderr),
                         (1, "hadal: ranks = 3 does not divide num_attention_heads = 4\n"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Server.model = harness.make_model(folder)
        unittest.main()
