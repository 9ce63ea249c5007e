"""What engines in FP8 are sent, by files and by buckets."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from megatron_r1.checkpoint.safetensors_dir import read_json
from megatron_r1.config.rollout import WeightsBy
from megatron_r1.errors import ConfigError, EngineError
from megatron_r1.parallel.layout import Axis
from megatron_r1.rollout.server_args import check_can_serve
from megatron_r1.stages.rollout_engine import weight_transport
from megatron_r1.weights.bucket_transport import _parameters
from megatron_r1.weights.fp8_files import SCALE_SUFFIX
from megatron_r1.weights.gather import Gatherer
from r1_kernels.fp8_blocks import dequantize
from tests.models.families import load_family
from tests.weights.test_plan import bits

pytestmark = pytest.mark.megatron

SETTINGS = ["rollout=sglang", "rollout.fp8=true", "rollout.bucket_bytes=131072"]


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen2.5"])
def test_files_and_buckets_hold_the_same_codes_and_scales(one_rank, tokenizer, tmp_path, family):
    config = load_family(family, "precision=bf16", *SETTINGS)
    policy = one_rank.policy(config)
    sent = {}
    for way in (WeightsBy.directory, WeightsBy.collective):
        config.rollout.weights_by = way
        transport = weight_transport(policy, tokenizer, config.rollout, tmp_path / way.value)
        if way is WeightsBy.directory:
            directory = transport.prepare("1.mine").directory
            files = {k: v for f in directory.glob("*.safetensors") for k, v in load_file(f).items()}
            continue
        assert len(transport.plan.buckets) > 3
        gatherer = Gatherer(transport.plan, _parameters(policy), Axis.of(dist.group.WORLD))
        for bucket in transport.plan.in_turns():
            ((message, flat),) = gatherer.fill(bucket)
            sent |= {entry.name: entry.view(flat).clone() for entry in message.entries}

    held = read_json(directory / "config.json")["quantization_config"]
    assert held["weight_block_size"] == [128, 128] and held["fmt"] == "e4m3"
    assert sent.keys() == files.keys()
    for name, tensor in files.items():
        assert torch.equal(bits(sent[name]), bits(tensor)), name
    coded = {name for name in files if name + SCALE_SUFFIX in files}
    assert coded == {name for name, t in files.items() if t.dtype is torch.float8_e4m3fn}
    assert any("down_proj" in name for name in coded) and "lm_head.weight" not in coded
    # The codes are those of the weights: E4M3 has three binary digits after the first.
    plain = _parameters(policy)["decoder.layers.0.self_attention.linear_proj.weight"]
    name = "model.layers.0.self_attn.o_proj.weight"
    again = dequantize(files[name], files[name + SCALE_SUFFIX], torch.float32)
    assert (again - plain.float()).abs().max() <= plain.abs().max() / 16


def test_fp8_where_it_cannot_be_had_is_refused():
    overrides = ["stage=r1_zero", *SETTINGS, "data.max_prompt_tokens=64"]
    overrides += ["rollout.max_response_tokens=16"]
    with pytest.raises(ConfigError, match="rollout.fp8 = true with precision.dtype = float32"):
        load_family("deepseek_v3", *overrides).validate(1)
    config = load_family("deepseek_v3", "precision=bf16", *SETTINGS)
    with pytest.raises(EngineError, match="on a CPU SGLang multiplies no FP8 matrices"):
        check_can_serve(config.rollout, on_cuda=False)
