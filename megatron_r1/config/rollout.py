"""`conf/rollout/`: how responses are sampled."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from megatron_r1.errors import ConfigError

_OF_OWN_SERVERS = ("num_servers", "tensor", "expert", "host", "port", "server_args") + (
    "start_timeout_s",
    "max_restarts",
)
_SAID_BY = {
    "model": "what is published",
    "model-path": "what is published",
    "weight-version": "what is published",
    "dtype": "precision.dtype",
    "host": "rollout.host",
    "port": "rollout.port",
    "tp": "rollout.tensor",
    "tp-size": "rollout.tensor",
    "tensor-parallel-size": "rollout.tensor",
    "ep": "rollout.expert",
    "ep-size": "rollout.expert",
    "expert-parallel-size": "rollout.expert",
    "dp": "rollout.attention_data",
    "dp-size": "rollout.attention_data",
    "data-parallel-size": "rollout.attention_data",
    "enable-dp-attention": "rollout.attention_data",
    "enable-deterministic-inference": "rollout.keyed_sampling",
    "enable-return-routed-experts": "rollout.routed_experts",
}
"""Arguments of a server, by their names in SGLang, that follow from something else."""
_KEYS = ("api-key", "admin-api-key")


class AtPublish(Enum):
    """What becomes of responses that are being sampled when weights are published."""

    retract = "retract"
    """They go on with the new weights, from where they were: SGLang computes their caches anew."""
    wait = "wait"
    """The publish waits until they are complete."""


class WeightsBy(Enum):
    """How a new policy gets into servers; `weights/`."""

    directory = "directory"
    """Files on a file system that trainer and servers share."""
    collective = "collective"
    """Broadcasts in groups of trainer and servers: gloo on a CPU, NCCL on GPUs."""
    shared_memory = "shared_memory"
    """Memory that trainer and servers of one machine share. On GPUs nobody has run it."""


@dataclass(kw_only=True)
class RolloutConfig:
    """Sampling in RL. R1: temperature 1.0 (0.7 in stage 4); it states no top-p and top-k."""

    name: str = "inprocess"
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    max_response_tokens: int = 32_768
    longer_from_step: int = 0
    """Responses of RL phases that begin after so many updates may be `longer_factor` times as long;
    0: none may. R1-Zero: 65,536 after update 8,200 (Nature, Methods)."""
    longer_factor: int = 2
    max_batch: int = 256
    """Sequences that decode side by side for each data-parallel replica."""
    max_mismatch: float = 0.5
    """Mean |difference| of a phase's log-probabilities in engine and trainer, nats a token, above
    which the run ends: the engine has other weights, or another model. Ours; bfloat16 makes about
    0.01, a phase of staleness a few hundredths."""
    steps_ahead: int = 0
    """1: servers sample the next rollout phase while the trainer trains on this one. Tokens are
    then up to a phase older than the weights that are trained."""

    @property
    def truncates(self) -> bool:
        """Some tokens cannot be drawn."""
        return self.top_p < 1 or self.top_k > 0

    def response_tokens_after(self, step: int) -> int:
        """The longest response of a phase that begins after `step` updates."""
        is_longer = 0 < self.longer_from_step <= step
        return self.max_response_tokens * (self.longer_factor if is_longer else 1)

    def __post_init__(self) -> None:
        if self.steps_ahead not in (0, 1):
            raise ConfigError(f"rollout.steps_ahead must be 0 or 1, got {self.steps_ahead}")
        if self.steps_ahead and not isinstance(self, SglangConfig):
            raise ConfigError(
                f"rollout.steps_ahead = {self.steps_ahead} with rollout.name = {self.name}: ranks "
                "that train cannot sample meanwhile. Set rollout=sglang, or steps_ahead to 0"
            )
        if self.temperature <= 0:
            raise ConfigError(
                f"rollout.temperature must be > 0, got {self.temperature}; "
                "rollout.top_k=1 gives greedy decoding"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"rollout.top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ConfigError(f"rollout.top_k must be >= 0, got {self.top_k}")
        if self.longer_from_step < 0:
            raise ConfigError(f"rollout.longer_from_step must be >= 0, got {self.longer_from_step}")
        if self.max_mismatch <= 0:
            raise ConfigError(f"rollout.max_mismatch must be > 0, got {self.max_mismatch}")
        for name in ("max_response_tokens", "max_batch", "longer_factor"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rollout.{name} must be >= 1, got {getattr(self, name)}")


@dataclass(kw_only=True)
class SglangConfig(RolloutConfig):
    """`rollout=sglang`: SGLang servers decode, started by this job or running already."""

    name: str = "sglang"
    urls: list[str] = field(default_factory=list)
    """Servers that run already, such as http://node7:30000. Empty: the job starts its own."""
    router_url: str | None = None
    """A sglang-router in front of the servers. It gets the requests; weights go to the servers."""
    num_servers: int = 1
    """How many to start, each with its own copy of the model."""
    tensor: int = 1
    """Tensor ranks of each server."""
    expert: int = 1
    """Expert ranks among them."""
    attention_data: int = 1
    """Replicas of the attention among them (data-parallel attention)."""
    host: str = "127.0.0.1"
    """Address that they listen on: this machine's own where leaders on others ask them."""
    port: int = 0
    """Of the first server that is started, the others follow; 0 takes free ones."""
    server_args: dict[str, str] = field(default_factory=dict)
    """More arguments of the servers that are started, without their dashes: mem-fraction-static,
    chunked-prefill-size. An empty value stands for a switch. No api-key: no request brings one."""
    keyed_sampling: bool = True
    """A response is drawn from its own seed, so that asked for again it is the same. On GPUs this
    switches SGLang's batch-invariant kernels on, which are slower."""
    routed_experts: bool = False
    """Return which experts each token went to: 4 bytes a token, layer and expert. `conf/rollout`
    has it where `algo.replay_routing` needs it."""
    sampling_masks: bool = False
    """Return which tokens top-p and top-k left to choose from, and probabilities among them.
    `conf/rollout` has it where `algo.keep_sampling_masks` needs it."""
    start_timeout_s: float = 1800.0
    """For a server to load its weights and answer."""
    request_timeout_s: float = 2700.0
    """For the answer to one request, before it is sent again: 32,768 tokens at 12 a second. Those
    that `longer_factor` makes longer have so many times as long."""
    give_up_s: float = 6600.0
    """How long one response is asked for, again and again, before the run ends. Two attempts that
    hang, a restart between them, and some time left. Those that `longer_factor` makes longer are
    asked for so many times as long."""
    health_every_s: float = 10.0
    """Between two looks at the servers while they decode."""
    health_timeout_s: float = 60.0
    """A server that says nothing for so long is ended and started again; one of `urls` is waited
    for so long at each attempt of a publish."""
    max_restarts: int = 3
    """Of one server between two publishes, those that end while they start among them; one more
    ends the run."""
    at_publish: AtPublish = AtPublish.retract
    weights_by: WeightsBy = WeightsBy.directory
    fp8: bool = False
    """Servers hold the matrices of attention and feed-forward blocks in E4M3 with a scale for each
    128 x 128, as DeepSeek-V3's files do, quantised by the ranks that own them before they are sent.
    Not on a CPU. On GPUs nobody has run it."""
    start_files_every: int = 1
    """Publishes from one writing of the files that servers are started from to the next; 0: only
    the first writes some. Weights that go by files have theirs every time. With another number
    than 1 a server that has to be started again while others sample has weights so much older:
    its responses say so, and the next publish mends it. Without effect where weights go by buckets
    to servers of `urls`: this run starts none, and writes no files at all."""
    bucket_bytes: int = 512 * 2**20
    """Of what weights travel in, otherwise than by files. A rank needs memory for two."""
    publish_timeout_s: float = 1800.0
    """For a server to take new weights, before the publish is begun again."""
    check_weights_every: int = 25
    """Publishes from one comparison of the servers' checksums to the next; 0: never. Weights that
    went by buckets are compared with the files of the same publish, where `start_files_every` has
    written some, after one server has read them: that belongs to the pause."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_servers", "tensor", "expert", "attention_data"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rollout.{name} must be >= 1, got {getattr(self, name)}")
        for name in ("expert", "attention_data"):
            if self.tensor % getattr(self, name):
                raise ConfigError(
                    f"rollout.{name} = {getattr(self, name)} does not divide rollout.tensor = "
                    f"{self.tensor}: SGLang counts both among a server's tensor ranks"
                )
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"rollout.port must be in [0, 65535], got {self.port}")
        if self.weights_by is not WeightsBy.directory and self.attention_data > 1:
            raise ConfigError(
                f"rollout.weights_by = {self.weights_by.value} with rollout.attention_data = "
                f"{self.attention_data}: SGLang 0.5.23 takes no broadcasts with data-parallel "
                "attention, and no tensors in memory either. Set weights_by=directory, or "
                "attention_data=1"
            )
        if self.give_up_s <= self.request_timeout_s:
            raise ConfigError(
                f"rollout.give_up_s = {self.give_up_s} must exceed rollout.request_timeout_s = "
                f"{self.request_timeout_s}, or a request that is not answered is never sent again. "
                "Raise the one or lower the other"
            )
        if self.bucket_bytes < 2**16:
            raise ConfigError(
                f"rollout.bucket_bytes must be >= {2**16}, got {self.bucket_bytes}: each bucket is "
                "a request to every server"
            )
        for name in ("max_restarts", "check_weights_every", "start_files_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"rollout.{name} must be >= 0, got {getattr(self, name)}")
        for name in vars(self):
            if name.endswith("_s") and getattr(self, name) <= 0:
                raise ConfigError(f"rollout.{name} must be > 0, got {getattr(self, name)}")
        self.urls = [url.rstrip("/") for url in self.urls]
        self.router_url = self.router_url and self.router_url.rstrip("/")
        for url in self.urls:
            if self.urls.count(url) > 1:
                raise ConfigError(
                    f"rollout.urls names {url} twice: it would be paused, and given the weights, "
                    "as two servers. Leave one out"
                )
        if self.urls:
            own = SglangConfig()
            for name in _OF_OWN_SERVERS:
                if getattr(self, name) != getattr(own, name):
                    raise ConfigError(
                        f"rollout.{name} = {getattr(self, name)} has no effect on the servers of "
                        "rollout.urls, which others start. Give it to their own command line, and "
                        "leave it out here"
                    )
        for argument, source in _SAID_BY.items():
            if argument in self.server_args:
                raise ConfigError(
                    f"rollout.server_args has {argument}, which follows from {source}. Leave it out"
                )
        for name in _KEYS:
            if name in self.server_args:
                raise ConfigError(
                    f"rollout.server_args has {name}: no request of this run brings a key, and the "
                    "configuration is printed. Leave it out, and close rollout.port to others"
                )
        if self.router_url is not None and not self.urls:
            raise ConfigError(
                f"rollout.router_url = {self.router_url} needs rollout.urls: weights are published "
                "to each server behind the router. List them"
            )
