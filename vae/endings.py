"""How a command ends: the exit code, and the one line that says why.

Without torch, in whose import a signal may come.
"""

from vae.errors import InputError, RunFailed, Stopped

FAILED, INTERRUPTED = 1, 130


def ending(error: BaseException) -> tuple[int, str]:
    """0 finished, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM; after each the same command continues the run."""
    if isinstance(error, SystemExit):
        return int(error.code or 0), ""
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
    return FAILED, f"{type(error).__name__}: {first_line(error)}"


def expected(error: BaseException) -> bool:
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
