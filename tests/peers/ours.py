"""hadal as a user runs it, and the safetensors files that it writes."""
# SPDX-License-Identifier: Apache-2.0
import json
import os
import pathlib
import struct
import subprocess

import torch
from safetensors.torch import load_file

HADAL = os.environ["HADAL"]
TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}


def hadal(*arguments):
    """Runs hadal and returns the bytes that it printed; its message is raised if it fails."""
    r = subprocess.run([HADAL, *map(str, arguments)], capture_output=True)
    if r.returncode != 0:
        raise RuntimeError(r.stderr.decode().strip() or f"hadal ended with {r.returncode}")
    return r.stdout


def generate(model, prompt, num_tokens, dtype, work):
    """The tokens that hadal adds to the prompt greedily, and the logits after each token."""
    path = work / "logits.safetensors"
    out = hadal("generate", "--model", model, "--prompt-ids", ",".join(map(str, prompt)),
                "--max-tokens", num_tokens, "--ignore-eos", "--dtype", dtype, "--json",
                "--logits", path)
    tokens, stored = json.loads(out)["token_ids"], load_file(path)
    assert stored["input_ids"].tolist() == list(prompt) + tokens, "--logits is of other tokens"
    return tokens, stored["logits"].double()


def weight_files(directory):
    """model.safetensors, or the shards that the index names."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return [directory / "model.safetensors"]
    names = json.loads(index.read_text())["weight_map"].values()
    return [directory / name for name in sorted(set(names))]


def header(path):
    """A file's header and where its data begins."""
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        return json.loads(f.read(n)), 8 + n


def layout(directory):
    """(dtype, shape) of every tensor of a checkpoint, by name."""
    result = {}
    for path in weight_files(pathlib.Path(directory)):
        for name, entry in header(path)[0].items():
            if name != "__metadata__":
                result[name] = (entry["dtype"], tuple(entry["shape"]))
    return result


def tensors(directory):
    result = {}
    for path in weight_files(pathlib.Path(directory)):
        result |= load_file(path)
    return result


def edit(directory, change):
    """Rewrites in place, so that everything but the values stays as hadal wrote it, each tensor
    for which change(name, tensor) gives new values."""
    for path in weight_files(pathlib.Path(directory)):
        entries, base = header(path)
        with open(path, "r+b") as f:
            for name, entry in entries.items():
                if name == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                f.seek(base + begin)
                data = bytearray(f.read(end - begin))
                old = torch.frombuffer(data, dtype=TYPES[entry["dtype"]]).view(entry["shape"])
                new = change(name, old.float())
                if new is not None:
                    f.seek(base + begin)
                    raw = new.to(old.dtype).contiguous().view(-1).view(torch.uint8)
                    f.write(raw.numpy().tobytes())
