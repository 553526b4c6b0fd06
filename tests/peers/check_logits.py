"""Logits and greedy tokens of a checkpoint of ours, here and in transformers."""
# SPDX-License-Identifier: Apache-2.0
import torch

import ours
import theirs

PROMPT, REPLY = 48, 24  # tokens
# Absolute, for logits up to 1; a logit is a sum, so its rounding grows with it.
F32_BOUND = 2e-5
# bf16 rounds elsewhere in each program. Ours may not be further from f32 on the same weights than
# transformers' bf16 is, but for the luck of one draw.
BF16_BOUND = 1.25
# Nearer choices than these are decided by f32 rounding and say nothing.
ROUTING_GAP, GREEDY_GAP = 1e-6, 1e-4


def distance(a, b):
    """The worst absolute difference, by the size of the logits where that is above 1."""
    if a.shape != b.shape:
        return float("nan")
    return float((a - b).abs().max() / max(1.0, float(b.abs().max())))


def clear_prompt(model, seed):
    """A random prompt, transformers' greedy reply, its logits, and the experts' loads; drawn again
    while a choice of an expert or of a token is too close to call."""
    vocab = model.config.vocab_size
    for attempt in range(50):
        generator = torch.Generator().manual_seed(1000 * seed + attempt)
        prompt = torch.randint(2, vocab, (PROMPT,), generator=generator).tolist()
        reply = theirs.greedy(model, prompt, REPLY)
        with theirs.Routing(model) as routing:
            logits = theirs.logits(model, prompt + reply)
        top = logits[PROMPT - 1:-1].topk(2, -1)[0]
        if routing.gap > ROUTING_GAP and float((top[:, 0] - top[:, 1]).min()) > GREEDY_GAP:
            return prompt, reply, logits, routing.load
    raise RuntimeError("no prompt whose choices are clear")


def compare_f32(report, directory, model, work, seed):
    """f32 on both sides, of whatever is stored. Returns the prompt, the prompt with the reply,
    transformers' logits and the experts' loads."""
    prompt, reply, expected, load = clear_prompt(model, seed)
    tokens, logits = ours.generate(directory, prompt, REPLY, "f32", work)
    report.figure("greedy", sum(a != b for a, b in zip(tokens, reply, strict=True)), 0)
    report.figure("f32", distance(logits, theirs.logits(model, prompt + tokens)), F32_BOUND)
    return prompt, prompt + reply, expected, load


def fix_routing(directory, seed):
    """Biases so far apart that every program chooses the same groups and experts: in bf16 a choice
    that goes the other way would hide everything else."""
    generator = torch.Generator().manual_seed(seed)

    def change(name, values):
        if name.endswith("e_score_correction_bias"):
            return 4.0 * 2.0 ** torch.randperm(values.numel(), generator=generator)
        return None

    ours.edit(directory, change)


def compare_bf16(report, directory, exact, rounded, ids, work, dtypes):
    """The distance of our logits from those of f32, as a multiple of transformers' bf16. `exact`
    and `rounded` are transformers' models of `directory` in f32 and bf16."""
    reference = theirs.logits(exact, ids)
    unit = (theirs.logits(rounded, ids) - reference).norm()
    for check, dtype in dtypes.items():
        _, logits = ours.generate(directory, ids, 1, dtype, work)
        report.figure(check, float((logits[:len(ids)] - reference).norm() / unit), BF16_BOUND)
