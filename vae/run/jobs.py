"""The jobs of a sweep: the runs that a command asks for, what each is called, which folder is its own, how it stands.

A folder is named by what varies. A job finds what it has begun by its configuration, whatever that folder is called.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from vae.errors import InputError
from vae.run import settings
from vae.run.compose import compose_config, explain, hydra_over, key_of
from vae.run.directory import MAY_GROW, Run, differences, identity, is_complete, read_metrics, read_settings, write_yaml
from vae.run.keys import CONF, Plain, Settings
from vae.run.records import Status, find_directories, last_epoch, read_record
from vae.words import duration

Identified = tuple[Path, str | None]  # a run's directory and its fingerprint

PRESET = "sweep="
LONGEST_NAME = 120  # of a folder; file systems take 255 bytes, and people fewer


@dataclass(frozen=True)
class Job:
    """One run of several, before it is started."""

    name: str
    settings: Settings
    directory: Path
    status: Status | None = None  # None: not begun
    cfg: DictConfig | None = None  # what Hydra composed, for the run's folder .hydra
    is_shared: bool = False  # whether its folder lies among those of other jobs, which may take it first

    @property
    def is_done(self) -> bool:
        return self.status == "finished"

    @property
    def standing(self) -> str:
        if self.status == "unfinished":
            return last_epoch(self.directory) or "begun"
        return self.status or "to do"

    def take(self) -> "Job":
        """The job in the folder that is its own from now on; raises InputError as `take_directory` does."""
        if not self.is_shared:
            return self
        return replace(self, directory=take_directory(self.directory.parent, self.name, self.settings))

    @property
    def run(self) -> Run:
        return Run(self.directory, self.settings, one_of_many=True)


@dataclass(frozen=True)
class Cost:
    """What a run costs, as `vae.run.probe` measures it."""

    parameters: int
    seconds: float  # of training and validation that are left


# --- which runs a command asks for ------------------------------------------------------------------------------------


def plan_sweep(overrides: Sequence[str], folders: Sequence[str] = (), config_name: str | None = None) -> list[Job]:
    """The jobs of `train.py -m overrides`, each checked; raises InputError for what a run would refuse."""
    with hydra_over(folders):
        try:
            check_values(overrides)
            each = overrides_of_jobs(overrides)
        except (HydraException, ValueError) as error:
            raise InputError(explain(error, list(overrides), config_name, folders)) from error
    composed = [compose_config(job, folders, config_name, with_hydra=True) for job in each]
    for group, default in (("launcher", "BasicLauncher"), ("sweeper", "BasicSweeper")):
        part = composed[0].hydra[group]
        if not str(part._target_).endswith(default) or part.get("params"):
            raise InputError(f"hydra/{group}: is set in a YAML file; give launcher and values on the command line")
    checked = [settings.check(cfg) for cfg in composed]
    if any(s.trainer.strategy == "ddp" for s in checked):
        raise InputError(
            "trainer.strategy=ddp: with -m each of its processes would start the whole sweep again; "
            "use trainer.strategy=ddp_fork (CPU) or ddp_spawn, or run the jobs one by one"
        )
    check_place(Path(checked[0].run_dir))
    return plan_jobs(Path(checked[0].run_dir), name_jobs(each), composed, checked)


def check_place(directory: Path, key: str = "run_dir") -> None:
    """Raises InputError for a folder that is a file, lies below one, or cannot be written."""
    nearest = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise InputError(f"{key}={directory}: {nearest} is not a folder; choose a folder that can be written")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{key}={directory}: {nearest} cannot be written; choose another folder")


def check_values(overrides: Sequence[str]) -> None:
    """Raises InputError for two sets of values of one key, of which Hydra takes the last, and for several folders."""
    lines: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, line = override.get_key_element().lstrip("+"), override.input_line or ""
        if key in lines and (override.is_sweep_override() or "," in lines[key]):
            raise InputError(f"{line}: {lines[key]} is given too, and only one can hold; give all its values at once")
        if key == "run_dir" and override.is_sweep_override():
            raise InputError(f"{line}: a sweep has one folder; give one, or one command for each")
        lines[key] = line


def overrides_of_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each run: those of a preset, or the product of the values between commas."""
    names = [override.removeprefix(PRESET) for override in overrides if override.startswith(PRESET)]
    rest = [override for override in overrides if not override.startswith(PRESET)]
    return preset_jobs(names[-1], rest) if names else product(rest)


def preset_jobs(name: str, overrides: Sequence[str]) -> list[list[str]]:
    """The runs of a preset: what its lines have in common and the rest of the command, then each line's own keys.

    The command overrides what is common, a line overrides both. The seeds come first: a sweep that is cut off has all
    lines of the first seeds.
    """
    path = Path(CONF, "sweep", f"{name}.yaml")
    if not path.is_file():
        options = sorted(path.stem for path in path.parent.glob("*.yaml"))
        raise InputError(f"sweep={name}: there is no such option; it is one of {', '.join(options)}")
    preset = yaml.safe_load(path.read_text())
    lines = list(itertools.chain.from_iterable(product(line.split()) for line in preset["lines"]))
    common = product(last_of_each_key([*preset["common"], *overrides]))
    return [last_of_each_key([*base, *line]) for base, line in itertools.product(common, lines)]


def last_of_each_key(overrides: Sequence[str]) -> list[str]:
    return list({key_of(override): override for override in overrides}.values())


def product(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each run of an ordinary sweep, taken apart as Hydra's own sweeper does."""
    choices = []
    loader = GlobalHydra.instance().config_loader()  # for glob(*), which looks at the options there are
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(overrides)):
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([override.input_line or ""])
    return [list(job) for job in itertools.product(*choices)]


def plan_jobs(root: Path, names: list[str], composed: list[DictConfig], checked: list[Settings]) -> list[Job]:
    """Each configuration once, with its folder and how it stands there.

    Raises InputError for a folder that is itself a run, and for what would be refused once it is the job's turn.
    """
    if (root / "config.yaml").exists():
        raise InputError(f"run_dir={root}: is a run; a sweep needs a folder of its own, for example {root}_sweep")
    runs = identify_runs(root) if root.is_dir() else []
    jobs: dict[str, Job] = {}
    for name, cfg, s in zip(names, composed, checked, strict=True):
        key = fingerprint(s.plain)
        if key not in jobs:
            job = Job(name, s, choose_directory(root, name, s, runs), cfg=cfg, is_shared=True)
            job.run.check()
            jobs[key] = replace(job, status=status_of(job))
    return list(jobs.values())


def status_of(job: Job) -> Status | None:
    """None where nothing is begun; a finished run that is to train on is unfinished."""
    if not (job.directory / "config.yaml").exists():
        return None
    status = read_record(job.directory).status
    return "unfinished" if status == "finished" and not is_finished(job.directory, job.settings) else status


def describe(root: Path, jobs: Sequence[Job]) -> str:
    """`sweep of 4 runs in outputs/multirun/sizes: 2 finished, 1 begun, 1 to do`."""
    done = sum(job.is_done for job in jobs)
    new = sum(job.status is None for job in jobs)
    counts = {"finished": done, "begun": len(jobs) - done - new, "to do": new}
    return f"sweep of {len(jobs)} runs in {root}: {', '.join(f'{n} {word}' for word, n in counts.items() if n)}"


def list_jobs(jobs: Sequence[Job], costs: Sequence[Cost] | None) -> list[str]:
    """One line per job: how it stands, the model's parameters, what varies; then the time that the rest takes."""
    lines = [describe(jobs[0].directory.parent, jobs)]
    if costs is None:
        return [*lines, *(f"{job.standing:<14} {job.name}" for job in jobs)]
    for job, cost in zip(jobs, costs, strict=True):
        lines.append(f"{job.standing:<14} {cost.parameters:>11,} parameters  {job.name}")
    left, seconds = sum(not job.is_done for job in jobs), sum(cost.seconds for cost in costs)
    if left:
        lines.append(
            f"about {duration(seconds)} of training and validation for the {left} left, one after another, estimated "
            "from a few steps of each on this machine"
        )
    return lines


# --- names and folders ------------------------------------------------------------------------------------------------


def name_jobs(jobs: list[list[str]]) -> list[str]:
    """`latent_dim=4,model=conv` for each job's overrides: what differs between the jobs, by key."""
    values = [{key_of(override): override.partition("=")[2] for override in job} for job in jobs]
    keys = sorted({key for job in values for key in job if not key.startswith("hydra")} - {"run_dir"})
    varying = [key for key in keys if len({job.get(key) for job in values}) > 1]
    return [safe_name(",".join(f"{key}={job[key]}" for key in varying if key in job)) for job in values]


def safe_name(text: str) -> str:
    """A folder's name: lists as 200-200, nothing that a shell reads; a hash where something else was left out."""
    plain = re.sub(r"\[([^\[\]]*)\]", lambda match: re.sub(r",\s*", "-", match[1]), text)
    safe = re.sub(r"[^A-Za-z0-9_.,=+-]", "_", plain)
    if safe == plain and len(safe) <= LONGEST_NAME:
        return safe or "default"
    return f"{safe[: LONGEST_NAME - 9]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def take_directory(root: Path, name: str, settings: Settings) -> Path:
    """The job's folder, described by a config.yaml from now on; jobs of other processes choose one after another.

    Raises InputError for a folder that cannot be written, or whose run has ended under another evaluation.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):
            directory = choose_directory(root, name, settings)
            Run(directory, settings).check()
            if not (directory / "config.yaml").exists():
                write_yaml(directory / "config.yaml", settings.plain)
    except OSError as error:
        raise InputError(f"run_dir={root}: cannot be written ({error.strerror}); choose another folder") from error
    return directory


def choose_directory(root: Path, name: str, settings: Settings, runs: Iterable[Identified] | None = None) -> Path:
    """A folder of this configuration, or else of this name; the name of another's gets the configuration's hash.

    `runs` are those in the sweep's folder, where they are known already.
    """
    key = fingerprint(settings.plain)
    same = [directory for directory, other in (identify_runs(root) if runs is None else runs) if other == key]
    if same:
        return min(same, key=lambda directory: (not is_finished(directory, settings), directory != root / name))
    if _is_free(root / name, settings.plain):
        return root / name
    # hashed without what may change while a run goes on
    return root / f"{name[: LONGEST_NAME - 9]}-{_digest(fingerprint(settings.plain, without=_may_change))}"


def fingerprint(plain: Plain, without: Callable[[str], bool] = lambda key: False) -> str:
    """Equal for configurations whose results are the same; 0 is 0.0."""
    pairs = [(key, value) for key, value in identity(plain).items() if not without(key)]
    return json.dumps([(k, int(v) if isinstance(v, float) and v.is_integer() else v) for k, v in pairs])


def identify_runs(root: Path) -> list[Identified]:
    """The runs at or below a folder, with their fingerprints."""
    return [(directory, _fingerprint_in(directory)) for directory in find_directories(root)]


def _fingerprint_in(directory: Path) -> str | None:
    path = directory / "config.yaml"
    with contextlib.suppress(OSError):
        stat = path.stat()
        return _fingerprint_of(path, stat.st_mtime_ns, stat.st_size)
    return None


@functools.lru_cache(maxsize=10_000)
def _fingerprint_of(path: Path, changed: int, size: int) -> str | None:
    """Of a config.yaml as it was at that time; None for one that cannot be read."""
    with contextlib.suppress(InputError):
        return fingerprint(read_settings(path))
    return None


def is_finished(directory: Path, settings: Settings) -> bool:
    with contextlib.suppress(InputError):
        return is_complete(read_metrics(directory / "metrics.json"), settings.trainer.max_epochs)
    return False


def _is_free(directory: Path, plain: Plain) -> bool:
    """Whether a job may have the folder of its name: nothing is there, or a run that goes on as this one."""
    if not (directory / "config.yaml").exists():
        return not directory.exists() or not any(directory.iterdir())
    with contextlib.suppress(InputError):
        return all(_may_change(key) for key in differences(read_settings(directory / "config.yaml"), plain))
    return False  # a damaged run, which is left as it is


def _may_change(key: str) -> bool:
    return key == MAY_GROW or key.startswith("evaluation.")
