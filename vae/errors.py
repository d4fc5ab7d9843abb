"""The ways a command ends before its end; each carries the one line that the user reads."""

import signal


class InputError(Exception):
    """What the user gave cannot be used (exit code 2): the key or file, its value, what is allowed, what to do."""

    exit_code = 2


class RunFailed(Exception):
    """The run could not go on (exit code 1): names the cause and what to do next."""

    exit_code = 1


class Stopped(BaseException):
    """A signal ended the run. No Exception: neither Hydra's sweep nor a broad `except` may carry on.

    Nor a KeyboardInterrupt, which Lightning turns into exit code 1.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signal = signal.Signals(signum)
        self.exit_code = 128 + signum

    def __str__(self) -> str:
        return f"stopped by {self.signal.name}"
