"""The ways a command ends before its end: the exit code, and the one line that the user reads.

Imports nothing, so that a signal during a long import is answered too.
"""

import errno
import signal


class InputError(Exception):
    """What the user gave cannot be used (exit code 2): the key or file, its value, what is allowed, what to do."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        """One line, whatever the names and values in it hold: line breaks and terminal codes are spelled out."""
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


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


FAILED, INTERRUPTED = 1, 130


def ending(error: BaseException) -> tuple[int, str]:
    """0 finished, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM; after these two the same command continues."""
    if isinstance(error, SystemExit):
        return (error.code or 0, "") if isinstance(error.code, int | None) else (FAILED, str(error.code))
    if isinstance(error, (InputError, RunFailed)):
        return error.exit_code, str(error)
    if isinstance(error, Stopped):
        return error.exit_code, f"{error}; the same command continues the run"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "stopped by SIGINT; the same command continues the run"
    if out_of_memory(error):
        return FAILED, (
            "out of memory: lower data.batch_size or objective.samples (in training), data.eval_batch_size or "
            f"evaluation.generated (at the end); {first_line(error)}"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):  # TensorBoard's, mostly
        saved = "what was saved before is intact; make room, and the same command continues the run"
        return FAILED, f"cannot write: {error.strerror}; {saved}"
    return FAILED, f"{type(error).__name__}: {first_line(error)}"


def is_known(error: BaseException) -> bool:
    """Whether its line says all there is to say: no trace of where it came from is needed."""
    return isinstance(error, (InputError, RunFailed, Stopped, KeyboardInterrupt, SystemExit))


def out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text))
    )


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
