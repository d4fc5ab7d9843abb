"""`vae report RUN -o page.html`: a run on one page, for a person who hands it in or reads it."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.commands.explore import explorer_of
from vae.commands.meanings import meaning
from vae.commands.page import check_output, write_page
from vae.errors import InputError
from vae.files import require_plain
from vae.run.compose import compose
from vae.run.find import find_run, is_run
from vae.run.keys import Plain, leaves, show
from vae.run.parts import known_keys
from vae.run.records import find_directories
from vae.words import duration, short_commits

if TYPE_CHECKING:
    from vae.run.load import TrainedRun

# Dev loss per image of the student report that the project began with: MNIST, grey levels, squared error.
REPORT = {"the report's MLP, best of 70 epochs": 35.86, "the report's convolutional encoder": 32.0}
Chart = dict[str, Any]


def report(
    path: str, output: Path, images: int, which: str = "best", trust: tuple[str, ...] = (), force: bool = False,
    metrics: Sequence[str] = (),
) -> None:  # fmt: skip
    """Writes the page of a run, or of the runs below a folder; with no images, no data set is read."""
    if Path(path).is_dir() and not is_run(Path(path)) and any(find_directories(Path(path))):
        from vae.commands.report_sweep import report_sweep

        return report_sweep(path, output, images > 0, trust, force, metrics)
    if metrics:
        raise InputError(f"--metric={metrics[0]}: chooses what the runs of a sweep are compared by; {path} is one run")
    find_run(path)  # answers in a moment, where torch takes seconds
    check_output(output, force, "plotly")
    from vae.run.load import load_run

    values = run_values(load_run(path, which, trust=trust), images)
    write_page(output, "report.html.j2", **values, plotly=packed_plotly())


def run_values(run: "TrainedRun", images: int) -> dict[str, Any]:
    """What the template shows of a run."""
    metrics = run.metrics or {}
    explorer, reason = explorer_or_reason(run, images)
    rows, compared = run.history_rows, others(run, metrics, images)
    figures, settings = figures_of(run.directory), keys(run.settings.plain)
    return {
        "name": run.directory.name,
        "facts": facts(run, metrics),
        "warnings": warnings(run, metrics, rows, images),
        "sentence": sentence(metrics, run.vae.latent_dim, compared),
        "headline": headline(run, metrics),
        "results": results(metrics, run.settings.plain["likelihood"]["_target_"]),
        "others": compared,
        "charts": charts(rows),
        "first": [figure for figure in figures if figure["stem"] in FIRST],
        "figures": [figure for figure in figures if figure["stem"] not in FIRST],
        "changed": [key for key in settings if key["differs"]],
        "unchanged": [key for key in settings if not key["differs"]],
        "provenance": {name: show(value) for name, value in leaves(metrics.get("provenance", {}))},
        "explorer": explorer,
        "reason": reason,
    }


def explorer_or_reason(run: "TrainedRun", images: int) -> tuple[dict[str, Any] | None, str]:
    """The explorer's data, or why this model has none."""
    from vae.evaluation.explorer import check

    try:
        check(run.vae)
    except InputError as error:
        return None, str(error)
    return explorer_of(run, images), ""


def sentence(metrics: Plain, latents: int, compared: list[tuple[str, str, str]]) -> str:
    """What the model does, in plain words: latents in use, nats, the best of the baselines that it beats."""
    if not metrics:
        return ""
    active, kl, error = metrics["test/active_units"], metrics["dev/kl"], metrics["dev/reconstruction"]
    words = f"The model uses {active} of its {latents} latents, which carry {kl:.1f} nats per image"
    beaten = [name for name, loss, baseline in compared[1:] if not loss and float(baseline) > error]
    best = beaten[-1].replace("mean image", "the mean image") if beaten else ""
    return f"{words}; it reconstructs better than {best}." if best else f"{words}."


def headline(run: "TrainedRun", metrics: Plain) -> str:
    from vae.run import table
    from vae.run.settings import monitored

    return table.headline(run, metrics, monitored(run.settings.plain, "dev/elbo" in metrics)[0]) if metrics else ""


def facts(run: "TrainedRun", metrics: Plain) -> dict[str, str]:
    """What was trained, in words."""

    plain, parts = run.settings.plain, run.settings.plain["model"]
    told = {
        "Data": run.caption,
        "Encoder": in_words(parts["encoder"]),
        "Latents": f"{plain['latent_dim']}, posterior {in_words(plain['posterior'])}, prior {in_words(plain['prior'])}",
        "Decoder": in_words(parts["decoder"]),
        "Likelihood": in_words(plain["likelihood"]),
        "Objective": in_words(plain["objective"]),
        "Optimizer": in_words(plain["optimizer"]),
        "Parameters": f"{run.vae.parameter_count:,}",
    }
    if metrics:
        told["Training"] = f"{metrics['epochs']} epochs, {metrics['steps']:,} steps, {duration(metrics['seconds'])}"
        told["Command"] = metrics.get("provenance", {}).get("command", "")
    return told


def in_words(part: Plain) -> str:
    """A part of the configuration as its class and the keys that it was given."""
    given = [
        f"{name}={show(value)}" for name, value in leaves(part) if "_target_" not in name and "_partial_" not in name
    ]
    kind = str(part.get("_target_")).rpartition(".")[2]
    return f"{kind} ({', '.join(given)})" if given else kind


def warnings(run: "TrainedRun", metrics: Plain, rows: list[dict[str, float]], images: int) -> list[str]:
    """What a reader must know before the numbers."""
    from vae.run.records import read_record
    from vae.run.table import is_of_the_last
    from vae.run.table import warnings as of_metrics

    record = read_record(run.directory)
    found = []
    if record.status != "finished":
        found.append(f"The run is {record.status}{': ' + record.message if record.message else ''}.")
    if not metrics:
        found.append("It has no metrics yet: the curves and the explorer are all there is. Its command continues it.")
    else:
        found += [f"{line[0].upper()}{line[1:]}." for line in of_metrics(metrics, run.settings.plain)]
    if metrics and is_of_the_last(metrics):
        found.append("These are the metrics of the last epoch, not of the best.")
    if not run.vae.likelihood.normalised:
        found.append(
            "The likelihood is not normalised: this loss cannot be compared with the nats of another likelihood."
        )
    if any(commit.endswith("+changes") for commit in short_commits(metrics.get("provenance", {}))):
        found.append("The code differed from a commit that is named below.")
    if metrics and not figures_of(run.directory):
        found.append(f"Its figures have not been drawn: vae evaluate {run.directory} draws them.")
    if not images:
        found.append("No data set was read: there are no baselines and no test images on this page.")
    return found + logged_warnings(run.directory / "train.log")


def logged_warnings(log: Path) -> list[str]:
    """Warnings and errors of the training log, each once."""
    lines = require_plain(log, 2**26).read_text(errors="replace").splitlines() if log.exists() else []
    said = [match[1] for line in lines if (match := re.match(r"\S+ \S+ (?:WARNING|ERROR) (.*)", line))]
    return [f"train.log: {line}" for line in dict.fromkeys(said)]


def results(metrics: Plain, likelihood: str) -> list[dict[str, str]]:
    """The metrics of the splits side by side, then all others; each with its unit and what it means."""
    if not metrics:
        return []
    from vae.run.table import table_rows, written

    keys = ("name", "dev", "test", "unit")
    rows = [dict(zip(keys, row, strict=True)) for row in table_rows(metrics, likelihood)]
    rest = [
        n for n in metrics if not n.startswith(("dev/", "test/")) and n != "provenance" and not n.endswith("_error")
    ]
    rows += [{"name": n, "dev": "", "test": "", "all": written(metrics, n), "unit": ""} for n in rest]
    return [row | {"meaning": meaning(row["name"])} for row in rows]


def others(run: "TrainedRun", metrics: Plain, images: int) -> list[tuple[str, str, str]]:
    """(model, dev loss, dev reconstruction) of this run, the report and trivial models, where they compare."""
    from vae.evaluation.baselines import baselines
    from vae.likelihoods import SquaredErrorHead

    if not metrics or not isinstance(run.vae.likelihood, SquaredErrorHead):
        return []
    from vae.run.table import written

    rows = [("this run", written(metrics, "dev/loss"), written(metrics, "dev/reconstruction"))]
    data = run.settings.plain["data"]
    if data.get("_target_") == "vae.data.MNIST" and data.get("binarize", "none") == "none":
        rows += [(name, f"{loss:.2f}", "") for name, loss in REPORT.items()]
    if images:
        rows += [(name, "", f"{error:.2f}") for name, error in baselines(run.vae, run.data).items()]
    return rows


# title, unit of the vertical axis, metrics
CHARTS = (
    ("Loss", "per image", ("train/loss", "train_eval/loss", "dev/loss")),
    ("Reconstruction", "per image", ("train/reconstruction", "dev/reconstruction")),
    ("KL", "nats per image", ("train/kl", "dev/kl")),
    ("ELBO", "nats per image", ("train/elbo", "dev/elbo")),
    ("Active units", "latents", ("dev/active_units",)),
    ("Decoder's mean sigma", "grey scale 0 to 1", ("dev/sigma",)),
    ("Beta", "weight of the KL", ("train/beta",)),
    ("Learning rate", "", ("lr",)),
    ("Gradient norm", "", ("train/grad_norm",)),
)


def charts(rows: list[dict[str, float]]) -> list[Chart]:
    """The curves that the run has; what is constant over the epochs is left out."""
    drawn = []
    for title, unit, names in CHARTS:
        series = [curve(rows, name) for name in names if any(name in row for row in rows)]
        if any(len(set(one["y"])) > 1 for one in series) or (series and len(rows) == 1 and title == "Loss"):
            drawn.append({"title": title, "x": "epoch", "y": unit, "series": series})
    return drawn


def curve(rows: list[dict[str, float]], name: str) -> dict[str, Any]:
    there = [row for row in rows if name in row]
    return {"name": name, "x": [int(row["epoch"]) for row in there], "y": [float(f"{row[name]:.6g}") for row in there]}


def figures_of(directory: Path) -> list[dict[str, str]]:
    """The figures of the run's evaluation as data, with the words that each file holds about itself.

    Pictures that a verb left beside them are left out: they may show a person's own images.
    """
    from vae.evaluation.gallery import FIGURES

    paths = [path for path in (directory / "figures").glob("*.png") if path.stem in FIGURES]
    return [picture(path) for path in sorted(paths, key=figure_order)]


FIRST = ("reconstructions", "samples", "manifold", "latents")  # what the page begins with


def figure_order(path: Path) -> tuple[int, str]:
    return (FIRST.index(path.stem) if path.stem in FIRST else len(FIRST)), path.stem


def picture(path: Path) -> dict[str, str]:
    from PIL import Image

    try:
        with Image.open(require_plain(path, 2**26), formats=("PNG",)) as image:
            said = str(image.info.get("Description", ""))
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a picture; `vae evaluate` draws it again") from error
    name = path.stem.replace("_", " ")
    content = base64.b64encode(path.read_bytes()).decode()
    return {
        "stem": path.stem,
        "name": name,
        "alt": said or f"Figure: {name}",
        "caption": said.partition(". ")[0],
        "png": content,
    }


def keys(plain: Plain) -> list[dict[str, Any]]:
    """Every key of the run, its default, its meaning, and whether it differs."""
    from vae.run.directory import NOT_IDENTITY

    default, known = dict(leaves(default_settings())), known_keys()
    return [
        {
            "name": name,
            "value": show(value),
            "default": show(default[name]) if name in default else "absent",
            "meaning": known[name].meaning if name in known else "",
            "differs": name not in NOT_IDENTITY and value != default.get(name, value is None),
        }
        for name, value in leaves(plain)
        if not name.endswith(("_target_", "_partial_"))
    ]


def default_settings() -> Plain:
    """The configuration of `python train.py` without arguments."""
    return compose().plain


def packed_plotly() -> str:
    """plotly.js, which the page unpacks: 1.9 MB instead of 4.8 MB."""
    import gzip

    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
