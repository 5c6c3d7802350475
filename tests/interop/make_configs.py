"""The configurations of published models, for tests/fixtures/configs.json.

usage: make_configs.py [--check]: --check compares with the file instead of writing it.

Each model comes in two shapes: as its publisher wrote it, by the transformers of its day, and as the installed
transformers saves it again. `refused` names the key for which a model cannot run here.
"""

import copy
import json
import sys
from pathlib import Path

import transformers
from transformers import AutoConfig

from make_keys import differs_from

FILE = Path(__file__).resolve().parent.parent / "fixtures" / "configs.json"

# The keys that each generation of transformers wrote besides the sizes.
COMMON = {"hidden_act": "silu", "initializer_range": 0.02, "use_cache": True}
V4_28 = {**COMMON, "transformers_version": "4.28.0", "torch_dtype": "float16", "pad_token_id": 0}
V4_31 = {**COMMON, "transformers_version": "4.31.0", "torch_dtype": "float16", "pretraining_tp": 1, "rope_scaling": None}
V4_35 = {**V4_31, "transformers_version": "4.35.0", "attention_bias": False, "rope_theta": 10000.0}
V4_40 = {**V4_35, "transformers_version": "4.40.0", "torch_dtype": "bfloat16", "attention_dropout": 0.0}
V4_45 = {**V4_40, "transformers_version": "4.45.0", "mlp_bias": False}
QWEN = {
    **COMMON,
    "transformers_version": "4.37.0",
    "torch_dtype": "bfloat16",
    "attention_dropout": 0.0,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "rms_norm_eps": 1e-6,
}
QWEN3 = {**QWEN, "transformers_version": "4.51.0", "attention_bias": False, "sliding_window": None, "rope_scaling": None}
MISTRAL = {
    **COMMON,
    "transformers_version": "4.36.0",
    "torch_dtype": "bfloat16",
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
}


def llama3(factor: float) -> dict:
    """Llama 3.1's scaling of the rotary embedding."""
    return {
        "factor": factor,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }


def sizes(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, positions: int, **more) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **more,
    }


LLAMA3_IDS = {"bos_token_id": 128000, "eos_token_id": 128001, "rope_theta": 500000.0}
QWEN_IDS = {"bos_token_id": 151643, "eos_token_id": 151645}
DEEPSEEK_IDS = {"bos_token_id": 32013, "eos_token_id": 32014}
SMOL = {"is_llama_config": True, "rope_interleaved": False, "bos_token_id": 0, "eos_token_id": 0}
LINEAR4 = {"rope_scaling": {"factor": 4.0, "type": "linear"}}

# name: model type, class, keys of its day, its own keys
MODELS = {
    "llama-7b": ("llama", V4_28, sizes(4096, 11008, 32, 32, 32, 32000, 2048, rms_norm_eps=1e-6, max_sequence_length=2048)),
    "llama-13b": ("llama", V4_28, sizes(5120, 13824, 40, 40, 40, 32000, 2048, rms_norm_eps=1e-6, _name_or_path="llama-13b")),
    "llama-65b": ("llama", V4_28, sizes(8192, 22016, 80, 64, 64, 32000, 2048)),
    "open-llama-3b": ("llama", V4_28, sizes(3200, 8640, 26, 32, 32, 32000, 2048, rms_norm_eps=1e-6)),
    "llama-2-7b": ("llama", V4_31, sizes(4096, 11008, 32, 32, 32, 32000, 4096, _name_or_path="meta-llama/Llama-2-7b-hf")),
    "llama-2-70b": ("llama", V4_31, sizes(8192, 28672, 80, 64, 8, 32000, 4096)),
    "vicuna-7b-v1.5-16k": ("llama", V4_31, sizes(4096, 11008, 32, 32, 32, 32000, 4096, max_sequence_length=16384, **LINEAR4)),
    "codellama-7b": ("llama", V4_35, sizes(4096, 11008, 32, 32, 32, 32016, 16384, rope_theta=1000000)),
    "tinyllama-1.1b": ("llama", V4_35, sizes(2048, 5632, 22, 32, 4, 32000, 2048)),
    "sheared-llama-1.3b": ("llama", V4_31, sizes(2048, 5504, 24, 16, 16, 32000, 4096)),
    "yi-6b": ("llama", V4_35, sizes(4096, 11008, 32, 32, 4, 64000, 4096, rope_theta=5000000.0, pad_token_id=0)),
    "deepseek-coder-1.3b": ("llama", V4_35, sizes(2048, 5504, 24, 16, 16, 32256, 16384, **DEEPSEEK_IDS, rope_theta=100000, **LINEAR4)),
    "deepseek-llm-7b": ("llama", V4_31, sizes(4096, 11008, 30, 32, 32, 102400, 4096, bos_token_id=100000, eos_token_id=100001)),
    "solar-10.7b": ("llama", V4_35, sizes(4096, 14336, 48, 32, 8, 32000, 4096, model_type="llama")),
    "granite-3b-code": ("llama", V4_40, sizes(2560, 10240, 32, 32, 32, 49152, 2048, attention_bias=True, mlp_bias=True, attention_dropout=0.1, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0, rope_theta=10000000)),
    "llama-3-8b": ("llama", V4_40, sizes(4096, 14336, 32, 32, 8, 128256, 8192, **LLAMA3_IDS)),
    "llama-3-8b-262k": ("llama", V4_40, sizes(4096, 14336, 32, 32, 8, 128256, 262144, **{**LLAMA3_IDS, "rope_theta": 207112184.0})),
    "llama-3.1-8b": ("llama", V4_45, sizes(4096, 14336, 32, 32, 8, 128256, 131072, **LLAMA3_IDS, rope_scaling=llama3(8.0))),
    "llama-3.1-8b-instruct": ("llama", V4_45, sizes(4096, 14336, 32, 32, 8, 128256, 131072, **{**LLAMA3_IDS, "eos_token_id": [128001, 128008, 128009]}, rope_scaling=llama3(8.0))),
    "llama-3.2-1b": ("llama", V4_45, sizes(2048, 8192, 16, 32, 8, 128256, 131072, head_dim=64, tie_word_embeddings=True, **LLAMA3_IDS, rope_scaling=llama3(32.0))),
    "llama-3.2-3b": ("llama", V4_45, sizes(3072, 8192, 28, 24, 8, 128256, 131072, head_dim=128, tie_word_embeddings=True, **LLAMA3_IDS, rope_scaling=llama3(32.0))),
    "llama-3.3-70b": ("llama", V4_45, sizes(8192, 28672, 80, 64, 8, 128256, 131072, head_dim=128, **LLAMA3_IDS, rope_scaling=llama3(8.0))),
    "unsloth-llama-3.2-1b": ("llama", V4_45, sizes(2048, 8192, 16, 32, 8, 128256, 131072, head_dim=64, tie_word_embeddings=True, pad_token_id=128004, unsloth_fixed=True, unsloth_version="2025.1.1", **LLAMA3_IDS, rope_scaling=llama3(32.0))),
    "hermes-3-llama-3.1-8b": ("llama", V4_45, sizes(4096, 14336, 32, 32, 8, 128256, 131072, **LLAMA3_IDS, rope_scaling=llama3(8.0), use_cache=False)),
    "r1-distill-llama-8b": ("llama", V4_45, sizes(4096, 14336, 32, 32, 8, 128256, 131072, **LLAMA3_IDS, rope_scaling=llama3(8.0))),
    "minitron-4b-width": ("llama", V4_45, sizes(3072, 9216, 32, 32, 8, 128256, 131072, head_dim=128, **LLAMA3_IDS, rope_scaling=llama3(8.0))),
    "smollm-135m": ("llama", V4_40, sizes(576, 1536, 30, 9, 3, 49152, 2048, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)),
    "smollm2-135m": ("llama", V4_40, sizes(576, 1536, 30, 9, 3, 49152, 8192, tie_word_embeddings=True, rope_theta=100000, **SMOL)),
    "smollm2-135m-instruct": ("llama", V4_45, sizes(576, 1536, 30, 9, 3, 49152, 8192, tie_word_embeddings=True, rope_theta=100000, **{**SMOL, "bos_token_id": 1, "eos_token_id": 2}, pad_token_id=2, **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}})),
    "smollm2-1.7b": ("llama", V4_40, sizes(2048, 8192, 24, 32, 32, 49152, 8192, tie_word_embeddings=True, rope_theta=130000, **SMOL)),
    "falcon3-1b": ("llama", V4_45, sizes(2048, 8192, 18, 8, 4, 131072, 8192, head_dim=256, activation="swiglu", rms_norm_eps=1e-6, rope_theta=1000042, bos_token_id=None, eos_token_id=11)),
    "danube3-500m": ("llama", V4_45, sizes(1536, 4096, 16, 16, 8, 32000, 8192, head_dim=96, rope_theta=100000, pad_token_id=0)),
    "amd-llama-135m": ("llama", V4_40, sizes(768, 2048, 12, 12, 12, 32000, 2048)),
    "maincoder-1b": ("llama", V4_45, sizes(2048, 5632, 24, 16, 4, 50304, 4096, head_dim=128, _attn_implementation_autoset=True)),
    "bitnet-llama3-8b-1.58": ("llama", V4_45, sizes(4096, 14336, 32, 32, 8, 128256, 8192, **LLAMA3_IDS, quantization_config={"modules_to_not_convert": None, "quant_method": "bitnet"})),
    "mistral-7b-v0.1": ("mistral", MISTRAL, sizes(4096, 14336, 32, 32, 8, 32000, 32768, sliding_window=4096, rope_theta=10000.0)),
    "zephyr-7b-beta": ("mistral", MISTRAL, sizes(4096, 14336, 32, 32, 8, 32000, 32768, sliding_window=4096, rope_theta=10000.0, pad_token_id=2)),
    "mistral-7b-v0.2": ("mistral", MISTRAL, sizes(4096, 14336, 32, 32, 8, 32000, 32768, rope_theta=1000000.0)),
    "mistral-7b-v0.3": ("mistral", MISTRAL, sizes(4096, 14336, 32, 32, 8, 32768, 32768, rope_theta=1000000.0)),
    "mathstral-7b": ("mistral", MISTRAL, sizes(4096, 14336, 32, 32, 8, 32768, 32768, rope_theta=1000000.0, head_dim=128)),
    "mistral-nemo-12b": ("mistral", MISTRAL, sizes(5120, 14336, 40, 32, 8, 131072, 1024000, head_dim=128, rope_theta=1000000.0)),
    "codestral-22b": ("mistral", MISTRAL, sizes(6144, 16384, 56, 48, 8, 32768, 32768, rope_theta=1000000.0)),
    "mistral-small-24b": ("mistral", MISTRAL, sizes(5120, 32768, 40, 32, 8, 131072, 32768, head_dim=128, rope_theta=100000000.0)),
    "danube2-1.8b": ("mistral", MISTRAL, sizes(2560, 6912, 24, 32, 8, 32000, 8192, rope_theta=10000, pad_token_id=0, _flash_attn_2_enabled=True)),
    "qwen1.5-0.5b": ("qwen2", QWEN, sizes(1024, 2816, 24, 16, 16, 151936, 32768, **QWEN_IDS, max_window_layers=21, sliding_window=32768, tie_word_embeddings=True)),
    "qwen1.5-7b": ("qwen2", QWEN, sizes(4096, 11008, 32, 32, 32, 151936, 32768, **QWEN_IDS, max_window_layers=28, sliding_window=32768)),
    "qwen2-0.5b": ("qwen2", QWEN, sizes(896, 4864, 24, 14, 2, 151936, 131072, **QWEN_IDS, max_window_layers=24, sliding_window=131072, tie_word_embeddings=True)),
    "qwen2-1.5b": ("qwen2", QWEN, sizes(1536, 8960, 28, 12, 2, 151936, 131072, **QWEN_IDS, max_window_layers=28, sliding_window=131072, tie_word_embeddings=True)),
    "qwen2-7b-instruct": ("qwen2", QWEN, sizes(3584, 18944, 28, 28, 4, 152064, 32768, **QWEN_IDS, max_window_layers=28, sliding_window=131072)),
    "qwen2.5-0.5b-instruct": ("qwen2", QWEN, sizes(896, 4864, 24, 14, 2, 151936, 32768, **QWEN_IDS, max_window_layers=21, sliding_window=32768, tie_word_embeddings=True)),
    "qwen2.5-1.5b": ("qwen2", QWEN, sizes(1536, 8960, 28, 12, 2, 151936, 131072, **QWEN_IDS, max_window_layers=28, sliding_window=131072, tie_word_embeddings=True, use_mrope=False)),
    "qwen2.5-coder-7b": ("qwen2", QWEN, sizes(3584, 18944, 28, 28, 4, 152064, 32768, **QWEN_IDS, max_window_layers=28, sliding_window=131072)),
    "qwen2.5-math-1.5b": ("qwen2", QWEN, sizes(1536, 8960, 28, 12, 2, 151936, 4096, **QWEN_IDS, max_window_layers=21, sliding_window=4096, tie_word_embeddings=True, use_mrope=False, rope_theta=10000)),
    "qwen2.5-72b": ("qwen2", QWEN, sizes(8192, 29568, 80, 64, 8, 152064, 131072, **QWEN_IDS, max_window_layers=80, sliding_window=None)),
    "r1-distill-qwen-1.5b": ("qwen2", QWEN, sizes(1536, 8960, 28, 12, 2, 151936, 131072, bos_token_id=151646, eos_token_id=151643, max_window_layers=21, sliding_window=4096, use_mrope=False, rope_theta=10000)),
    "qwq-32b": ("qwen2", QWEN, sizes(5120, 27648, 64, 40, 8, 152064, 40960, **QWEN_IDS, max_window_layers=64, sliding_window=32768)),
    "gte-qwen2-1.5b": ("qwen2", QWEN, sizes(1536, 8960, 28, 12, 2, 151646, 131072, **QWEN_IDS, max_window_layers=21, sliding_window=131072, is_causal=False, auto_map={"AutoModel": "modeling_qwen.Qwen2Model"})),
    "qwen3-0.6b": ("qwen3", QWEN3, sizes(1024, 3072, 28, 16, 8, 151936, 40960, **QWEN_IDS, head_dim=128, max_window_layers=28, tie_word_embeddings=True)),
    "qwen3-1.7b": ("qwen3", QWEN3, sizes(2048, 6144, 28, 16, 8, 151936, 40960, **QWEN_IDS, head_dim=128, max_window_layers=28, tie_word_embeddings=True)),
    "qwen3-4b-2507": ("qwen3", QWEN3, sizes(2560, 9728, 36, 32, 8, 151936, 262144, **QWEN_IDS, head_dim=128, max_window_layers=36, tie_word_embeddings=True, rope_theta=5000000)),
    "qwen3-8b": ("qwen3", QWEN3, sizes(4096, 12288, 36, 32, 8, 151936, 40960, **QWEN_IDS, head_dim=128, max_window_layers=36)),
    "qwen3-32b": ("qwen3", QWEN3, sizes(5120, 25600, 64, 64, 8, 151936, 40960, **QWEN_IDS, head_dim=128, max_window_layers=64)),
    "qwen3-embedding-0.6b": ("qwen3", QWEN3, sizes(1024, 3072, 28, 16, 8, 151669, 32768, bos_token_id=151643, eos_token_id=151643, head_dim=128, max_window_layers=28, tie_word_embeddings=True)),
    "r1-0528-qwen3-8b": ("qwen3", QWEN3, sizes(4096, 12288, 36, 32, 8, 151936, 131072, **QWEN_IDS, head_dim=128, max_window_layers=36, rope_scaling={"attn_factor": 0.8782488562869419, "factor": 4.0, "original_max_position_embeddings": 32768, "rope_type": "yarn"})),
    "bitnet-2b-4t": ("bitnet", {**V4_45, "hidden_act": "relu2"}, sizes(2560, 6912, 30, 20, 5, 128256, 4096, **LLAMA3_IDS, tie_word_embeddings=True, auto_map={"AutoConfig": "configuration_bitnet.BitNetConfig", "AutoModelForCausalLM": "modeling_bitnet.BitNetForCausalLM"}, quantization_config={"linear_class": "autobitlinear", "modules_to_not_convert": None, "quant_method": "bitnet", "quantization_mode": "offline"})),
    "bitnet-2b-4t-bf16": ("bitnet", {**V4_45, "hidden_act": "relu2"}, sizes(2560, 6912, 30, 20, 5, 128256, 4096, **LLAMA3_IDS, tie_word_embeddings=True)),
}

CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "bitnet": "BitNet"}
REFUSED = {
    "mistral-7b-v0.1": "sliding_window",
    "zephyr-7b-beta": "sliding_window",
    "gte-qwen2-1.5b": "is_causal",
    "r1-0528-qwen3-8b": "yarn",
}


def main():
    found = []
    for name, (model_type, of_its_day, own) in MODELS.items():
        published = {"architectures": [CLASSES[model_type] + "ForCausalLM"], **of_its_day, **own, "model_type": model_type}
        config = {key: value for key, value in published.items() if key != "model_type"}
        quantization = config.pop("quantization_config", None)
        saved = json.loads(AutoConfig.for_model(model_type, **copy.deepcopy(config)).to_json_string(use_diff=True))
        if quantization:
            saved["quantization_config"] = quantization
        for shape, json_of in [("published", published), (f"saved by {transformers.__version__}", saved)]:
            found.append({"name": name, "shape": shape, "refused": REFUSED.get(name), "config": json_of})
    text = "[\n" + ",\n".join(json.dumps(entry, sort_keys=True) for entry in found) + "\n]\n"
    if "--check" in sys.argv:
        sys.exit(differs_from(FILE, text))
    FILE.write_text(text)


if __name__ == "__main__":
    main()
