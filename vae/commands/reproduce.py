"""`vae reproduce`: published numbers beside ours. Each rung of the ladder is a file of conf/reproduce/.

A rung names its runs, each a list of overrides, and its claims. A claim is a metric of a run, or the difference of two
runs, seed by seed; it has a target with a tolerance, or a bound. A run that exists is continued, or read.
"""

import json
import math
import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from vae.errors import InputError, RunFailed
from vae.evaluation.statistics import interval
from vae.files import replace
from vae.run import settings
from vae.run.compose import compose_config, key_of, override_of
from vae.run.directory import NOT_IDENTITY, describe_differences, differences, read_metrics, read_settings
from vae.run.jobs import Job, check_place
from vae.run.keys import CONF, Plain, expand_place, nearest
from vae.run.runner import in_turn, run_jobs, with_joblib
from vae.tables import text_table
from vae.words import number, plus_minus, short_commits

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
        return f"{self.metric}, {self.of}" + (f" − {self.minus}" if self.minus else "")

    @property
    def sides(self) -> list[str]:
        return [self.of, self.minus] if self.minus else [self.of]

    @property
    def range(self) -> tuple[float, float]:
        """The values that reproduce the claim."""
        if self.target is not None:
            return self.target - self.tolerance, self.target + self.tolerance
        return (-math.inf, self.below) if self.below is not None else (self.above or 0.0, math.inf)

    @property
    def wanted(self) -> str:
        least, most = self.range
        if self.target is not None:
            return f"{least:g} to {most:g}".replace("-", "−")
        return (f"< {most:g}" if self.below is not None else f"> {least:g}").replace("-", "−")


@dataclass(frozen=True)
class Rung:
    name: str
    what: str
    source: str
    seeds: list[int]
    minutes: float | None  # that the runs of one seed take together on 2 cores; None where that would be days
    runs: dict[str, list[str]]
    claims: list[Claim]


@dataclass(frozen=True)
class Row:
    """One claim with what was obtained; `error` is half of the 95 % interval over seeds."""

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


def choose(names: Iterable[str], everything: bool) -> list[Rung]:
    """Raises InputError for a rung that does not exist, and if none is named."""
    rungs = ladder()
    names = list(rungs) if everything else list(dict.fromkeys(names))
    if not names:
        raise InputError(f"vae reproduce: name rungs ({', '.join(rungs)}), or --all; --list says what they are")
    for name in names:
        if name not in rungs:
            raise InputError(f"{name}: there is no such rung; {nearest(name, rungs)} They are {', '.join(rungs)}")
    return [rungs[name] for name in names]


def seconds(text: str | None) -> float:
    """Of `90s`, `30m`, `2h` or `1.5h`; infinite for None."""
    if text is None:
        return math.inf
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match or not float(match[1]):
        raise InputError(f"--budget={text}: must be a time above 0, for example 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def reproduce(
    rungs: Sequence[Rung], budget: str | None, out: str, overrides: Sequence[str], gpu: bool, at_once: int
) -> tuple[list[Row], list[Path]]:
    """Trains what is missing while the budget lasts, then writes reproduced.md and reproduced.json to `out`.

    Returns the table, and the runs that failed. Raises InputError for bad input, before anything is trained.
    """
    deadline, folder = time.time() + seconds(budget), Path(expand_place(out))
    check_place(folder, "--out")
    jobs = jobs_of(rungs, folder, overrides)
    needs_gpu = {rung.name for rung in rungs if rung.minutes is None}
    missing = [
        job for job in jobs if metrics_of(job.directory) is None and (gpu or job.directory.parent.name not in needs_gpu)
    ]
    engine = in_turn if at_once == 1 else partial(with_joblib, n_jobs=at_once)
    outcomes = run_jobs(missing, engine, deadline, refusal_ends=True) if missing else []
    failed = [outcome.job.directory for outcome in outcomes if outcome.code == 1]
    rows = [row for rung in rungs for row in judge(rung, folder, gpu, failed, changed(overrides))]
    try:
        write(rows, folder)
    except OSError as error:
        raise InputError(f"--out={out}: cannot be written ({error.strerror}); choose another folder") from error
    return rows, failed


def jobs_of(rungs: Sequence[Rung], folder: Path, overrides: Sequence[str]) -> list[Job]:
    """The runs of the rungs, in the order in which a budget is best spent.

    A rung's runs of one seed stand together, and first stands what ends soonest: two seeds of a short rung come before
    the first one of a rung that takes three times as long. Raises InputError for a key that does not exist or that the
    rungs set themselves, and for a directory that belongs to another configuration.
    """
    for override in overrides:
        if key_of(override) in ("seed", "run_dir"):
            raise InputError(
                f"{override}: each rung sets its seeds and its folders; leave it out, --out names their place"
            )
    turns = [(rung, count, seed) for rung in rungs for count, seed in enumerate(rung.seeds, 1)]
    turns.sort(key=lambda turn: turn[1] * (turn[0].minutes or math.inf))
    return [
        job_of(place(folder, rung, name, seed), [*own, *overrides, f"seed={seed}"])
        for rung, _, seed in turns
        for name, own in rung.runs.items()
    ]


def job_of(directory: Path, overrides: list[str]) -> Job:
    cfg = compose_config([*overrides, override_of("run_dir", str(directory))], with_hydra=True)
    s = settings.check(cfg)
    if differ := differences(saved_settings(directory) or s.plain, s.plain):
        raise InputError(
            f"{directory}: belongs to another configuration, which differs in {describe_differences(differ)}; "
            "name another folder with --out"
        )
    return Job(f"{directory.parent.name} {directory.name}", s, directory, cfg=cfg)


def saved_settings(directory: Path) -> Plain | None:
    """Those of a run that has begun; None for a damaged file too, which is left to its own run: that fails alone."""
    with suppress(InputError):
        return read_settings(directory / "config.yaml") if (directory / "config.yaml").exists() else None
    return None


def place(folder: Path, rung: Rung, name: str, seed: int) -> Path:
    return folder / rung.name / f"{name}-{seed}"


def changed(overrides: Sequence[str]) -> str:
    """The overrides that change the rung's results."""
    return " ".join(override for override in overrides if key_of(override) not in NOT_IDENTITY)


def metrics_of(directory: Path) -> Metrics | None:
    """The metrics of a run that has ended; None where there are none that can be read."""
    with suppress(InputError):
        return read_metrics(directory / "metrics.json")
    return None


# --- the verdicts -----------------------------------------------------------------------------------------------------


def judge(rung: Rung, folder: Path, gpu: bool, failed: Collection[Path] = (), changed: str = "") -> Iterator[Row]:
    """A row for each claim, from the seeds whose runs have ended."""
    for claim in rung.claims:
        sides = [ended(rung, folder, name) for name in claim.sides]
        seeds = [seed for seed in rung.seeds if all(seed in side for side in sides)]
        runs = [side[seed] for seed in seeds for side in sides]
        files = [place(folder, rung, name, seed) / "metrics.json" for name in claim.sides for seed in seeds]
        fault = fault_of(claim, runs) if seeds else missing(rung, folder, gpu, failed)
        values = [] if fault else [value_of(claim, [side[seed] for side in sides]) for seed in seeds]
        mean = interval(values)
        half = mean.half if len(values) > 1 else None
        commits = {commit for metrics in runs for commit in short_commits(metrics.get("provenance") or {})}
        newest = max((file.stat().st_mtime for file in files), default=None)
        yield Row(
            rung=rung.name,
            claim=claim.name + (f" ({changed})" if changed else ""),
            wanted=claim.wanted,
            obtained=mean.value if values else None,
            error=half,
            seeds=len(values),
            verdict=fault or verdict(claim, mean.value, half),
            source=rung.source,
            commits=" ".join(sorted(commits)),
            date="" if newest is None else time.strftime("%Y-%m-%d", time.gmtime(newest)),
        )


def ended(rung: Rung, folder: Path, name: str) -> dict[int, Metrics]:
    """The metrics of a rung's run by seed, for the seeds that have ended."""
    every = {seed: metrics_of(place(folder, rung, name, seed)) for seed in rung.seeds}
    return {seed: metrics for seed, metrics in every.items() if metrics is not None}


def missing(rung: Rung, folder: Path, gpu: bool, failed: Collection[Path]) -> str:
    """Why no seed has all the runs of a claim."""
    places = [place(folder, rung, name, seed) for name in rung.runs for seed in rung.seeds]
    if any(directory in failed for directory in places):
        return "failed"
    if any((directory / "metrics.json").exists() and metrics_of(directory) is None for directory in places):
        return "metrics.json cannot be read"
    return "not run: needs a GPU" if rung.minutes is None and not gpu else "not run"


def fault_of(claim: Claim, runs: Sequence[Metrics]) -> str:
    """Why these runs, though they have ended, have no number for the claim; empty if they have one."""
    if not all(isinstance(metrics.get(claim.metric), int | float) for metrics in runs):
        return f"no {claim.metric} in these runs"
    samples = sorted({metrics[f"{claim.metric}_samples"] for metrics in runs if f"{claim.metric}_samples" in metrics})
    return f"not comparable: {', '.join(map(str, samples))} importance samples" if len(samples) > 1 else ""


def value_of(claim: Claim, sides: Sequence[Metrics]) -> float:
    ours, *others = (float(metrics[claim.metric]) for metrics in sides)
    return ours - sum(others)


def verdict(claim: Claim, mean: float, half: float | None) -> str:
    """By the whole interval over seeds, `mean` plus or minus `half`: None for one seed, which decides nothing."""
    if half is None:
        return f"undecided: one seed ({judge_interval(claim, mean, mean)})"
    if not half > 0:
        return "undecided: the seeds do not differ"
    return judge_interval(claim, mean - half, mean + half)


def judge_interval(claim: Claim, low: float, high: float) -> str:
    least, most = claim.range
    if least < low and high < most:
        return "reproduced"
    if claim.target is not None and (high < least if claim.better == "lower" else low > most):
        return "better"
    if high < least or low > most:
        return "not reproduced"
    return "undecided: the interval crosses an end of the range"


# --- the table --------------------------------------------------------------------------------------------------------


def columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    return {
        "rung": [row.rung for row in rows],
        "what": [row.claim for row in rows],
        "claimed": [row.wanted for row in rows],
        "obtained": ["" if row.obtained is None else plus_minus(row.obtained, row.error) for row in rows],
        "seeds": [number(row.seeds) for row in rows],
        "verdict": [row.verdict for row in rows],
        "source": [row.source for row in rows],
    }


def write(rows: Sequence[Row], folder: Path) -> None:
    """The table as Markdown, of numbers that were obtained, and as JSON."""
    table = columns(rows) | {"commit": [row.commits for row in rows], "date": [row.date for row in rows]}
    lines = [
        "# Reproduced", "",
        "Written by `vae reproduce`. A claim is a published number with the tolerance that we allow, as a range, or a",
        "bound on one of our numbers or on a difference between two of our models, seed by seed. ± is half of the 95 %",
        "interval over seeds. The whole interval has to lie within the range, or beyond it on the better side; one",
        "seed decides nothing.", "",
        f"| {' | '.join(table)} |", f"|{'---|' * len(table)}",
        *(f"| {' | '.join(cells)} |" for cells in zip(*table.values(), strict=True)),
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "reproduced.md", ("\n".join(lines) + "\n").encode())
    replace(folder / "reproduced.json", (json.dumps([asdict(row) for row in rows], indent=2) + "\n").encode())


def list_rungs() -> str:
    rungs = ladder().values()
    return text_table({
        "rung": [rung.name for rung in rungs],
        "time per seed": ["a GPU" if rung.minutes is None else f"{rung.minutes:g} min" for rung in rungs],
        "what": [rung.what for rung in rungs],
        "claims": ["; ".join(f"{claim.name} {claim.wanted}" for claim in rung.claims) for rung in rungs],
        "source": [rung.source for rung in rungs],
    }, drop=("source", "claims"))  # fmt: skip


def has_gpu() -> bool:
    import torch  # seconds, which only a rung that needs a GPU waits for

    return torch.cuda.is_available()


def main(names: Sequence[str], everything: bool, listing: bool, budget: str | None, out: str, at_once: int) -> None:
    if listing:
        print(list_rungs())
        return
    overrides = [name for name in names if "=" in name]
    rungs = choose([name for name in names if "=" not in name], everything)
    seconds(budget)
    gpu = any(rung.minutes is None for rung in rungs) and has_gpu()
    rows, failed = reproduce(rungs, budget, out, overrides, gpu, at_once)
    print(text_table(columns(rows), drop=("source", "seeds")))
    print("± is half of the 95 % interval over seeds")
    print(f"written: {out}/reproduced.md, {out}/reproduced.json; the same command trains what is missing")
    if failed:
        raise RunFailed(f"{', '.join(map(str, sorted(failed)))}: failed; see the lines above and train.log there")
