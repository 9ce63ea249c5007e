"""Small Hugging Face directories: written by transformers, and as DeepSeek writes its own."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_r1.checkpoint.safetensors_dir import SafetensorsDir
from megatron_r1.config.model import Head, ModelConfig
from megatron_r1.data.tokenizer import train_tokenizer
from megatron_r1.weights.fp8_files import SCALE_SUFFIX
from megatron_r1.weights.hf_config import hf_config
from megatron_r1.weights.names import name_table
from r1_kernels.fp8_blocks import num_blocks

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
FP8_CONFIG = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


def write_with_transformers(
    directory: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    shard_size: str = "400KB",
    head: Head = Head.vocabulary,
) -> Path:
    """A random model of this shape, saved by transformers, with a tokenizer beside it."""
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        GenerationConfig,
    )

    shape = directory / "shape"
    shape.mkdir(parents=True)
    (shape / "config.json").write_text(json.dumps(hf_config(config, head)))
    torch.manual_seed(5)
    is_scalar = head is Head.scalar
    auto = AutoModelForSequenceClassification if is_scalar else AutoModelForCausalLM
    model = auto.from_config(AutoConfig.from_pretrained(shape))
    (shape / "config.json").unlink()
    shape.rmdir()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape).mul_(0.05).to(dtype)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_()
    model.config.dtype = dtype
    if not is_scalar:
        model.generation_config = GenerationConfig(temperature=0.6, do_sample=True, eos_token_id=0)
    model.save_pretrained(directory, max_shard_size=shard_size)
    texts = ["how much is 1 + 2 ?", "three"]
    train_tokenizer(texts, vocab_size=300, directory=directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def write_like_deepseek(directory: Path, config: ModelConfig) -> Path:
    """FP8 codes of every kind with scales of 24 bits, in two files, prediction layer included."""
    directory.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(1)
    for mapping in name_table(config):
        for name, shape in zip(mapping.hf, mapping.shapes, strict=True):
            in_layer = ".self_attn." in name or ".mlp." in name
            if in_layer and len(shape) == 2 and "mlp.gate." not in name:
                codes = torch.randint(0, 0x7F, shape, generator=generator, dtype=torch.uint8)
                codes |= torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8) << 7
                tensors[name] = codes.view(torch.float8_e4m3fn)
                scales = torch.rand(num_blocks(shape), generator=generator)
                tensors[name + SCALE_SUFFIX] = (1 + scales) * 2.0**-13
            else:
                tensor = torch.randn(shape, generator=generator) * 0.05
                tensors[name] = tensor.to(mapping.dtype or torch.bfloat16)
        for name in mapping.copies:
            tensors[name] = tensors[mapping.hf[0]].clone()
    names = list(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    weight_map = {}
    for number, half in enumerate(halves, start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, directory / file)
        weight_map |= dict.fromkeys(half, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config_json = {**hf_config(config), "quantization_config": FP8_CONFIG, "eos_token_id": 1}
    (directory / "config.json").write_text(json.dumps(config_json))
    return directory


def differences(a: Path, b: Path) -> list[str]:
    """Names of tensors that are not the same in every byte, dtype and shape included."""
    first, second = SafetensorsDir(a), SafetensorsDir(b)
    names = first.entries.keys() | second.entries.keys()
    return sorted(name for name in names if _content(first, name) != _content(second, name))


def _content(directory: SafetensorsDir, name: str) -> tuple[str, tuple[int, ...], bytes] | None:
    entry = directory.entries.get(name)
    if entry is None:
        return None
    raw = entry.file.read_bytes()[entry.start : entry.stop]
    return entry.dtype, entry.shape, raw
