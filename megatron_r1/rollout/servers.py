"""The rollout servers of a job, on its main rank: started, looked after, ended; or found by URL.

A server that this job started is started again when it dies or says nothing, on its port and from
the newest published weights, so that whoever asks it needs to know nothing of that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from megatron_r1.config.model import ModelConfig
from megatron_r1.config.rollout import SglangConfig
from megatron_r1.errors import EngineError
from megatron_r1.platform import sglang_cpu
from megatron_r1.rollout.attached import wait_for_attached
from megatron_r1.rollout.server_api import (
    ServerError,
    call,
    obeys,
    side_by_side,
    works,
)
from megatron_r1.rollout.server_args import (
    check_can_serve,
    choose_port,
    server_command,
    server_environment,
)
from megatron_r1.rollout.server_check import check_server
from megatron_r1.rollout.server_process import ServerProcess
from megatron_r1.telemetry.progress import Progress

_POLL_S = 0.2
_PORT_TRIES = 3
_ANSWER_S = 30.0
_RESUME_TRIES, _RESUME_PAUSE_S = 3, 1.0


@dataclass(frozen=True)
class Weights:
    """A Hugging Face directory, and what its weights are called."""

    directory: Path | None
    """None: nothing was written, since no server of this run is started from it."""
    label: str


@dataclass
class _Local:
    """A server that this job started."""

    index: int
    port: int
    process: ServerProcess | None = None
    launched_s: float = 0.0
    launched_at: float = 0.0
    """Seconds since the epoch."""
    has_run: bool = False
    """It has answered, and its port is known to those who ask it."""
    num_restarts: int = 0
    """Since the last publish."""


class Servers:
    """Holds URLs of servers that serve this job's model."""

    def __init__(
        self,
        config: SglangConfig,
        model: ModelConfig,
        *,
        dtype: str,
        log_dir: Path,
        on_cuda: bool,
        show_progress: bool = True,
    ) -> None:
        """Look whether servers can be had; none is started before the first `bring_up`.

        Raises:
            EngineError: SGLang is missing, a port is taken, or a running server is not the one.
        """
        self._config = config
        self._model = model
        self._dtype = dtype
        self._log_dir = log_dir
        self._on_cuda = on_cuda
        self._show_progress = show_progress
        self._attached = list(config.urls)
        self._weights: Weights | None = None
        self.num_restarts = 0
        """Of all servers, since the beginning."""
        check_can_serve(config, on_cuda=on_cuda)
        for url in self._attached:
            check_server(url, model, config)
        num_own = 0 if self._attached else config.num_servers
        self._locals = [_Local(index, choose_port(config, index)) for index in range(num_own)]
        # Servers live no longer than the thread that starts them: all is done in this one.
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="rollout-servers")
        self._look: Future[None] | None = None
        self._failing: dict[str, float] = {}
        self._asked_s = 0.0
        self._are_paused = False
        self._closing = threading.Event()

    @property
    def urls(self) -> list[str]:
        return self._attached or [self._url(server) for server in self._locals]

    @property
    def pids(self) -> list[int]:
        """Process groups of the servers that were started here."""
        return [server.process.pid for server in self._locals if server.process is not None]

    @property
    def logs(self) -> list[Path]:
        """Files that the servers which were started here write to."""
        return [self._log(server) for server in self._locals]

    def bring_up(self, weights: Weights, at_fault: Sequence[str] = ()) -> list[str]:
        """Have every server run and answer. From now on servers are started from `weights`.

        Args:
            at_fault: those that are started anew whatever they answer.
        Returns: URLs of those that were just started from them; the others hold what they held.
        Raises:
            EngineError: a server does not start, does not answer, or serves another model.
        """
        return self._keeper.submit(self._bring_up, weights, at_fault).result()

    def look_after(self, failing: Mapping[str, float]) -> None:
        """Called now and then while servers sample: what has died, hangs or gives unusable answers
        is started again, in the background.

        Args:
            failing: URLs of servers with such answers, and since when, in seconds since the epoch.
                What was before a server's last start counts no more.
        Raises:
            EngineError: that failed, or was necessary too often.
        """
        self._failing.update(failing)
        if self._look is not None:
            if not self._look.done():
                return
            self._look.result()
        self._look = self._keeper.submit(self._restart_lost)

    def pause(self, urls: Iterable[str]) -> None:
        """Interrupt what is being sampled; it goes on after `resume`, from where it was. Pausing
        what is paused changes nothing."""
        self._are_paused = True
        pause_servers(urls)

    def hold(self, paused: bool) -> None:
        """Know that others have paused the servers, or resumed them."""
        self._are_paused = paused

    def resume(self, urls: Iterable[str]) -> None:
        """Go on sampling. A server of this job that does not is found when it is looked after.

        Raises:
            EngineError: a server that this job did not start stays paused.
        """
        paused = resume_servers(urls)
        self._are_paused = False
        if paused and self._attached:
            raise EngineError(
                "a server of rollout.urls has the new weights and stays paused, after "
                f"{_RESUME_TRIES} attempts to resume it: {paused}. See its log, start it anew "
                "where it hangs, and start this run again"
            )

    def release(self) -> None:
        """End the servers that were started here, for the sake of their memory. The next `bring_up`
        starts them."""
        self._keeper.submit(self._stop).result()
        self._look = None

    def close(self) -> None:
        """End the servers that were started here, and the start of any that is under way."""
        self._closing.set()
        self._keeper.submit(self._stop).result()
        self._keeper.shutdown()

    def _bring_up(self, weights: Weights, at_fault: Sequence[str]) -> list[str]:
        self._look = None  # what it could not mend is mended here, or cannot be here either
        self._weights = weights
        if not self._are_paused:  # else it is one more attempt at the same publish
            for server in self._locals:
                server.num_restarts = 0
        if self._attached:
            wait_for_attached(self._model, self._config, self._closing, self._show_progress)
        lost = [s for s in self._locals if self._url(s) in at_fault or not self._answers(s)]
        self._start(lost)
        return [self._url(server) for server in lost]

    def _restart_lost(self) -> None:
        if self._are_paused:
            return  # it would say nothing; whoever paused it finds out what becomes of it
        started = [server for server in self._locals if server.process is not None]
        lost = [s for s in started if s.process.exit_code is not None or self._fails(s)]
        if not lost and time.monotonic() - self._asked_s > self._config.health_every_s:
            lost = [server for server in started if not self._answers(server)]
            self._asked_s = time.monotonic()
        self._start(lost)

    def _fails(self, server: _Local) -> bool:
        return self._failing.get(self._url(server), 0.0) > server.launched_at

    def _answers(self, server: _Local) -> bool:
        if server.process is None or server.process.exit_code is not None or self._fails(server):
            return False
        url, timeout_s = self._url(server), self._config.health_timeout_s
        if self._are_paused:
            return obeys(url, timeout_s=timeout_s)
        if works(url, timeout_s=timeout_s):
            return True
        # Paused meanwhile, it samples nothing for anyone.
        return self._are_paused and obeys(url, timeout_s=timeout_s)

    def _start(self, servers: Sequence[_Local]) -> None:
        """Start these side by side, and return when all of them answer."""
        if not servers:
            return
        again = any(server.has_run for server in servers)
        for server in servers:
            if server.process is not None:
                self._count_restart(server)
            self._launch(server)
        self._asked_s = time.monotonic()
        label = "restarting SGLang" if again else "starting SGLang"
        with Progress(
            len(servers), "servers", label, every_s=5.0, enabled=self._show_progress
        ) as progress:
            for done, server in enumerate(servers):
                progress.update(done, f"log in {self._log(server)}")
                self._wait(server, progress, done)
            progress.update(len(servers))

    def _count_restart(self, server: _Local) -> None:
        ending = "says nothing" if server.process.exit_code is None else "has ended"
        if self._fails(server):
            ending = "gives answers that cannot be used"
        words = _last_lines(server.process.output())
        server.process.kill()
        server.num_restarts += 1
        self.num_restarts += 1
        if server.num_restarts > self._config.max_restarts:
            raise EngineError(
                f"rollout server {server.index} {ending}, after rollout.max_restarts = "
                f"{self._config.max_restarts} restarts. The end of {self._log(server)}:\n{words}"
            )

    def _launch(self, server: _Local) -> None:
        assert self._weights.directory is not None, "servers are started from files"
        command = server_command(
            self._config,
            port=server.port,
            model_dir=self._weights.directory,
            label=self._weights.label,
            dtype=self._dtype,
            has_experts=hasattr(self._model, "num_experts"),
            on_cuda=self._on_cuda,
        )
        environment = server_environment(self._config, on_cuda=self._on_cuda)
        server.process = ServerProcess(command, environment=environment, log=self._log(server))
        server.launched_s, server.launched_at = time.monotonic(), time.time()

    def _wait(self, server: _Local, progress: Progress, done: int) -> None:
        """Return when the server answers and has turned out to be what was started.

        One that ends before is launched again, and that counts as a restart; but one that ends of
        itself, and has never run, would do so again. Where its port was taken meanwhile it gets
        another, unless that is asked for or known.
        """
        ports_left = 0 if self._config.port or server.has_run else _PORT_TRIES
        while not self._comes_up(server, progress, done):
            words = server.process.output()
            if ports_left and _port_was_lost(words):
                ports_left -= 1
                server.port = choose_port(self._config, server.index)
            elif server.has_run or server.process.exit_code < 0:
                self._count_restart(server)
            else:
                raise EngineError(
                    f"rollout server {server.index} ended while it started. The end of "
                    f"{self._log(server)}:\n{_last_lines(words)}"
                )
            self._launch(server)
        server.has_run = True

    def _comes_up(self, server: _Local, progress: Progress, done: int) -> bool:
        """Wait until the server answers as it should. False where it ends before."""
        while not works(self._url(server), timeout_s=_ANSWER_S):
            progress.update(done)
            if self._closing.is_set():
                raise EngineError("the run ended while a rollout server was started")
            if server.process.exit_code is not None:
                return False
            if time.monotonic() - server.launched_s > self._config.start_timeout_s:
                server.process.kill()
                raise EngineError(
                    f"rollout server {server.index} did not answer within rollout.start_timeout_s ="
                    f" {self._config.start_timeout_s}. Raise it, or see {self._log(server)}"
                )
            time.sleep(_POLL_S)
        if not self._on_cuda and sglang_cpu.PLUGIN_LOADED not in server.process.output():
            server.process.kill()
            raise EngineError(
                f"rollout server {server.index} runs without the plugin that SGLang needs on a CPU:"
                f" {self._log(server)} does not say that it is in place"
            )
        try:
            check_server(self._url(server), self._model, self._config, label=self._weights.label)
        except EngineError:
            if server.process.exit_code is None:
                raise
            return False
        return True

    def _stop(self) -> None:
        running = [server.process for server in self._locals if server.process is not None]
        stops = [threading.Thread(target=process.stop) for process in running]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()
        for server in self._locals:
            server.process, server.has_run = None, False

    def _url(self, server: _Local) -> str:
        return f"http://{self._config.host}:{server.port}"

    def _log(self, server: _Local) -> Path:
        return self._log_dir / f"server_{server.index}.log"


def pause_servers(urls: Iterable[str]) -> None:
    """Raises a `ServerError` that names those which do not pause."""

    def pause(url: str) -> None:
        call(url, "/pause_generation", {"mode": "retract"}, timeout_s=_ANSWER_S)

    side_by_side(urls, pause)


def resume_servers(urls: Iterable[str]) -> str | None:
    """Returns: what those say that do not go on, if any, after some attempts."""
    paused, words = list(urls), None

    def go_on(url: str) -> None:
        call(url, "/continue_generation", {}, timeout_s=_ANSWER_S)

    for attempt in range(_RESUME_TRIES):
        if attempt:
            time.sleep(_RESUME_PAUSE_S)
        try:
            side_by_side(paused, go_on)
        except ServerError as error:
            paused, words = error.urls, str(error)
        else:
            return None
    return words


def _port_was_lost(output: str) -> bool:
    return "address already in use" in output.lower()


def _last_lines(output: str) -> str:
    return "\n".join(output.strip().splitlines()[-15:])
