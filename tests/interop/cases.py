"""The golden cases: each one's config, and which of its features must change the logits."""

import torch

# defaults of all cases
SHAPE = dict(
    vocab_size=112,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=False,
    use_cache=True,
)

ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
LINEAR = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}
# Wavelengths below 32/4 stay, those above 32/1 are scaled by 8, and one lies between: 24 tokens test all three
# branches.
LLAMA3 = {
    "rope_theta": 10000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
NO_ROPE_SCALING = {"rope scaling": {"rope_parameters": ROPE}}
BITNET = dict(
    model_type="bitnet",
    hidden_act="relu2",
    rms_norm_eps=1e-5,
    rope_parameters={"rope_theta": 500000.0, "rope_type": "default"},
)

# Configs in the format of transformers 4: top-level rope_theta, rope_scaling, torch_dtype, no head_dim or layer_types.
V4_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.45.0",
    "use_cache": True,
    "vocab_size": 112,
}
V4_QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 112,
}

# `spellings`: other config.json files for the same model, as changes to the one from transformers. DROP removes a key.
DROP = object()

CASES = {
    "llama": dict(
        config=dict(model_type="llama", num_key_value_heads=4, rope_parameters=ROPE),
        config_v4={**V4_LLAMA, "num_key_value_heads": 4},
        spellings={
            "tied_but_own_head": {"tie_word_embeddings": True},
            "defaults": {
                "num_key_value_heads": DROP, "head_dim": DROP, "rms_norm_eps": DROP, "hidden_act": DROP,
                "rope_parameters": DROP, "tie_word_embeddings": DROP, "max_position_embeddings": DROP,
            },
            "window_of_another_family": {"sliding_window": 4, "use_sliding_window": True},
        },
    ),
    "llama-gqa-tied-bias": dict(
        config=dict(
            model_type="llama", rope_parameters=ROPE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
        ),
        without={"attention bias": {"attention_bias": False}, "mlp bias": {"mlp_bias": False}},
    ),
    "llama-head-dim": dict(  # 4 heads of 24: q has 96 outputs, o maps 96 to 64
        config=dict(model_type="llama", rope_parameters={**ROPE, "rope_theta": 5000.0}, head_dim=24),
        without={"rope theta": {"rope_parameters": ROPE}},
    ),
    "llama-rope-linear": dict(
        config=dict(model_type="llama", rope_parameters=LINEAR),
        without=NO_ROPE_SCALING,
        config_v4={**V4_LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}},
        spellings={
            "scaling_beside_parameters": {
                "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            },
            "empty_scaling_beside_parameters": {"rope_scaling": {}},
        },
    ),
    "llama-rope-llama3": dict(
        config=dict(model_type="llama", rope_parameters=LLAMA3),
        without=NO_ROPE_SCALING,
        config_v4={**V4_LLAMA, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
        spellings={
            "original_length_outside": {
                "original_max_position_embeddings": 32,
                "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 200},
            },
            "original_length_by_default": {
                "max_position_embeddings": 32,
                "rope_parameters": {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"},
            },
        },
    ),
    "mistral": dict(
        config=dict(model_type="mistral", rms_norm_eps=1e-5, rope_parameters=ROPE, sliding_window=None, head_dim=16),
    ),
    "qwen2": dict(
        config=dict(model_type="qwen2", rope_parameters={**ROPE, "rope_theta": 1e6}),
        without={"rope theta": {"rope_parameters": ROPE}},
        dtype=torch.bfloat16,
        config_v4=V4_QWEN2,
        spellings={"window_of_no_layer": {
            "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2, "layer_types": DROP,
        }},
    ),
    "qwen2-tied": dict(
        config=dict(model_type="qwen2", rope_parameters=ROPE, tie_word_embeddings=True),
    ),
    "qwen3": dict(
        config=dict(
            model_type="qwen3", rope_parameters={**ROPE, "rope_theta": 1e6}, head_dim=32, tie_word_embeddings=True
        ),
        without={"rope theta": {"rope_parameters": ROPE}},
    ),
    "bitnet-dense": dict(  # no quantization_config: ordinary matrices, f32 activations
        config=dict(**BITNET, tie_word_embeddings=True),
        without={"activation": {"hidden_act": "silu"}},
        dtype=torch.bfloat16,
    ),
    "bitnet-bitlinear": dict(  # the default class: divides outputs by the stored scale
        config=BITNET,
        packed="bitlinear",
        quantization_config={"quant_method": "bitnet"},
    ),
    "bitnet-autobitlinear": dict(  # as microsoft/bitnet-b1.58-2B-4T: multiplies outputs by the stored scale
        config=dict(**BITNET, tie_word_embeddings=True),
        packed="autobitlinear",
        dtype=torch.bfloat16,
        quantization_config={
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
            "modules_to_not_convert": None,
        },
    ),
    "bitnet-online": dict(  # dense matrices, quantized to ternary at run time: scale 1/absmean, round, clamp
        config=dict(**BITNET, tie_word_embeddings=True),
        quantization_config={"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
    ),
}
