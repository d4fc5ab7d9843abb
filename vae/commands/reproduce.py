"""`vae reproduce`: published numbers beside ours. Each rung of the ladder is a file of conf/reproduce/.

A rung names its runs, each a list of overrides, and its claims. A claim is a metric of a run, or a difference of two
runs, seed by seed; it has a target with a tolerance, or is to lie above or below a number. Imports no torch: runs are
trained by train.py in processes of their own, so that a run that is there is continued, or read.
"""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from vae.errors import InputError, RunFailed, Stopped
from vae.evaluation.statistics import interval
from vae.files import replace
from vae.run.compose import compose
from vae.run.directory import NOT_IDENTITY, describe_differences, differences, read_metrics, read_settings
from vae.run.keys import CONF, nearest
from vae.words import plus_minus, short_commits

REFUSED = 2  # train.py's exit code for bad input
PATIENCE = 60  # seconds that a run has to save and stop when the budget is spent
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    metric: str
    of: str
    target: float | None = None
    tolerance: float = 0.0
    better: str = "lower"
    minus: str | None = None
    below: float | None = None
    above: float | None = None

    @property
    def name(self) -> str:
        return f"{self.metric}, {self.of}" + (f" - {self.minus}" if self.minus else "")

    @property
    def sides(self) -> list[str]:
        return [self.of, self.minus] if self.minus else [self.of]

    @property
    def wanted(self) -> str:
        if self.target is not None:
            return f"{self.target:g} ± {self.tolerance:g}"
        return f"< {self.below:g}" if self.below is not None else f"> {self.above:g}"


@dataclass(frozen=True)
class Rung:
    name: str
    what: str
    source: str
    seeds: list[int]
    minutes: float | None  # that a seed's runs take together on 2 cores; None where that would be days
    runs: dict[str, list[str]]
    claims: list[Claim]


@dataclass(frozen=True)
class Row:
    """One claim with what was obtained; `error` is half a 95 % interval."""

    rung: str
    claim: str
    wanted: str
    obtained: float | None
    error: float | None
    seeds: int
    verdict: str
    source: str
    commits: str = ""
    date: str = ""


def ladder() -> dict[str, Rung]:
    """All rungs by name."""
    rungs = {}
    for file in sorted(Path(CONF, "reproduce").glob("*.yaml")):
        plain = yaml.safe_load(file.read_text())
        claims = [Claim(**claim) for claim in plain.pop("claims")]
        rungs[file.stem] = Rung(name=file.stem, claims=claims, **plain)
    return rungs


def chosen(names: Iterable[str], everything: bool) -> list[Rung]:
    """Raises InputError for a rung that there is not, and where none is named."""
    rungs = ladder()
    names = list(rungs) if everything else list(dict.fromkeys(names))
    if not names:
        raise InputError(f"vae reproduce: name rungs ({', '.join(rungs)}), or --all; --list says what they are")
    for name in names:
        if name not in rungs:
            raise InputError(f"{name}: there is no such rung; {nearest(name, rungs)} They are {', '.join(rungs)}")
    return [rungs[name] for name in names]


def seconds(text: str | None) -> float:
    """`90s`, `30m`, `2h` or `1.5h`; infinite where none is given."""
    if text is None:
        return math.inf
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or not float(found[1]):
        raise InputError(f"--budget={text}: must be a time above 0, for example 90s, 30m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def reproduce(
    names: Sequence[str],
    everything: bool,
    budget: str | None,
    out: str,
    overrides: Sequence[str],
    gpu: bool,
    jobs: int,
) -> tuple[list[Row], set[Path]]:
    """Trains what is missing while the budget lasts, then writes reproduced.md and reproduced.json to `out`.

    Returns the table, and the runs that failed. Raises InputError for bad input, before anything is trained.
    """
    rungs, deadline, folder = chosen(names, everything), time.monotonic() + seconds(budget), Path(out)
    require_free(overrides)
    require_same(commands(rungs, folder, overrides))
    runs = commands([rung for rung in rungs if rung.minutes is not None or gpu], folder, overrides)
    missing = [(directory, arguments) for directory, arguments in runs if finished(directory) is None]
    failed = train(missing, deadline, jobs)
    rows = [row for rung in rungs for row in judge(rung, folder, gpu, failed, changed(overrides))]
    write(rows, folder)
    return rows, failed


def commands(rungs: Sequence[Rung], folder: Path, overrides: Sequence[str]) -> list[tuple[Path, list[str]]]:
    """Each run's directory and arguments, in the order in which a budget is best spent.

    A rung's runs of one seed stand together, and first stands what ends soonest: two seeds of a short rung come before
    the first one of a rung that takes three times as long.
    """
    turns = [(rung, count, seed) for rung in rungs for count, seed in enumerate(rung.seeds, 1)]
    turns.sort(key=lambda turn: turn[1] * (turn[0].minutes or math.inf))
    return [
        (directory := place(folder, rung, name, seed), [*own, *overrides, f"seed={seed}", f"run_dir='{directory}'"])
        for rung, _, seed in turns
        for name, own in rung.runs.items()
    ]


def place(folder: Path, rung: Rung, name: str, seed: int) -> Path:
    return folder / rung.name / f"{name}-{seed}"


def require_free(overrides: Sequence[str]) -> None:
    """Raises InputError for a key that the rungs set themselves, and would set again."""
    for one in overrides:
        if one.partition("=")[0].lstrip("+") in ("seed", "run_dir"):
            raise InputError(f"{one}: each rung sets its seeds and its folders; leave it out, --out names their place")


def require_same(runs: Sequence[tuple[Path, list[str]]]) -> None:
    """Raises InputError for a key that there is not, and for a run that is there under another configuration."""
    for directory, arguments in runs:
        wanted = compose(arguments).plain
        path = directory / "config.yaml"
        if path.exists() and (differ := differences(read_settings(path), wanted)):
            raise InputError(
                f"{directory}: belongs to another configuration, which differs in {describe_differences(differ)}; "
                "name another folder with --out"
            )


def changed(overrides: Sequence[str]) -> str:
    """What makes the runs others than the rung's own."""
    return " ".join(one for one in overrides if one.partition("=")[0].lstrip("+") not in NOT_IDENTITY)


def finished(directory: Path) -> Metrics | None:
    """The metrics of a run that has ended; None where there is none."""
    return read_metrics(directory / "metrics.json")


def train(runs: Sequence[tuple[Path, list[str]]], deadline: float, jobs: int) -> set[Path]:
    """`jobs` runs at a time, which share the cores; those that failed are returned, when all others have ended.

    A run that the deadline, Ctrl-C or SIGTERM stops goes on at the next call. Raises RunFailed for a run that was
    refused, since what refuses one, such as a data set that is not there, refuses all.
    """
    signal.signal(signal.SIGTERM, _stop)
    waiting, working, failed = deque(runs), dict[Path, subprocess.Popen[bytes]](), set[Path]()
    try:
        while (waiting or working) and time.monotonic() < deadline:
            while waiting and len(working) < jobs:
                directory, arguments = waiting.popleft()
                print(f"{directory}: trains", flush=True)
                working[directory] = start(arguments, jobs)
            for directory in [directory for directory, process in working.items() if process.poll() is not None]:
                code = working.pop(directory).returncode
                if code == REFUSED:
                    raise RunFailed(f"{directory}: was refused; the line stands above")
                print(f"{directory}: {f'failed with exit code {code}' if code else 'has ended'}", flush=True)
                failed |= {directory} if code else set()
            time.sleep(0.1)
    finally:
        stop(working.values())
    return failed


def start(arguments: Sequence[str], jobs: int) -> "subprocess.Popen[bytes]":
    """train.py in a process of its own; of several at a time only errors are shown, the rest is in their train.log."""
    command = [sys.executable, str(Path(CONF).parent / "train.py"), *arguments]
    if jobs == 1:
        return subprocess.Popen(command)
    if not any(one.startswith("threads=") for one in arguments):
        from joblib import cpu_count  # knows of affinities and of a container's share

        command.append(f"threads={max(1, cpu_count() // jobs)}")
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _stop(signum: int, _: object) -> None:
    raise Stopped(signum)


def stop(processes: Collection["subprocess.Popen[bytes]"]) -> None:
    """As a cluster would: a run saves its last step on SIGTERM."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def judge(rung: Rung, folder: Path, gpu: bool, failed: Collection[Path] = (), changed: str = "") -> Iterator[Row]:
    """A row for each claim, from the seeds whose runs have ended."""
    for claim in rung.claims:
        sides = [ended(rung, folder, name) for name in claim.sides]
        seeds = [seed for seed in rung.seeds if all(seed in side for side in sides)]
        shared = [side[seed] for seed in seeds for side in sides]
        places = [place(folder, rung, name, seed) for name in claim.sides for seed in seeds]
        written = [directory.joinpath("metrics.json").stat().st_mtime for directory in places]
        fault = fault_of(claim, shared) if seeds else missing(rung, folder, gpu, failed)
        values = [] if fault else [value_of(claim, [side[seed] for side in sides]) for seed in seeds]
        mean, error = mean_and_error(values, shared[0].get(f"{claim.metric}_error") if len(shared) == 1 else None)
        yield Row(
            rung=rung.name,
            claim=claim.name + (f" ({changed})" if changed else ""),
            wanted=claim.wanted,
            obtained=mean,
            error=error,
            seeds=len(values),
            verdict=fault if mean is None else verdict(claim, mean, error),
            source=rung.source,
            commits=" ".join(sorted({commit for metrics in shared for commit in short_commits(metrics["provenance"])})),
            date=time.strftime("%Y-%m-%d", time.gmtime(max(written))) if written else "",
        )


def ended(rung: Rung, folder: Path, name: str) -> dict[int, Metrics]:
    """The metrics of a rung's run, by seed, as far as they are there."""
    found = {seed: finished(place(folder, rung, name, seed)) for seed in rung.seeds}
    return {seed: metrics for seed, metrics in found.items() if metrics is not None}


def missing(rung: Rung, folder: Path, gpu: bool, failed: Collection[Path]) -> str:
    """Why no seed has all the runs of a claim."""
    if any(place(folder, rung, name, seed) in failed for name in rung.runs for seed in rung.seeds):
        return "failed"
    return "not run: needs a GPU" if rung.minutes is None and not gpu else "not run"


def fault_of(claim: Claim, runs: Sequence[Metrics]) -> str:
    """Why these runs, though they have ended, have no number for the claim; empty where they have."""
    if any(claim.metric not in metrics for metrics in runs):
        return f"no {claim.metric} in these runs"
    samples = sorted({metrics[f"{claim.metric}_samples"] for metrics in runs if f"{claim.metric}_samples" in metrics})
    return f"not comparable: {', '.join(map(str, samples))} importance samples" if len(samples) > 1 else ""


def value_of(claim: Claim, sides: Sequence[Metrics]) -> float:
    ours, *others = (float(metrics[claim.metric]) for metrics in sides)
    return ours - sum(others)


def mean_and_error(values: Sequence[float], single: float | None) -> tuple[float | None, float | None]:
    """The mean and half of its 95 % interval: Student's over seeds, or of one run's images where it says its error."""
    if not values:
        return None, None
    mean, _, high, count = interval(values)
    if count == 1:
        return mean, None if single is None else 1.96 * single
    return mean, high - mean


def verdict(claim: Claim, mean: float, error: float | None) -> str:
    if claim.target is None:
        if error is None:
            return "undecided: one seed has no interval"
        holds = mean + error < claim.below if claim.below is not None else mean - error > (claim.above or 0.0)
        return "reproduced" if holds else "not reproduced"
    ahead = claim.target - mean if claim.better == "lower" else mean - claim.target
    if ahead > claim.tolerance:
        return "better"
    return "reproduced" if ahead >= -claim.tolerance else "not reproduced"


HEAD = ("rung", "what", "target", "obtained", "seeds", "verdict", "source")


def cells(row: Row) -> tuple[str, ...]:
    obtained = "" if row.obtained is None else plus_minus(row.obtained, row.error)
    return row.rung, row.claim, row.wanted, obtained, str(row.seeds), row.verdict, row.source


def write(rows: Sequence[Row], folder: Path) -> None:
    """The table as Markdown, of numbers that were obtained, and as JSON."""
    lines = [
        "# Reproduced", "",
        "Made by `vae reproduce`. A target is a number with the tolerance that we allow, or a bound on one of our",
        "numbers or on a difference between two of our models, seed by seed. ± is half of a 95 % interval: over",
        "seeds, or over test images where there is one seed.", "",
        f"| {' | '.join((*HEAD, 'commit', 'date'))} |", f"|{'---|' * (len(HEAD) + 2)}",
        *(f"| {' | '.join((*cells(row), row.commits, row.date))} |" for row in rows),
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "reproduced.md", ("\n".join(lines) + "\n").encode())
    replace(folder / "reproduced.json", (json.dumps([asdict(row) for row in rows], indent=2) + "\n").encode())


def show(rows: Sequence[tuple[str, ...]], head: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=box.SIMPLE)
    for row in rows:
        table.add_row(*row)
    Console(width=max(120, shutil.get_terminal_size().columns)).print(table, highlight=False)


def list_rungs() -> None:
    rows = []
    for rung in ladder().values():
        targets = "; ".join(f"{claim.name} {claim.wanted}" for claim in rung.claims)
        cost = "a GPU" if rung.minutes is None else f"{rung.minutes:g} min a seed"
        rows.append((rung.name, rung.what, targets, cost, rung.source))
    show(rows, ("rung", "what", "claims", "time", "source"))


def has_gpu() -> bool:
    """Asked only where a rung needs one: it takes an import of torch."""
    import torch

    return torch.cuda.is_available()


def main(names: Sequence[str], everything: bool, listing: bool, budget: str | None, out: str, jobs: int) -> None:
    if listing:
        list_rungs()
        return
    overrides, rungs = [one for one in names if "=" in one], [one for one in names if "=" not in one]
    wanted = chosen(rungs, everything)
    seconds(budget)
    gpu = any(rung.minutes is None for rung in wanted) and has_gpu()
    rows, failed = reproduce([rung.name for rung in wanted], False, budget, out, overrides, gpu, jobs)
    show([cells(row) for row in rows], HEAD)
    print(f"written: {out}/reproduced.md, {out}/reproduced.json; to train what is missing, give the command again")
    if failed:
        raise RunFailed(f"{', '.join(map(str, sorted(failed)))}: failed; see the lines above and train.log there")
