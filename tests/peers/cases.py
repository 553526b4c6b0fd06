"""Model configs to compare on: each differs from BASE in what its name says."""
# SPDX-License-Identifier: Apache-2.0

BASE = dict(
    model_type="deepseek_v3", vocab_size=320, hidden_size=64, intermediate_size=160,
    moe_intermediate_size=24, num_hidden_layers=4, num_attention_heads=4, q_lora_rank=24,
    kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12, n_routed_experts=16,
    n_shared_experts=1, num_experts_per_tok=4, n_group=4, topk_group=2, first_k_dense_replace=1,
    norm_topk_prob=True, routed_scaling_factor=2.5, rms_norm_eps=1e-6, rope_theta=10000.0,
    max_position_embeddings=512, initializer_range=0.08, bos_token_id=0, eos_token_id=1,
    num_nextn_predict_layers=1)

YARN = dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=32.0,
            beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)

CASES = {
    "plain": {},
    "no_q_lora": dict(q_lora_rank=None),
    "no_groups": dict(n_group=1, topk_group=1, n_shared_experts=2, num_experts_per_tok=6,
                      routed_scaling_factor=1.0),
    "yarn": dict(rope_scaling=YARN),
    "yarn_mscale": dict(rope_scaling=dict(YARN, mscale=0.707)),
    "half_split_rope": dict(rope_interleave=False, rope_theta=500000.0),
    "tied_head": dict(tie_word_embeddings=True, norm_topk_prob=False),
    "three_dense": dict(first_k_dense_replace=3, n_routed_experts=32, n_group=8, topk_group=4,
                        num_experts_per_tok=8),
    "no_mtp": dict(num_nextn_predict_layers=0, eos_token_id=[1, 7]),
    "two_mtp": dict(num_nextn_predict_layers=2, bos_token_id=None,
                    eos_token_id=None),
    # As deep as DeepSeek-V3, whose MTP layer transformers' own ignore list names.
    "61_layers": dict(hidden_size=32, intermediate_size=48, moe_intermediate_size=8,
                      num_hidden_layers=61, first_k_dense_replace=3, initializer_range=0.05),
    # Every matrix is whole blocks of 128: the shapes whose FP8 transformers itself decodes rightly.
    # (It takes the block size from the shape of the scales, so ragged edges go wrong.)
    "whole_blocks": dict(hidden_size=256, intermediate_size=384, moe_intermediate_size=128,
                         num_attention_heads=8, q_lora_rank=128, kv_lora_rank=112,
                         qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
                         initializer_range=0.05),
    # V3's head sizes, and more than one block of 128, with ragged edges.
    "v3_heads": dict(hidden_size=320, intermediate_size=384, moe_intermediate_size=136,
                     num_hidden_layers=3, num_attention_heads=2, q_lora_rank=160, kv_lora_rank=512,
                     qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
                     initializer_range=0.05),
}


def config_of(name):
    return {**BASE, **CASES[name]}
