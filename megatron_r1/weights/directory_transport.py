"""Weights through a Hugging Face directory: for servers that share a file system with the trainer.

The ranks write their shards as for a checkpoint, the main rank makes a Hugging Face directory of
them, and every server reads it. No rank holds more than its own shards and one tensor.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron.core import dist_checkpointing

from megatron_r1.checkpoint.conversion import WeightDtype
from megatron_r1.checkpoint.hf_export import export_hf
from megatron_r1.checkpoint.record import POLICY, TOKENIZER, write_record
from megatron_r1.checkpoint.safetensors_dir import read_json
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.models.policy import Policy
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.rollout.server_api import ServerError, load_files, side_by_side
from megatron_r1.rollout.servers import Weights
from megatron_r1.weights.transport import SendError


class DirectoryTransport:
    """A `WeightTransport` by files."""

    def __init__(
        self,
        policy: Policy,
        tokenizer: Tokenizer,
        directory: Path,
        *,
        timeout_s: float,
        silence_s: float,
        fp8: bool = False,
    ) -> None:
        """`directory` is emptied; it has to be the same for all ranks and servers.

        Args:
            timeout_s: for a server to read the weights.
            silence_s: for it to say that it listens, while it does.
            fp8: matrices in E4M3 with their scales, the rest in bfloat16.
        """
        self._dtype = WeightDtype.fp8 if fp8 else WeightDtype.keep
        self._policy = policy
        self._tokenizer = tokenizer
        self._directory = directory.resolve()
        self._timeout_s = timeout_s
        self._silence_s = silence_s
        self._newest: Path | None = None

    def prepare(self, label: str) -> Weights:
        """Export the policy. The directory before this one stays, since servers may read it."""
        shards, final = self._directory / "shards", self._directory / label

        def begin() -> None:
            for path in self._directory.glob("*"):
                if path != self._newest or path == final:
                    shutil.rmtree(path, ignore_errors=True)
            (shards / POLICY).mkdir(parents=True)
            (shards / TOKENIZER).mkdir()
            own_config = Path(self._tokenizer.path) / "config.json"
            if own_config.is_file():  # the model came with one
                shutil.copyfile(own_config, shards / TOKENIZER / "config.json")

        def finish() -> None:
            write_record(shards, self._policy.config, loop={}, layout="")
            export_hf(shards, final, dtype=self._dtype, show_progress=False)
            self._set_stop_token(final / "config.json")
            shutil.rmtree(shards)

        on_main_rank(begin)
        weights = {"model": self._policy.sharded_state_dict()}
        dist_checkpointing.save(weights, str(shards / POLICY))
        on_main_rank(finish)
        self._newest = final
        return Weights(final, label)

    def join(self, urls: Sequence[str]) -> None:
        """A file system is all that it needs."""

    def send(self, label: str, urls: Sequence[str]) -> Mapping[str, float]:
        def load(url: str) -> None:
            limits = {"timeout_s": self._timeout_s, "silence_s": self._silence_s}
            load_files(url, self._newest, label, **limits)

        def load_all() -> tuple[str, tuple[str, ...]] | None:
            try:
                side_by_side(urls, load)
            except ServerError as error:
                return str(error), error.urls
            return None

        failure = on_main_rank(load_all)
        if failure is not None:
            raise SendError(*failure)
        return {}

    def close(self) -> None:
        """Servers may still read the newest directory: it stays with the run."""

    def _set_stop_token(self, config_file: Path) -> None:
        """Servers are asked for token ids, and end a response at the tokenizer's one end, as
        decoding here does. Where the file says nothing, transformers has a token of its own."""
        config_json = read_json(config_file) | {"eos_token_id": self._tokenizer.eos_id}
        config_file.write_text(json.dumps(config_json, indent=2) + "\n")
