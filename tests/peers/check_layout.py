"""Names, shapes, types and values of what hadal writes, against what transformers writes."""
# SPDX-License-Identifier: Apache-2.0
import json
import pathlib

import torch

import ours
import theirs

GOLDENS = pathlib.Path(__file__).parent.parent / "goldens"


def differences(a, b):
    """Of two dictionaries, ours and theirs."""
    return [f"{k}: ours {a.get(k, 'absent')}, theirs {b.get(k, 'absent')}"
            for k in sorted(a.keys() | b.keys())
            if a.get(k, "absent") != b.get(k, "absent") or (k in a) != (k in b)]


def as_fp8(layout):
    """The official layout of block FP8: matrices of products, with a scale per block."""
    result = {}
    for name, (dtype, shape) in layout.items():
        if name.split(".")[-2] in theirs.FP8_MODULES:
            result[name] = ("F8_E4M3", shape)
            blocks = tuple(-(-n // theirs.BLOCK) for n in shape)
            result[name + "_scale_inv"] = ("F32", blocks)
        else:
            result[name] = (dtype, shape)
    return result


def read_json(path):
    return json.loads(path.read_text())


def compare_with_saved(report, directory, model, work):
    """`model` is loaded from `directory` in the type that is stored there, f32 or bf16; what its
    save_pretrained writes must be what we wrote, to the bit. Returns the directory that it wrote
    and the expected layout with the MTP layers."""
    saved = work / f"{directory.name}-saved"
    model.save_pretrained(saved)
    plain = {torch.float32: "F32", torch.bfloat16: "BF16"}[model.dtype]
    expected = ours.layout(saved)
    for name, shape in theirs.mtp_shapes(model.config).items():
        is_bias = name.endswith("e_score_correction_bias")
        expected[name] = ("F32" if is_bias else plain, shape)
    report.problems("layout", differences(ours.layout(directory), expected))

    mine, other = ours.tensors(directory), ours.tensors(saved)
    report.problems("bits", [name for name, t in other.items()
                             if name not in mine or not torch.equal(mine[name], t)])
    configs = []
    for name in ("config.json", "generation_config.json"):
        both = (read_json(directory / name), read_json(saved / name))
        configs += [f"{name}: {problem}" for problem in differences(*both)]
    report.problems("config", configs)
    return saved, expected


def compare_with_goldens(report, work):
    """`hadal init` from a golden's config.json gives the layout of the golden's files."""
    for golden in sorted(p.parent for p in GOLDENS.glob("*/config.json")):
        config = read_json(golden / "config.json")
        fp8 = "quantization_config" in config
        directory = work / f"golden-{golden.name}"
        ours.hadal("init", "--config", golden / "config.json", "--dtype",
                   "fp8" if fp8 else "f32", directory)
        expected = ours.layout(golden)
        if fp8:  # the golden keeps in f32 what is not quantised, we and DeepSeek in bf16
            config["dtype"] = "bfloat16"
            for name, (dtype, shape) in expected.items():
                kept = name.endswith(("_scale_inv", "e_score_correction_bias"))
                expected[name] = ("BF16" if dtype == "F32" and not kept else dtype, shape)
        report.begin(f"golden {golden.name}")
        report.problems("layout", differences(ours.layout(directory), expected))
        report.problems("config", differences(read_json(directory / "config.json"), config))
