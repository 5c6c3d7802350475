"""Lists the keys that transformers and gguf know, for tests/fixtures/keys.json.

usage: make_keys.py [--check]: --check compares with the file instead of writing it.

The test `keys` decides about every key of the file. After an update of transformers, `cargo xtask interop` says whether
the file is stale.
"""

import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path

import gguf
import transformers
from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig, modeling_rope_utils
from transformers import tokenization_utils_base, tokenization_utils_tokenizers
from transformers.utils import quantization_config

FILE = Path(__file__).resolve().parent.parent / "fixtures" / "keys.json"
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "bitnet"]
METHODS = {
    "gptq": "GPTQConfig",
    "awq": "AwqConfig",
    "compressed-tensors": "CompressedTensorsConfig",
    "bitnet": "BitNetQuantConfig",
    "auto-round": "AutoRoundConfig",
}


def of_config(config) -> set[str]:
    """The keys that a configuration writes, or keeps as attributes."""
    keys = set(config.to_dict()) | set(vars(config))
    if dataclasses.is_dataclass(config):
        keys |= {field.name for field in dataclasses.fields(config)}
    return keys


def of_signature(function) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "kwargs"}


def of_rope() -> set[str]:
    """The parameters that any rope type requires or reads."""
    source = inspect.getsource(modeling_rope_utils)
    names = set()
    for match in re.findall(r"(?:required_keys|optional_keys|received_keys) [-=|]?= ?(?:set\()?\{([^}]*)\}", source):
        names |= set(re.findall(r'"(\w+)"', match))
    names |= set(re.findall(r'rope_parameters(?:_dict)?\.get\(\s*"(\w+)"', source))
    names |= set(re.findall(r'rope_parameters(?:_dict)?\["(\w+)"\]', source))
    return names


def of_tokenizers() -> set[str]:
    """What tokenizers take from tokenizer_config.json."""
    names = set(tokenization_utils_base.PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES)
    for module in (tokenization_utils_base, tokenization_utils_tokenizers):
        names |= set(re.findall(r'kwargs\.(?:pop|get|setdefault)\(\s*"(\w+)"', inspect.getsource(module)))
    return names


def of_gguf() -> set[str]:
    keys = gguf.constants.Keys.Tokenizer
    return {value for name, value in vars(keys).items() if not name.startswith("_") and isinstance(value, str)}


def equal(old, new, close: float) -> bool:
    """Whether two JSON values are equal, numbers within `close`."""
    if isinstance(old, float) and isinstance(new, float):
        return abs(old - new) <= close
    if type(old) is not type(new):
        return False
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(equal(old[key], new[key], close) for key in old)
    if isinstance(old, list):
        return len(old) == len(new) and all(equal(a, b, close) for a, b in zip(old, new))
    return old == new


def differs_from(file: Path, text: str, close: float = 0.0) -> str | None:
    """A message if a committed JSON file is not this one."""
    if equal(json.loads(file.read_text()), json.loads(text), close):
        return None
    return f"{file.name} is not as committed: run its script, and decide about new keys"


def main():
    found = {
        "transformers": transformers.__version__,
        "config": {family: of_config(CONFIG_MAPPING[family]()) for family in FAMILIES},
        "base": of_config(PreTrainedConfig()),
        "rope": of_rope(),
        "generation": of_config(GenerationConfig()),
        "tokenizer": of_tokenizers(),
        "quantization": {method: of_signature(getattr(quantization_config, name)) for method, name in METHODS.items()},
        "gguf_tokenizer": of_gguf(),
    }
    text = json.dumps(found, indent=1, default=sorted) + "\n"
    if "--check" in sys.argv:
        sys.exit(differs_from(FILE, text))
    FILE.write_text(text)


if __name__ == "__main__":
    main()
