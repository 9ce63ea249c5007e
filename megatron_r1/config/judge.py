"""`conf/judge/`: a judging model, behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass

from megatron_r1.errors import ConfigError


@dataclass(kw_only=True)
class JudgeConfig:
    """Which model judges, and how patiently it is asked."""

    base_url: str = "http://127.0.0.1:30000/v1"
    """SGLang's default port."""
    model: str = "default"
    api_key_variable: str = ""
    """Environment variable that holds the key; empty: none is sent."""
    temperature: float = 0.6
    max_tokens: int = 4_096
    timeout_s: float = 600.0
    max_retries: int = 3
    """After errors that may pass (HTTP 429 and 5xx, a lost connection). Time-outs are final."""
    retry_s: float = 1.0
    """Before the first retry; doubled for each that follows."""
    max_parallel: int = 32
    cache_path: str | None = None
    """JSONL file of every judgement with its prompt; None keeps none."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "timeout_s", "max_parallel"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"judge.{name} must be > 0, got {getattr(self, name)}")
        for name in ("temperature", "max_retries", "retry_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"judge.{name} must be >= 0, got {getattr(self, name)}")
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"judge.base_url = {self.base_url!r} must start with http:// or https://"
            )
        if self.api_key_variable and not os.environ.get(self.api_key_variable):
            raise ConfigError(
                f"judge.api_key_variable names {self.api_key_variable}, which is not set in the "
                "environment. Export it, or leave the setting empty"
            )

    @property
    def api_key(self) -> str:
        return os.environ.get(self.api_key_variable, "") if self.api_key_variable else ""
