#!/usr/bin/env python3
"""Checks and times `hadal serve --device cuda`, where the GPU is; needs Python alone.

  scripts/gpu_serve.py check PROGRAM OUT            answers over HTTP against hadal generate's
  scripts/gpu_serve.py speed PROGRAM OUT [LAYERS]   configs/model_16b.json, of as many layers (27)
  scripts/gpu_serve.py full PROGRAM OUT [LAYERS]    the same with 256 requests of 1,024 in, 1,024 out
  scripts/gpu_serve.py prefill PROGRAM OUT [LAYERS] prefill alone, in steps of 2,048 to 8,192 tokens
  scripts/gpu_serve.py ranks PROGRAM OUT [LAYERS]   one GPU beside a model shared by all of the machine

PROGRAM is build/gpu/hadal or build/cuda/hadal. Rows of JSON go to OUT/serve.jsonl. The model of
`speed` is made once, in build/model_16b_LAYERS. Bandwidth and peak of the card are measured with
PyTorch where it is installed, else taken from HADAL_GPU_GBPS and HADAL_GPU_TFLOPS.
"""
# SPDX-License-Identifier: Apache-2.0
import http.client
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = {"hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 128,
         "num_hidden_layers": 4, "num_nextn_predict_layers": 1, "vocab_size": 2048,
         "n_routed_experts": 16, "num_experts_per_tok": 4, "initializer_range": 0.06,
         "max_position_embeddings": 4096}


class Machine:
    def __init__(self, program, out, device="cuda"):
        self.program = str(pathlib.Path(program).resolve())
        self.out = pathlib.Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = device
        self.failed = 0

    def hadal(self, *arguments, env=None):
        done = subprocess.run([self.program, *map(str, arguments)], capture_output=True, text=True,
                              check=False, env={**os.environ, **(env or {})})
        if done.returncode != 0:
            raise RuntimeError(f"hadal {arguments[0]}: {done.stderr[-2000:]}")
        return done.stdout

    def row(self, name, **values):
        line = json.dumps({"name": name, **values})
        print(line, flush=True)
        with open(self.out / "serve.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def check(self, name, good, **values):
        self.failed += 0 if good else 1
        self.row(name, passed=bool(good), **values)

    def model(self, folder, changes):
        folder = pathlib.Path(folder)
        if (folder / "config.json").exists():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        config = json.loads((ROOT / "configs/model_16b.json").read_text(encoding="utf-8"))
        config.update(changes)
        path = folder.parent / (folder.name + ".json")
        path.write_text(json.dumps(config), encoding="utf-8")
        begin = time.time()
        self.hadal("init", "--config", path, "--seed", 1, folder)
        self.row("init", seconds=round(time.time() - begin, 1), model=folder.name)
        return folder


class Server:
    def __init__(self, machine, model, *options, env=None):
        self.machine, self.model, self.options, self.env = machine, model, options, env

    def __enter__(self):
        self.log = open(self.machine.out / "server.log", "a", encoding="utf-8")
        begin = time.time()
        self.process = subprocess.Popen(
            [self.machine.program, "serve", "--model", str(self.model), "--port", "0", "--device",
             self.machine.device, *map(str, self.options)], stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, **(self.env or {})})
        line = self.process.stdout.readline()
        match = re.search(r"http://127.0.0.1:(\d+)", line)
        if not match:
            self.log.close()
            tail = (self.machine.out / "server.log").read_text(encoding="utf-8")[-1500:]
            raise RuntimeError(f"no server with {self.options}: {line} {tail}")
        self.ready_seconds = time.time() - begin
        self.port = int(match[1])
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def post(self, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request("POST", "/v1/completions", json.dumps(body),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = json.loads(response.read())
        connection.close()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {data}")
        return data

    def first_token_seconds(self, body):
        """Seconds to the first part of a stream; reads it to its end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        begin = time.time()
        # NOTE: a model without a tokenizer has no text; token ids make the parts of a stream.
        connection.request("POST", "/v1/completions",
                           json.dumps({**body, "stream": True, "return_token_ids": True}),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(response.read())
        response.readline()
        seconds = time.time() - begin
        response.read()
        connection.close()
        return seconds

    def metrics(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return {m[1]: float(m[2]) for m in re.finditer(r"^hadal:(\w+)\{[^}]*\} (\S+)$", text, re.M)}

    def load(self, extra_body=None, **settings):
        """hadal bench serve with settings as its options; its row."""
        options = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
        row = json.loads(self.machine.hadal(
            "bench", "serve", "--url", f"http://127.0.0.1:{self.port}", "--extra-body",
            json.dumps({"temperature": 0, "return_token_ids": True, **(extra_body or {})}),
            *options))
        if row["failed"] or "itl_ms" not in row and settings["output_tokens"] > 1:
            raise RuntimeError(f"a load went wrong: {row}")
        return row


# ---- Answers ----

def check(machine):
    model = machine.model(machine.out / "small", SMALL)
    rng = random.Random(7)
    shared = [rng.randrange(2, 2048) for _ in range(700)]
    cases = []
    for i, (common, own) in enumerate([(0, 3), (0, 70), (130, 5), (130, 40), (700, 9), (700, 33),
                                       (64, 1), (0, 1500), (700, 700), (1, 1)]):
        prompt = shared[:common] + [rng.randrange(2, 2048) for _ in range(own)]
        rule = {"temperature": 0}
        if i % 3 == 1:
            rule = {"temperature": 0.9, "top_p": 0.95, "top_k": 40 if i % 2 else 0, "seed": i}
        cases.append((prompt, rule, 24 + 7 * i))
    wanted = []
    for prompt, rule, count in cases:
        options = [f"--{key.replace('_', '-')}={value}" for key, value in rule.items()]
        answer = json.loads(machine.hadal(
            "generate", "--model", model, "--device", "cuda", "--prompt-ids",
            ",".join(map(str, prompt)), "--max-tokens", count, "--ignore-eos", "--json", *options))
        wanted.append(answer["token_ids"])

    settings = {
        "prefix cache, chunks of 64": ["--max-seqs", 8, "--chunk", 64],
        "no prefix cache, chunks of 48, preemption": [
            "--max-seqs", 12, "--chunk", 48, "--no-prefix-cache", "--context", 384,
            "--cache-tokens", 448],
        "speculation": ["--max-seqs", 4, "--chunk", 128, "--speculate", 2],
        "speculation that is given up under load": [
            "--max-seqs", 16, "--chunk", 256, "--speculate", 2, "--speculate-seqs", 2],
        "as it comes": [],
        "call by call": ["--max-seqs", 16],
    }
    for name, options in settings.items():
        crowded = "preemption" in name  # many short ones at once, in a cache of seven pages
        repeats = 4 if crowded else 3 if name == "as it comes" else 1
        jobs = [(i, r) for r in range(repeats) for i in range(len(cases))
                if not crowded or len(cases[i][0]) < 200]
        random.Random(len(name)).shuffle(jobs)
        got = {}
        env = {"HADAL_DEBUG_SYNC": "1"} if name == "call by call" else None
        with Server(machine, model, "--quiet", *options, env=env) as server:
            def ask(i, r):
                prompt, rule, count = cases[i]
                body = {"prompt": prompt, "max_tokens": count, "ignore_eos": True,
                        "return_token_ids": True, **rule}
                if r == 2 and i % 2 == 0:  # the host takes part in these
                    body["logprobs"] = 1
                try:
                    got[i, r] = server.post(body)["choices"][0]["token_ids"]
                except Exception as error:  # a thread's error is this request's answer
                    got[i, r] = str(error)

            threads = [threading.Thread(target=ask, args=job) for job in jobs]
            for thread in threads:
                thread.start()
                time.sleep(0 if crowded else 0.01)
            for thread in threads:
                thread.join()
            metrics = server.metrics()
        wrong = [job for job in jobs if got[job] != wanted[job[0]]]
        did = {key: metrics[key] for key in
               ("num_preemptions_total", "prefix_cache_hits_total", "engine_steps_total",
                "spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total")}
        happened = (("preemption" not in name or did["num_preemptions_total"] > 0) and
                    (name != "speculation" or did["spec_decode_num_draft_tokens_total"] > 0) and
                    ("prefix cache, chunks" not in name or "no " in name or
                     did["prefix_cache_hits_total"] > 0))
        first = f"{wrong[0]}: {got[wrong[0]]} for {wanted[wrong[0][0]]}"[:600] if wrong else ""
        machine.check(f"tokens: {name}", not wrong and happened, requests=len(jobs),
                      wrong=len(wrong), first_wrong=first, **did)


# ---- Speed ----

def card():
    """GB/s of a copy, TFLOPS of a bf16 product."""
    gbps, tflops = os.environ.get("HADAL_GPU_GBPS"), os.environ.get("HADAL_GPU_TFLOPS")
    if gbps and tflops:
        return float(gbps), float(tflops)
    script = """
import torch
def best(fn):
    times = []
    for _ in range(8):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); fn(); b.record(); torch.cuda.synchronize(); times.append(a.elapsed_time(b) / 1e3)
    return min(times)
x = torch.empty(1 << 31, dtype=torch.uint8, device='cuda'); y = torch.empty_like(x)
gbps = 2 * x.numel() / best(lambda: y.copy_(x)) / 1e9
a = torch.randn(8192, 8192, dtype=torch.bfloat16, device='cuda')
print(gbps, 2 * 8192 ** 3 / best(lambda: a @ a) / 1e12)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError("no PyTorch here: set HADAL_GPU_GBPS and HADAL_GPU_TFLOPS")
    return tuple(map(float, done.stdout.split()))


class Costs:
    """Weights and sums of the model, from its config."""

    def __init__(self, c):
        D, H = c["hidden_size"], c["num_attention_heads"]
        R, Dr, Dn, Dv = (c["kv_lora_rank"], c["qk_rope_head_dim"], c["qk_nope_head_dim"],
                         c["v_head_dim"])
        L, dense = c["num_hidden_layers"], c["first_k_dense_replace"]
        E, K, shared = c["n_routed_experts"], c["num_experts_per_tok"], c["n_shared_experts"]
        Rq = c.get("q_lora_rank") or 0
        query = (D + H * (Dn + Dr)) * Rq if Rq else D * H * (Dn + Dr)
        attention = query + D * (R + Dr) + H * (Dn + Dv) * R + H * Dv * D
        expert = 3 * D * c["moe_intermediate_size"]
        common = L * attention + dense * 3 * D * c["intermediate_size"] + (L - dense) * (
            shared * expert + E * D)
        self.vocab, self.head = c["vocab_size"], D * c["vocab_size"]
        # Read by a step: of the experts those that its tokens meet, as even routing gives.
        self.step = lambda tokens: (common + self.head +
                                    (L - dense) * expert * E * (1 - (1 - K / E) ** tokens))
        self.active = common + (L - dense) * K * expert  # of a token, without the head
        self.cache_bytes = L * (R + Dr) * 2  # of a token of the context
        self.attention_flops = 2.0 * L * H * (2 * R + Dr)  # of a token and one of its context


def decode_row(machine, server, costs, gbps, tflops, prompt, output, streams):
    samples, done = [], threading.Event()

    def watch():
        while not done.is_set():
            samples.append((time.time(), server.metrics()))
            done.wait(0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        load = server.load(concurrency=streams, requests=streams, prompt_tokens=prompt,
                           vocab=costs.vocab, output_tokens=output)
    finally:
        done.set()
        thread.join()

    def between(a, b, key):
        return b[1][key] - a[1][key]

    # The longest time in which every step was one token of every stream.
    best, begin = None, None
    for a, b in zip(samples, samples[1:]):
        steps = between(a, b, "engine_steps_total")
        if steps > 0 and between(a, b, "engine_step_tokens_total") == streams * steps:
            begin = begin or a
            if best is None or b[0] - begin[0] > best[1][0] - best[0][0]:
                best = (begin, b)
        else:
            begin = None
    first, last = best or (samples[0], samples[-1])
    steps = between(first, last, "engine_steps_total")
    busy = between(first, last, "device_busy_seconds_total")
    idle = between(first, last, "device_idle_seconds_total")
    step = (last[0] - first[0]) / max(steps, 1)
    context = prompt + output / 2
    roof = ((2 * costs.step(streams) + streams * context * costs.cache_bytes) / (gbps * 1e9) +
            streams * (2 * (costs.active + costs.head) + context * costs.attention_flops) /
            (tflops * 1e12))
    machine.row("decode under load", streams=streams, prompt=prompt, output=output,
                pure_decode=best is not None, steps=steps, step_ms=step * 1e3,
                roofline_ms=roof * 1e3, roofline_share=roof / step, goal_roofline=0.4,
                device_busy_s=busy, device_idle_s=idle,
                device_idle_share=idle / max(busy + idle, 1e-9), goal_idle=0.03,
                tokens_per_s=load["output_tokens_per_s"], load=load)


def batch_one(machine, server, model, costs, numerics):
    rng = random.Random(1)
    ids = ",".join(str(rng.randrange(2, costs.vocab)) for _ in range(500))
    server.load(concurrency=1, requests=1, prompt_tokens=500, vocab=costs.vocab, output_tokens=20)
    load = server.load(concurrency=1, requests=2, prompt_tokens=500, vocab=costs.vocab,
                       output_tokens=200)
    rate = 1e3 / load["tpot_ms"]["p50"]
    machine.row("batch 1 over HTTP", numerics=numerics, tokens_per_s=rate)
    return rate, lambda: json.loads(machine.hadal(
        "generate", "--model", model, "--prompt-ids", ids, "--max-tokens", 200, "--ignore-eos",
        "--json", "--device", "cuda", "--numerics", numerics))["tokens_per_second"]


def prefill_row(machine, server, costs, tflops, tokens=2048, requests=24, concurrency=8, **what):
    load = server.load(concurrency=concurrency, requests=requests, prompt_tokens=tokens,
                       vocab=costs.vocab, output_tokens=1, seed=tokens)
    rate = load["prompt_tokens"] / load["seconds"]
    flops = rate * (2 * costs.active + tokens / 2 * costs.attention_flops)
    machine.row("prefill", prompt=tokens, requests=requests, tokens_per_s=rate,
                share_of_bf16_peak=flops / (tflops * 1e12), goal=0.5, **what)


def host_rows(machine, server, costs):
    """What it costs that the host takes part in the tokens of every request."""
    bodies = {"none": {}, "presence_penalty": {"presence_penalty": 0.5}, "logprobs": {"logprobs": 1},
              "logit_bias": {"logit_bias": {"7": -5}}}
    for streams in (1, 64):
        plain = None
        for name, body in bodies.items():
            load = server.load(extra_body=body, concurrency=streams, requests=2 * streams,
                               prompt_tokens=128, vocab=costs.vocab, output_tokens=128)
            rate = load["output_tokens_per_s"]
            plain = plain or rate
            machine.row("host takes part", what=name, streams=streams, tokens_per_s=rate,
                        share_of_plain=rate / plain)


def prefix_row(machine, server, costs, sizes=(8192, 8150)):
    # Ending with a page, and within one.
    for tokens in sizes:
        rng = random.Random(tokens)
        prompt = [rng.randrange(2, costs.vocab) for _ in range(tokens)]
        body = {"prompt": prompt, "max_tokens": 2, "temperature": 0}
        first = server.first_token_seconds(body)
        again = sorted(server.first_token_seconds(body) for _ in range(5))[2]
        machine.row(f"prefix of {tokens}", first_s=first, again_s=again, ratio=again / first,
                    goal=0.05)


def model_16b(machine, layers):
    model = machine.model(ROOT / f"build/model_16b_{layers}",
                          {"num_hidden_layers": layers, "max_position_embeddings": 16384})
    return model, Costs(json.loads((model / "config.json").read_text(encoding="utf-8")))


def prefill(machine, layers):
    model, costs = model_16b(machine, layers)
    tflops = card()[1]
    for chunk in (2048, 4096, 8192):
        with Server(machine, model, "--quiet", "--numerics", "fastest", "--context", 4096,
                    "--cache-tokens", 400000, "--chunk", chunk) as server:
            server.load(concurrency=8, requests=16, prompt_tokens=1024, vocab=costs.vocab,
                        output_tokens=1)
            for tokens, requests, concurrency in ((1024, 256, 256), (2048, 48, 16)):
                prefill_row(machine, server, costs, tflops, tokens, requests, concurrency,
                            chunk=chunk)


def speed(machine, layers, full):
    model, costs = model_16b(machine, layers)
    gbps, tflops = card()
    machine.row("card", copy_gbps=gbps, bf16_tflops=tflops, layers=layers)
    for numerics in ("fastest",) if full else ("fastest", "invariant"):
        with Server(machine, model, "--quiet", "--numerics", numerics, "--context", 16384,
                    "--cache-tokens", 600000) as server:
            machine.row("ready", numerics=numerics, seconds=server.ready_seconds, goal=5.0)
            rate, generate = batch_one(machine, server, model, costs, numerics)
            if numerics == "fastest":
                prefix_row(machine, server, costs)
            if full:
                decode_row(machine, server, costs, gbps, tflops, 1024, 1024, 256)
                prefill_row(machine, server, costs, tflops)
                prefill_row(machine, server, costs, tflops, 1024, 256, 256)
            elif numerics == "fastest":
                host_rows(machine, server, costs)
            else:
                for streams in (8, 64, 256):
                    decode_row(machine, server, costs, gbps, tflops, 128, 128, streams)
                prefill_row(machine, server, costs, tflops)
        alone = generate()
        machine.row("batch 1", numerics=numerics, http_tokens_per_s=rate,
                    generate_tokens_per_s=alone, ratio=rate / alone, goal=0.97)
    if not full:
        # Each op apart, for what is next: steps are not recorded then.
        with Server(machine, model, "--quiet", "--context", 2048,
                    env={"HADAL_PROFILE": "1"}) as server:
            server.load(concurrency=256, requests=256, prompt_tokens=16, vocab=costs.vocab,
                        output_tokens=24)
        log = (machine.out / "server.log").read_text(encoding="utf-8")
        print(log[log.rfind("us each") - 30:][:2500])


def ranks(machine, layers):
    """Latency of one stream and throughput of many, on one GPU and on all."""
    model, costs = model_16b(machine, layers)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(visible.split(",")) if visible else subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout.count("GPU ")
    if gpus < 2:
        raise RuntimeError(f"ranks need two GPUs or more, and there is {gpus}")
    alone = {}
    loads = ((1, 500, 200, 3), (64, 1024, 256, 64), (256, 1024, 1024, 256))
    for count, attention in ((1, None), (gpus, "heads"), (gpus, "sequences")):
        options = ["--ranks", count, "--attention", attention] if attention else []
        # Where sequences are split, as many on each GPU as on one.
        many = [(256 * count, 1024, 1024, 256 * count)] if attention == "sequences" else []
        with Server(machine, model, "--quiet", "--numerics", "fastest", "--context", 4096,
                    "--cache-tokens", 600000, *options) as server:
            machine.row("ready", ranks=count, attention=attention, seconds=server.ready_seconds)
            for streams, prompt, output, requests in (*loads, *many):
                server.load(concurrency=streams, requests=streams, prompt_tokens=64, vocab=costs.vocab,
                            output_tokens=8, seed=streams + 1)
                load = server.load(concurrency=streams, requests=requests, prompt_tokens=prompt,
                                   vocab=costs.vocab, output_tokens=output)
                rate = 1e3 / load["tpot_ms"]["p50"] if streams == 1 else load["output_tokens_per_s"]
                alone.setdefault(streams, rate if count == 1 else alone.get(256))
                machine.row("ranks", ranks=count, attention=attention, streams=streams,
                            prompt=prompt, output=output, tokens_per_s=rate,
                            over_one_gpu=rate / alone[streams], ttft_ms=load["ttft_ms"],
                            tpot_ms=load["tpot_ms"])


def main():
    if len(sys.argv) < 4 or sys.argv[1] not in ("check", "speed", "full", "prefill", "ranks"):
        print(__doc__, file=sys.stderr)
        return 2
    machine = Machine(sys.argv[2], sys.argv[3])
    layers = int(sys.argv[4]) if len(sys.argv) > 4 else 27
    begin = time.time()
    if sys.argv[1] == "check":
        check(machine)
    elif sys.argv[1] == "prefill":
        prefill(machine, layers)
    elif sys.argv[1] == "ranks":
        ranks(machine, layers)
    else:
        speed(machine, layers, sys.argv[1] == "full")
    machine.row("end", what=sys.argv[1], seconds=round(time.time() - begin, 1), failed=machine.failed)
    return 1 if machine.failed else 0


if __name__ == "__main__":
    sys.exit(main())
