"""vae tune: the best of a space of configurations, found by any number of workers."""

import functools
import io
import logging
import shlex
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.errors import InputError, RunFailed, ending, is_known
from vae.files import expand, replace
from vae.run.compose import key_of
from vae.run.jobs import check_place
from vae.run.search_space import Search, check_edges, read_search
from vae.run.tune import Tuning, best_trials, counted, hide_password, import_optuna, progress, work

if TYPE_CHECKING:
    from optuna import Study

log = logging.getLogger(__name__)


def tune(space: str, overrides: Sequence[str], total: int, storage: str | None = None, seed: int = 0) -> None:
    """Works on the study until it has its trials, then prints the best one and draws the study."""
    search = read_search(space)
    folders = [override.partition("=")[2] for override in overrides if key_of(override) == "run_dir"]
    folder = expand(folders[-1] if folders else f"outputs/tune/{search.name}")
    shared = [override for override in overrides if key_of(override) != "run_dir"]
    check(search, shared, folder)
    tuning = Tuning(search, shared, folder, total, storage, seed)
    try:
        study = work(tuning)
    except Exception as error:
        if storage is None or is_known(error):
            raise
        raise RunFailed(hide_password(ending(error)[1], storage)) from None  # a database's driver may repeat its URL
    print(describe(tuning, study))
    files = draw(study, search.objectives, folder / "study")
    print(f"written: {folder}/study/{{{','.join(file.name for file in files)}}}")


def check(search: Search, overrides: list[str], folder: Path) -> None:
    """Raises InputError for what can be refused before anything is written."""
    import_optuna()
    check_place(folder)
    tuned = search.keys()
    for override in overrides:
        key = key_of(override).replace("/", ".")
        if "=" not in override:
            raise InputError(f"{override}: is not key=value; see vae tune --help")
        if key in tuned:
            raise InputError(f"{override}: {key} is what is searched; leave it out, or take it out of the space")
    check_edges(search, overrides)


def describe(tuning: Tuning, study: "Study") -> str:
    """The end of a study: how many trials, which failed, the best and the command that trains it again."""
    lines = [progress(tuning, study)]
    for trial in counted(study):
        if trial.state.name == "FAIL":
            reason = trial.user_attrs.get("failed", "its workers were killed")
            lines.append(f"{trial.user_attrs.get('folder', trial.number)}: failed: {reason}")
    best = best_trials(study)
    if not best:
        raise RunFailed("\n".join([*lines, f"no trial of {tuning.folder} is finished"]))
    for trial in sorted(best, key=lambda trial: trial.values):
        pairs = zip(tuning.search.objectives, trial.values, strict=True)
        lines.append(f"{trial.user_attrs['folder']}: {', '.join(f'{name} {value!r}' for name, value in pairs)}")
        lines.append(f"  python train.py {shlex.join(trial.user_attrs['overrides'])}")
    return "\n".join(lines)


def draw(study: "Study", objectives: Collection[str], folder: Path) -> list[Path]:
    """Optuna's own pictures as PNG files: history, importances, slices; with two or three objectives the front too."""
    import matplotlib
    from optuna.visualization import matplotlib as plots

    matplotlib.use("agg")
    kinds: dict[str, Callable[..., Any]] = {
        "history": plots.plot_optimization_history,
        "slices": plots.plot_slice,
        "importances": plots.plot_param_importances,
    }
    pictures: dict[str, Callable[[], Any]] = {}
    for i, metric in enumerate(objectives):
        of = {"target": lambda trial, i=i: trial.values[i], "target_name": metric} if len(objectives) > 1 else {}
        end = f"_{metric.replace('/', '_')}" if of else ""
        pictures |= {f"{name}{end}": functools.partial(plot, study, **of) for name, plot in kinds.items()}
    if len(objectives) in (2, 3):
        pictures["front"] = functools.partial(plots.plot_pareto_front, study, target_names=list(objectives))
    return [file for name, plot in pictures.items() if (file := _write(plot, folder / f"{name}.png"))]


def _write(plot: Callable[[], Any], file: Path) -> Path | None:
    """None where the trials are too few or too alike for the picture."""
    from matplotlib import pyplot

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls these plots experimental
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
