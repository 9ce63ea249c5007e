"""Mistakes that are the user's to mend: one clear message, exit code 2, no traceback.

Anything else that is raised is a bug or a lost machine, and keeps its traceback.
"""

EXIT_DONE = 0
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
"""Stopped from the keyboard (128 + SIGINT, as shells count it)."""
EXIT_RUN_AGAIN = 75
"""Stopped early with a checkpoint (preemption, time limit): start me again (EX_TEMPFAIL)."""

EXIT_STALLED = 124
"""The watchdog ended a rank that had shown no sign of life (as `timeout` counts it)."""


class StoppedEarly(Exception):  # noqa: N818  no error: the way out of a loop
    """A signal asked the job to stop; every rank raises it, after a checkpoint."""


class UserError(Exception):
    """Base of everything that the entry points print without a traceback."""

    one_rank = False
    """Raised on one rank of a job alone, which must speak for itself; otherwise rank 0 does."""


class ConfigError(UserError):
    """An impossible or unknown setting. Names the setting's path, its value and a way out."""


class DataError(UserError):
    """A prompt file, a record or a tokenizer is unusable. Names file and line."""


class CheckpointError(UserError):
    """A checkpoint is missing, truncated, foreign, or could not be written."""


class RunDirError(UserError):
    """The run directory is in use or belongs to another run."""


class EngineError(UserError):
    """A rollout server cannot be used: it does not start, is another's, or is lost for good."""


class NodeError(UserError):
    """A machine of the job is unfit. Names host and rank."""


class NoProgressError(UserError):
    """A job was started again and again, and got no further."""
