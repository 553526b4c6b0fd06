"""Planted faults: a comparison that cannot fail would pass for a proof."""
# SPDX-License-Identifier: Apache-2.0
import re
import shutil

import torch

import check_layout
import check_logits
import ours
import theirs


def kind_of(name):
    """A name without its numbers of layer and expert."""
    return re.sub(r"\.\d+\.", ".*.", name)


def targets(directory, config, prompt, load):
    """By kind of tensor: the names to change one element in, and its index. Experts that no token
    chose are passed over, and so is the MTP layer, which transformers does not have."""
    busiest = int(load[0].argmax())
    result = {}
    for name in sorted(ours.layout(directory)):
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer and int(layer[1]) >= config.num_hidden_layers:
            continue
        if re.search(r"\.experts\.\d+\.", name) and f".experts.{busiest}." not in name:
            continue
        index = 0
        if name.endswith("embed_tokens.weight"):
            index = prompt[0] * config.hidden_size
        elif name.endswith("e_score_correction_bias"):
            index = busiest
        result.setdefault(kind_of(name), (name, index))
    return result


def with_copies(name, config):
    """The name and that of its copy in the MTP layer: hadal refuses copies that differ."""
    mtp = f"model.layers.{config.num_hidden_layers}."
    if name == "model.embed_tokens.weight":
        return {name, mtp + "embed_tokens.weight"}
    if name == "lm_head.weight":
        return {name, mtp + "shared_head.head.weight"}
    return {name}


def check_weights(report, directory, model, found, work):
    """One element of one tensor of each kind is changed in our file, and transformers keeps the old
    one: the comparison of logits must fail."""
    prompt, ids, expected, load = found
    config = model.config
    for kind, (name, index) in targets(directory, config, prompt, load).items():
        copy = work / "changed"
        shutil.copytree(directory, copy)
        names = with_copies(name, config)

        def change(other, values):
            if other not in names:
                return None
            values.view(-1)[index] += 0.1 if kind[-4:] != "bias" else -10.0
            return values

        ours.edit(copy, change)
        _, logits = ours.generate(copy, ids, 1, "f32", work)
        shutil.rmtree(copy)
        short = kind.removeprefix("model.").removeprefix("layers.*.").removesuffix(".weight")
        report.noticed(short, check_logits.distance(logits[:len(ids)], expected),
                       check_logits.F32_BOUND)


def check_scale(report, directory, ids, expected, work):
    """One scale of a block-FP8 checkpoint is 1% larger than that which transformers has."""
    copy = work / "changed"
    shutil.copytree(directory, copy)
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    ours.edit(copy, lambda other, values: values * 1.01 if other == name else None)
    _, logits = ours.generate(copy, ids, 1, "f32", work)
    shutil.rmtree(copy)
    report.noticed("one weight_scale_inv",
                   check_logits.distance(logits[:len(ids)], expected), check_logits.F32_BOUND)


def check_names(report, directory, expected, work):
    """A tensor under another name, in another type, or in another shape."""
    good = ours.layout(directory)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    dtype, shape = good[name]
    rest = {k: v for k, v in good.items() if k != name}
    for fault, layout in (("a missing tensor", rest),
                          ("a tensor too many", {**good, "model.extra.weight": good[name]}),
                          ("another type", {**rest, name: ("F16", shape)}),
                          ("a transposed shape", {**rest, name: (dtype, shape[::-1])})):
        report.noticed(fault, len(check_layout.differences(layout, expected)), 0)

    renamed = work / "renamed"
    shutil.copytree(directory, renamed)
    path = renamed / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"layers.2.self_attn.o_proj.weight",
                                               b"layers.2.self_attn.p_proj.weight", 1))
    report.noticed("a renamed tensor, when transformers loads it",
                   len(theirs.load(renamed, torch.float32)[1]), 0)
    shutil.rmtree(renamed)
