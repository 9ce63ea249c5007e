"""Whether a server is the one that is expected: its model, its switches, its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from megatron_r1.checkpoint.record import model_identity
from megatron_r1.checkpoint.safetensors_dir import read_json
from megatron_r1.config.model import ModelConfig
from megatron_r1.config.rollout import SglangConfig
from megatron_r1.errors import EngineError, UserError
from megatron_r1.rollout.responses import OLDEST_SGLANG
from megatron_r1.rollout.server_api import ServerError, call
from megatron_r1.weights.hf_config import hf_config, model_config_from_hf

_ANSWER_S = 30.0


def check_server(
    url: str, model: ModelConfig, config: SglangConfig, *, label: str | None = None
) -> None:
    """Compare a server with the model that is trained and with what it will be asked for.

    Args:
        label: name of the weights that it must hold; None: it will be given some.
    Raises:
        EngineError: it does not answer, is no SGLang, serves another model, cannot do what the
            configuration asks, or holds other weights.
    """
    try:
        info = call(url, "/model_info", timeout_s=_ANSWER_S)
        settings = call(url, "/server_info", timeout_s=_ANSWER_S)
    except ServerError as error:
        raise EngineError(
            f"no SGLang server answers at {url} ({error}). Start it, correct rollout.urls, or "
            "leave them empty and the job starts its own"
        ) from error
    _check_version(url, settings.get("version"))
    _check_model(url, info, model)
    for switch, setting, wanted in (
        ("enable_deterministic_inference", "keyed_sampling", config.keyed_sampling),
        ("enable_return_routed_experts", "routed_experts", config.routed_experts),
    ):
        has_experts = hasattr(model, "num_experts")
        if wanted and not settings.get(switch) and (has_experts or setting != "routed_experts"):
            raise EngineError(
                f"the server at {url} was started without --{switch.replace('_', '-')}, which "
                f"rollout.{setting}=true needs. Start it with that, or set rollout.{setting}=false"
            )
    if label is not None and info.get("weight_version") != label:
        raise EngineError(
            f"the server at {url} holds weights {info.get('weight_version')!r} instead of {label!r}"
        )


def _check_version(url: str, version: object) -> None:
    """One that says nothing of it, or runs from a checkout without a number, is believed."""
    try:
        found = Version(str(version))
    except InvalidVersion:
        return
    if Version("0.1") < found < Version(OLDEST_SGLANG):
        raise EngineError(
            f"the server at {url} is SGLang {version}, whose answers do not say which weights they "
            f"were sampled from. This run needs SGLang {OLDEST_SGLANG} or newer there"
        )


def _check_model(url: str, info: dict[str, Any], model: ModelConfig) -> None:
    """By architecture, and in full where its directory can be read from here."""
    expected = hf_config(model)["architectures"]
    if info.get("architectures") != expected:
        raise EngineError(
            f"the server at {url} serves another model: {info.get('model_path')} of "
            f"{info.get('architectures')}, and this run trains {expected}. Correct rollout.urls"
        )
    config_file = Path(str(info.get("model_path"))) / "config.json"
    if not config_file.is_file():
        return
    try:
        served = model_identity(model_config_from_hf(read_json(config_file), str(config_file)))
    except UserError as error:
        raise EngineError(f"the server at {url} serves another model: {error}") from error
    own = model_identity(model)
    differing = [
        f"{key} {served.get(key)!r} instead of {own.get(key)!r}"
        for key in sorted(served.keys() | own.keys())
        if served.get(key) != own.get(key)
    ]
    if differing:
        raise EngineError(
            f"the server at {url} serves another model: {config_file} has {'; '.join(differing)}. "
            "Correct rollout.urls"
        )
