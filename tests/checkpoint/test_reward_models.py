"""Reward models and Hugging Face's sequence classifiers: the same scores, and the same bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_r1.checkpoint.hf_coverage import read_hf_config
from megatron_r1.checkpoint.hf_export import export_hf
from megatron_r1.checkpoint.hf_import import import_hf
from megatron_r1.checkpoint.hf_load import load_hf_weights
from megatron_r1.checkpoint.inspection import describe
from megatron_r1.checkpoint.logit_check import compare_logits
from megatron_r1.checkpoint.record import TOKENIZER
from megatron_r1.checkpoint.store import CheckpointStore, LoopState, load_weights
from megatron_r1.config.model import Head, ModelConfig
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.data.tokenizer import load_tokenizer
from megatron_r1.errors import CheckpointError, ConfigError
from megatron_r1.models.policy import Policy
from megatron_r1.trainers.forward_passes import row_scores
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.types import TrainBatch, TrainRow
from megatron_r1.weights.hf_config import hf_config, model_config_from_hf
from tests.checkpoint.hub import differences, write_with_transformers
from tests.models.families import FAMILIES, load_family

pytestmark = pytest.mark.megatron

TEXTS = ("how much is 1 + 2 ?", "three", "1 + 2 three how much")


def reward_model(
    one_rank, family: str, *, seed: int = 7, model: ModelConfig | None = None
) -> Policy:
    """Of a family's configuration, or of its shape as a config.json tells it."""
    config = load_family(family, "model.num_mtp_layers=0")
    if model is not None:
        config = dataclasses.replace(config, model=model)
    return one_rank.policy(config, seed=seed, head=Head.scalar)


def our_scores(policy: Policy, token_ids: list[tuple[int, ...]]) -> Tensor:
    rows = [
        TrainRow(tokens_L=torch.tensor(ids), loss_mask_L=torch.arange(len(ids)) == len(ids) - 1)
        for ids in token_ids
    ]
    return row_scores(policy, TrainBatch(rows=tuple(rows)))


@torch.no_grad()
def their_scores(directory, token_ids: list[tuple[int, ...]], pad_id: int) -> Tensor:
    """In one batch, padded on the right: transformers finds each row's last token by itself."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    width = max(map(len, token_ids))
    padded = torch.tensor([[*ids, *[pad_id] * (width - len(ids))] for ids in token_ids])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in token_ids])
    return model(input_ids=padded, attention_mask=mask).logits[:, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_model_scores_the_same_in_transformers_and_comes_back(
    family, one_rank, tokenizer, tmp_path
):
    step = MegatronStep(reward_model(one_rank, family), OptimizerConfig())
    store = CheckpointStore(tmp_path / "run", keep=1, tokenizer_dir=Path(tokenizer.path))
    saved = store.save(LoopState(step=3), step.policy, step.optimizer)
    export_hf(saved, tmp_path / "hf", show_progress=False)
    exported = load_tokenizer(tmp_path / "hf")
    token_ids = [(*tokenizer.encode(text), tokenizer.eos_id) for text in TEXTS]
    ours_N = our_scores(step.policy, token_ids)
    theirs_N = their_scores(tmp_path / "hf", token_ids, exported.pad_id)
    assert ours_N.std() > 0.01
    torch.testing.assert_close(ours_N, theirs_N, rtol=0, atol=1e-5)

    back = reward_model(one_rank, family, seed=99, model=read_hf_config(tmp_path / "hf"))
    load_hf_weights(back, tmp_path / "hf")
    assert torch.equal(our_scores(back, token_ids), ours_N)


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3", "qwen3_moe", "llama3", "deepseek_v3"])
def test_a_sequence_classifier_of_transformers_is_read_and_written_back(family, one_rank, tmp_path):
    config = load_family(family, "model.num_mtp_layers=0").model
    hub = write_with_transformers(tmp_path / "hub", config, dtype=torch.float32, head=Head.scalar)
    import_hf(hub, tmp_path / "megatron", show_progress=False)
    policy = reward_model(one_rank, family)
    load_weights(policy, tmp_path / "megatron")
    token_ids = [tuple(range(3, 20)), tuple(range(40, 47))]
    # It names no padding, and takes one row at a time.
    theirs_N = torch.cat([their_scores(hub, [ids], pad_id=0) for ids in token_ids])
    torch.testing.assert_close(our_scores(policy, token_ids), theirs_N, rtol=0, atol=1e-5)
    assert compare_logits(hub, tmp_path / "megatron").relative < 1e-5
    assert ", scalar head" in describe(tmp_path / "megatron") and ", scalar head" in describe(hub)

    export_hf(tmp_path / "megatron", tmp_path / "back", show_progress=False)
    assert differences(hub, tmp_path / "back") == []


def test_heads_are_not_mixed_up(one_rank, tmp_path):
    config = load_family("qwen2.5").model
    hub = write_with_transformers(tmp_path, config, dtype=torch.float32, head=Head.scalar)
    with pytest.raises(CheckpointError, match="has a scalar head"):
        load_hf_weights(one_rank.policy(load_family("qwen2.5")), hub)
    config_json = json.loads((hub / "config.json").read_text())
    config_json["id2label"] = {"0": "LABEL_0", "1": "LABEL_1"}
    with pytest.raises(ConfigError, match="num_labels = 2 is not supported, only 1 is"):
        model_config_from_hf(config_json, "config.json")


def test_a_tokenizer_without_padding_names_none(one_rank, tokenizer, tmp_path):
    """transformers would take the end of sequence, where the score is, for padding."""
    step = MegatronStep(reward_model(one_rank, "qwen2.5"), OptimizerConfig())
    store = CheckpointStore(tmp_path / "run", keep=1, tokenizer_dir=Path(tokenizer.path))
    saved = store.save(LoopState(), step.policy, step.optimizer)
    settings = saved / TOKENIZER / "tokenizer_config.json"
    without = {k: v for k, v in json.loads(settings.read_text()).items() if k != "pad_token"}
    text = json.dumps(without)
    settings.write_text(text)
    state = json.loads((saved / "state.json").read_text())
    state["files"][f"{TOKENIZER}/tokenizer_config.json"] = len(text)
    (saved / "state.json").write_text(json.dumps(state))
    export_hf(saved, tmp_path / "hf", show_progress=False)
    exported = json.loads((tmp_path / "hf/config.json").read_text())
    assert exported["pad_token_id"] is None and exported["eos_token_id"] == tokenizer.eos_id
    assert exported["architectures"] == hf_config(step.policy.config, Head.scalar)["architectures"]
