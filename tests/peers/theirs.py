"""The peer: transformers' DeepseekV3ForCausalLM on the CPU."""
# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import torch
import transformers
from safetensors.torch import save_file
from transformers import DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (DeepseekV3DecoderLayer,
                                                                  DeepseekV3TopkRouter)

import ours

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

BLOCK = 128
FP8_MODULES = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj",
               "gate_proj", "up_proj", "down_proj")


def load(directory, dtype, quantization=None):
    """A model, and what loading reported that no checkpoint of ours may cause."""
    more = {} if quantization is None else {"quantization_config": quantization}
    model, info = DeepseekV3ForCausalLM.from_pretrained(directory, dtype=dtype,
                                                        output_loading_info=True, **more)
    problems = []
    c = model.config
    mtp = [f"model.layers.{c.num_hidden_layers + k}." for k in range(c.num_nextn_predict_layers)]
    for kind, found in info.items():
        for key in found:
            # transformers has no MTP module. Its ignore list names the layer of DeepSeek-V3 itself
            # (61); at any other depth the same layer, and nothing else, counts as unexpected.
            if kind == "unexpected_keys" and str(key).startswith(tuple(mtp)):
                if c.num_hidden_layers != 61:
                    continue
            problems.append(f"{kind}: {key}")
    return model.eval(), problems


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()


def greedy(model, prompt, num_tokens):
    """transformers' own generate, with its cache; the end-of-sequence token is ignored."""
    eos, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    with torch.no_grad():
        out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=num_tokens)
    model.generation_config.eos_token_id = eos
    return out[0, len(prompt):].tolist()


class Routing:
    """While open: the tokens of each expert by layer, and how near a choice was to another."""

    def __init__(self, model):
        self.load, self.gap = [], float("inf")
        self.gates = [m for m in model.modules() if isinstance(m, DeepseekV3TopkRouter)]

    def __enter__(self):
        self.hooks = [g.register_forward_hook(self.record) for g in self.gates]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def record(self, gate, _, out):
        experts, groups = gate.num_experts, gate.num_group
        self.load.append(torch.bincount(out[2].flatten(), minlength=experts))
        biased = out[0].sigmoid() + gate.e_score_correction_bias
        score = biased.view(-1, groups, experts // groups).topk(2, -1)[0].sum(-1)
        kept = torch.zeros_like(score).scatter_(1, score.topk(gate.topk_group, -1)[1], 1)
        masked = biased.masked_fill(kept.repeat_interleave(experts // groups, -1) == 0, -1e9)
        for values, k in ((score, gate.topk_group), (masked, gate.top_k)):
            if k < values.shape[-1]:
                v = values.sort(-1, descending=True)[0]
                self.gap = min(self.gap, float((v[:, k - 1] - v[:, k]).min()))


def decode_fp8(source, target):
    """Writes what a block-FP8 checkpoint of ours stands for, weight * weight_scale_inv by blocks of
    128 x 128, as an f32 checkpoint; returns what is wrong with the scales."""
    stored, problems, plain = ours.tensors(source), [], {}
    for name, w in stored.items():
        if name.endswith("_scale_inv"):
            continue
        scale = stored.get(name + "_scale_inv")
        if (scale is not None) != (w.dtype == torch.float8_e4m3fn):
            problems.append(f"{name} is {w.dtype}, its scale {scale is not None}")
        if scale is not None:
            spread = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            plain[name] = w.float() * spread[:w.shape[0], :w.shape[1]]
        else:
            plain[name] = w.float()
    config = json.loads((source / "config.json").read_text())
    quantization = config.pop("quantization_config")
    if quantization["weight_block_size"] != [BLOCK, BLOCK]:
        problems.append(f"quantization_config: {quantization}")
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    shutil.copy(source / "generation_config.json", target)
    save_file({k: v.contiguous() for k, v in plain.items()}, target / "model.safetensors",
              metadata={"format": "pt"})
    return problems


def split_experts(state):
    """The fused expert tensors of transformers' modules under the names that checkpoints have."""
    result = {}
    for name, t in state.items():
        prefix, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for e in range(t.shape[0]):
                half = t.shape[1] // 2
                result[f"{prefix}.{e}.gate_proj.weight"] = t[e, :half]
                result[f"{prefix}.{e}.up_proj.weight"] = t[e, half:]
        elif last == "down_proj":
            for e in range(t.shape[0]):
                result[f"{prefix}.{e}.down_proj.weight"] = t[e]
        else:
            result[name] = t
    return result


def mtp_shapes(config):
    """Names and shapes of the MTP layers, from transformers' decoder layer and the official layout
    (README_WEIGHTS of DeepSeek-V3)."""
    result, d, v = {}, config.hidden_size, config.vocab_size
    for k in range(config.num_nextn_predict_layers):
        layer = config.num_hidden_layers + k
        prefix = f"model.layers.{layer}."
        with torch.device("meta"):
            block = DeepseekV3DecoderLayer(config, layer)
        for name, t in split_experts(block.state_dict()).items():
            result[prefix + name] = tuple(t.shape)
        result[prefix + "enorm.weight"] = result[prefix + "hnorm.weight"] = (d,)
        result[prefix + "shared_head.norm.weight"] = (d,)
        result[prefix + "eh_proj.weight"] = (d, 2 * d)
        result[prefix + "embed_tokens.weight"] = (v, d)
        if not config.tie_word_embeddings:
            result[prefix + "shared_head.head.weight"] = (v, d)
    return result
