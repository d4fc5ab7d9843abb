"""The two ways a command ends badly; each carries the one line that the user reads."""


class InputError(Exception):
    """What the user gave cannot be used (exit code 2): the key or file, its value, what is allowed, what to do."""

    exit_code = 2


class RunFailed(Exception):
    """The run could not go on (exit code 1): names the cause and what to do next."""

    exit_code = 1
