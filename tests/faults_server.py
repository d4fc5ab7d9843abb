"""A warm parent for the tests of faults: it has imported what a run imports, and forks a process for each command.

A fork is a process of its own: its signals, limits, files and end are real, and it comes without the ten seconds that
torch and Lightning take to import. Speaks lines of JSON: a command is answered with its process number, a number and a
time-out with the exit status (negative: killed by that signal; null: still running).
"""

import json
import os
import resource
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def main() -> None:
    sys.path.insert(0, str(ROOT))
    import sklearn.datasets  # noqa: F401  # the rest of what a run imports comes with it

    import vae.run.results  # noqa: F401  # with matplotlib and TensorBoard

    answer("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer(status(request["wait"], request["seconds"]))
            continue
        pid = os.fork()
        if pid == 0:
            return become(request)
        answer(pid)


def answer(value: Any) -> None:
    print(json.dumps(value), flush=True)


def status(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while True:
        found, code = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(code)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def become(request: dict[str, Any]) -> None:
    """`python script arguments`, in this process, which then ends as Python would end it."""
    os.setsid()  # the leader of a group of its own, as a shell's jobs are
    os.chdir(request["cwd"])
    os.environ |= request["env"]
    streams = ((0, os.devnull, os.O_RDONLY), *((n, request[k], WRITE) for n, k in ((1, "stdout"), (2, "stderr"))))
    for number, name, flags in streams:
        os.dup2(os.open(name, flags, 0o644), number)
    sys.stdin = open(os.devnull)  # noqa: SIM115  # until the process ends
    for name, limit in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [request["script"], *request["arguments"]]
    runpy.run_path(request["script"], run_name="__main__")


WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC

if __name__ == "__main__":
    main()
