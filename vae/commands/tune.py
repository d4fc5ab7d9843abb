"""vae tune: the best of a space of configurations, found by any number of workers."""

import functools
import io
import logging
import shlex
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.errors import InputError, RunFailed
from vae.files import replace
from vae.run.space import Lowest, Search, read_search
from vae.run.tune import Tuning, best_trials, counted, import_optuna, progress, settings_of, work

if TYPE_CHECKING:
    from optuna import Study

log = logging.getLogger(__name__)


def tune(space: str, overrides: Sequence[str], total: int, storage: str | None = None, seed: int = 0) -> None:
    """Works on the study until it has its trials, then says what the best one is and draws the study."""
    search = read_search(space)
    tuning = Tuning(search, *place(search, overrides), total, storage, seed)
    check(tuning)
    study = work(tuning)
    print(describe(tuning, study))
    drawn = draw(study, search.objectives, tuning.folder / "study")
    print(f"drawn: {tuning.folder}/study/{{{','.join(file.name for file in drawn)}}}")


def place(search: Search, overrides: Sequence[str]) -> tuple[list[str], Path]:
    """What was given, and the study's folder."""
    folders = [one.removeprefix("run_dir=") for one in overrides if one.startswith("run_dir=")]
    given = [one for one in overrides if not one.startswith("run_dir=")]
    return given, Path(folders[-1] if folders else f"outputs/tune/{search.name}")


def check(tuning: Tuning) -> None:
    """Raises InputError for what can be refused before anything is written."""
    import_optuna()
    tuned = {key for one in tuning.search.dimensions for key in (one.key, *one.also)}
    for override in tuning.given:
        key = override.partition("=")[0].lstrip("+").replace("/", ".")
        if "=" not in override:
            raise InputError(f"{override}: is no key=value; `vae tune --help` says what comes where")
        if key in tuned:
            raise InputError(f"{override}: {key} is what is searched; leave it out, or take it out of the space")
    settings_of([*tuning.given, *tuning.search.suggest(Lowest())])  # type: ignore[arg-type]  # as much of a trial as it needs


def describe(tuning: Tuning, study: "Study") -> str:
    """The end of a study: how many trials, which failed, the best and the command that trains it again."""
    lines = [progress(tuning, study)]
    for trial in counted(study):
        if trial.state.name == "FAIL":
            said = trial.user_attrs.get("failed", "its workers died of it")
            lines.append(f"{trial.user_attrs.get('folder', trial.number)}: failed: {said}")
    best = best_trials(study)
    if not best:
        raise RunFailed("\n".join([*lines, f"no trial of {tuning.folder} is finished"]))
    for trial in sorted(best, key=lambda one: one.values):
        values = ", ".join(
            f"{name} {value!r}" for name, value in zip(tuning.search.objectives, trial.values, strict=True)
        )
        words = " ".join(shlex.quote(one) for one in trial.user_attrs["overrides"])
        lines.append(f"{trial.user_attrs['folder']}: {values}\n  python train.py {words}")
    return "\n".join(lines)


def draw(study: "Study", objectives: Collection[str], folder: Path) -> list[Path]:
    """Optuna's own pictures as PNG files: history, importances, slices; with two or three objectives the front too."""
    import matplotlib
    from optuna.visualization import matplotlib as plots

    matplotlib.use("agg")
    wanted: dict[str, Callable[[], Any]] = {}
    kinds: dict[str, Callable[..., Any]] = {
        "history": plots.plot_optimization_history,
        "slices": plots.plot_slice,
        "importances": plots.plot_param_importances,
    }
    for i, metric in enumerate(objectives):
        of = {"target": lambda trial, i=i: trial.values[i], "target_name": metric} if len(objectives) > 1 else {}
        end = f"_{metric.replace('/', '_')}" if of else ""
        wanted |= {f"{name}{end}": functools.partial(plot, study, **of) for name, plot in kinds.items()}
    if len(objectives) in (2, 3):
        wanted["front"] = functools.partial(plots.plot_pareto_front, study, target_names=list(objectives))
    return [file for name, plot in wanted.items() if (file := _write(plot, folder / f"{name}.png"))]


def _write(plot: Callable[[], Any], file: Path) -> Path | None:
    """None for what the trials are too few or too alike for."""
    from matplotlib import pyplot

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these plots of Optuna call themselves experimental
        try:
            plot()
        except (ValueError, RuntimeError) as error:
            log.info("%s is not drawn: %s", file.name, str(error).splitlines()[0])
            return None
        finally:
            figure = pyplot.gcf()
            pyplot.close("all")
        content = io.BytesIO()
        figure.savefig(content, dpi=120, bbox_inches="tight")
    replace(file, content.getvalue())
    return file
