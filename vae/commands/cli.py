"""The `vae` command: what is done with models, with runs and with the machine.

Verbs that use a model are in `use`. Of the others, this file holds the arguments and the help; a file of its own, which
is imported when the verb is called, does the work: help and refusals wait for no import of torch.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vae.commands import use
from vae.commands.options import (
    OUT,
    Chosen,
    ForceOption,
    Format,
    Overrides,
    PageImagesOption,
    PageOption,
    RunArgument,
    TrustOption,
    announce,
    complete,
    verb,
)
from vae.errors import InputError, ending
from vae.files import expand
from vae.run.process import begin_command, python_command
from vae.words import printable

app = typer.Typer(
    name="vae", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
OVERRIDES = {"ignore_unknown_options": True, "help_option_names": []}  # all that follows is train.py's
TRAIN, RUNS, USE, MACHINE = "Train", "Look at runs", use.PANEL, "The machine"  # sections of the help
PAGE = Path("page.html")


@app.callback()
def describe() -> None:
    """Variational auto-encoders: train them, look at them, measure them, take them elsewhere."""


@app.command(rich_help_panel=TRAIN, context_settings=OVERRIDES)
def train(overrides: Overrides = None) -> None:
    """Train a model: the same as python train.py. `vae train --help` explains the keys.

    Example: vae train data=digits run_dir=outputs/mine
    """
    import runpy

    from vae.run.keys import CONF

    script = str(Path(CONF).parent / "train.py")  # beside conf/, in a checkout and in an installed package
    sys.argv = [script, *(overrides or [])]
    runpy.run_path(script, run_name="__main__")


@app.command(rich_help_panel=TRAIN)
def tune(
    space: Annotated[str, typer.Argument(help="Name of a file in conf/tune/, or a .yaml file of your own.")],
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(min=1, help="Total number of trials over all workers.")] = 50,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Optuna URL of a database; by default a journal in run_dir.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search itself; runs use seed=.")] = 0,
) -> None:
    """Search a space of configurations. Run the same command again, even in parallel, to add a worker.

    Example: vae tune sizes data=digits evaluation=none --trials 24
    """
    from vae.commands.tune import tune

    tune(space, overrides or [], trials, storage, seed)


@verb(app, RUNS)
def evaluate(
    chosen: Chosen,
    settings: Annotated[list[str] | None, typer.Argument(help="Keys of the group evaluation.")] = None,
) -> None:
    """Evaluate a run's checkpoint again with other settings; rewrites its metrics and figures.

    Example: vae evaluate outputs/mine samples=5000
    """
    from vae.commands.evaluate import evaluate

    evaluate(chosen, settings or [])


@app.command(rich_help_panel=RUNS)
def show(
    run: RunArgument, everything: Annotated[bool, typer.Option("--all", help="Every metric, latent by latent.")] = False
) -> None:
    """Print the closing table of a finished run again.

    Example: vae show outputs/mine --all
    """
    from vae.run.directory import Run, as_settings, read_settings
    from vae.run.find import find_directory
    from vae.run.table import print_results

    directory = find_directory(run).directory
    if not (directory / "metrics.json").exists():
        raise InputError(f"{run} is not finished (no metrics.json); its command continues it")
    print_results(
        Run(directory, as_settings(read_settings(directory / "config.yaml"), directory)), everything=everything
    )


@app.command(rich_help_panel=RUNS)
def runs(
    folders: Annotated[list[str] | None, typer.Argument(metavar="[DIR]...", show_default="outputs")] = None,
    sort: Annotated[
        str, typer.Option(help="A metric, a key, run or status.", autocompletion=complete("metrics"))
    ] = "run",
    metric: Annotated[
        list[str] | None, typer.Option(help="Columns instead of the usual ones.", autocompletion=complete("metrics"))
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="The largest first.")] = False,
    out: Annotated[str | None, typer.Option(*OUT, help="All settings and metrics as .csv.", show_default=False)] = None,
    force: ForceOption = False,
) -> None:
    """List the runs below a folder, grouped by what can be compared: the state of each and its metrics.

    Example: vae runs outputs --sort test/nll
    """
    from vae.commands.runs import list_

    list_(folders, sort, metric, reverse, out, force)


app.registered_commands += use.app.registered_commands


@verb(app, RUNS)
def figure(
    chosen: Chosen,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", autocompletion=complete("figures"), show_default="a list of the names"),
    ] = None,
    out: Annotated[
        str | None, typer.Option(*OUT, help="A .png, .svg or .pdf picture.", show_default="in RUN/figures")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Draw one of the figures that a run ends with, or one that is drawn by name only.

    Example: vae figure outputs/mine losses --out losses.svg
    """
    from vae.commands.figure import draw, list_

    if name is None:
        list_()
    else:
        draw(chosen, name, out, force)


@verb(app, USE)
def export(
    chosen: Chosen,
    format_: Annotated[Format, typer.Option("--format", help="torch and safetensors: weights for plain torch.")],
    out: Annotated[str | None, typer.Option(*OUT, help="A new folder.", show_default="RUN/export_FORMAT")] = None,
    force: ForceOption = False,
) -> None:
    """Export a model: encoder and decoder in a file each, and model.json, which says how to use them.

    Example: vae export outputs/mine --format onnx --out mine_onnx
    """
    from vae.commands.export import export

    export(chosen, format_, out, force)


@app.command(rich_help_panel=RUNS)
def verify(run: RunArgument, trust: TrustOption = None) -> None:
    """Repeat a run's first steps and its evaluation, and compare the numbers; differences are explained.

    Example: vae verify outputs/mine
    """
    announce(run)
    from vae.commands.verify import verify

    verify(run, trust)


@app.command(rich_help_panel=RUNS)
def dashboard(
    folder: Annotated[str, typer.Argument(metavar="[DIR]", help="A run, or a folder of runs.")] = "outputs",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 6006,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 makes it visible to the whole network.")
    ] = "localhost",
) -> None:
    """Start TensorBoard on a folder of runs, with all their images.

    Example: vae dashboard outputs --port 6007
    """
    from vae.run.records import find_directories

    path = expand(folder)
    if not any(next(run.glob("events.out.tfevents.*"), None) for run in (path, *find_directories(path))):
        fault = "holds no event files" if path.is_dir() else "does not exist"
        raise InputError(f"{folder} {fault}; give a run or a folder of runs, such as outputs")
    # without the last, TensorBoard keeps ten images of each series, and an epoch's picture is one of many
    flags = [f"--logdir={path}", f"--port={port}", f"--host={host}", "--samples_per_plugin=images=1000"]
    print(f"tensorboard {' '.join(flags)}", flush=True)
    os.execv(sys.executable, python_command("-m", "tensorboard.main", *flags))


@verb(app, RUNS)
def explore(
    chosen: Chosen, output: PageOption = PAGE, images: PageImagesOption = 1000, force: ForceOption = False
) -> None:
    """Write a page for exploring a run's latent space: move z, draw an image, go from one image to another.

    Example: vae explore outputs/mine -o page.html
    """
    announce(chosen.run)
    from vae.commands.explore import explore

    explore(chosen.run, output, images, chosen.checkpoint, tuple(chosen.trust or ()), force)


@verb(app, RUNS)
def report(
    chosen: Chosen,
    output: PageOption = PAGE,
    images: PageImagesOption = 1000,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Of a sweep: compare by this metric. Repeatable.", autocompletion=complete("metrics")),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write a run, or a folder of runs, on one page: results, curves, figures, configuration, and the latent explorer.

    Example: vae report outputs/mine -o page.html
    """
    announce(chosen.run)
    from vae.commands.report import report

    report(chosen.run, output, images, chosen.checkpoint, tuple(chosen.trust or ()), force, metric or ())


@app.command(rich_help_panel=RUNS)
def compare(
    folders: Annotated[list[str], typer.Argument(metavar="DIR...", help="Folders with runs.", show_default=False)],
    metric: Annotated[
        list[str] | None, typer.Option(help="Metric to show; the first one is tested. Repeatable.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="KEY=VALUE,...", help="Configuration that the others are compared with.")
    ] = None,
    output: Annotated[Path | None, typer.Option(*OUT, parser=expand, help="Where the tables go.")] = None,
    figures: Annotated[
        bool, typer.Option("--figures", help="Also draw effects, pairs of keys, learning curves and fronts.")
    ] = False,
) -> None:
    """Compare the runs of sweeps: one row per configuration, its mean over seeds, and which differences are noise.

    Example: vae compare outputs/multirun/sizes --baseline latent_dim=4
    """
    from vae.commands.compare import compare

    compare(folders, metric or (), baseline, output, figures)


@app.command(rich_help_panel=TRAIN)
def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUNG|KEY=VALUE]...", help="Rungs, and keys for all runs."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every rung.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the rungs and what they claim.")] = False,
    budget: Annotated[str | None, typer.Option(help="Training time: 90s, 30m, 2h.", show_default="no limit")] = None,
    out: Annotated[str, typer.Option(help="Folder of the runs and the table.")] = "outputs/reproduce",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, which share the cores.")] = 1,
) -> None:
    """Train the models of published numbers and print ours beside them. The same command again continues.

    Example: vae reproduce T0 T3 data.root=data --budget 2h --jobs 2
    """
    from vae.commands.reproduce import main

    main(names or [], everything, listing, budget, out, jobs)


@app.command(rich_help_panel=RUNS)
def ledger(
    folders: Annotated[list[str] | None, typer.Argument(metavar="[DIR]...", show_default="outputs")] = None,
    out: Annotated[str | None, typer.Option(help="The same as .csv.", show_default=False)] = None,
    force: ForceOption = False,
) -> None:
    """List every run with an NLL in nats, best first, in groups whose numbers can be compared.

    Example: vae ledger outputs
    """
    from vae.commands.ledger import main

    main(folders, out, force)


@app.command(rich_help_panel=MACHINE)
def bench(
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the measures as JSON.")] = False,
    epochs: Annotated[int, typer.Option("--epochs", "--turns", help="Epochs of each, in turns, after one more.")] = 3,
    usual: Annotated[bool, typer.Option("--usual", help="Also the usual Lightning recipe, 0 and 2 workers.")] = False,
    denormals: Annotated[
        bool, typer.Option("--denormals", help="Also each loop without flushing denormal numbers.")
    ] = False,
    each: Annotated[
        str | None, typer.Option(metavar="GROUP", help="Instead: a step under every prior, posterior, objective, ...")
    ] = None,
) -> None:
    """Measure training of the configured model, in images per second, beside a bare PyTorch loop.

    Example: vae bench model=conv data.root=data --epochs 20 --denormals
    """
    if epochs < 1:
        raise InputError(f"--epochs={epochs}: must be a whole number of at least 1; for example --epochs 3")
    from vae.commands import bench

    if each is not None:
        bench.main_each(each, overrides or [], epochs)
    else:
        bench.main(overrides or [], epochs, usual, as_json, denormals)


@app.command(rich_help_panel=MACHINE)
def model(
    overrides: Annotated[list[str] | None, typer.Argument(help="As for train.", metavar="[KEY=VALUE]...")] = None,
    output: Annotated[str, typer.Option(*OUT, help="The picture: .png, .svg or .pdf.")] = "model.png",
) -> None:
    """Show the layers of a configured model, with their shapes and numbers of parameters, and draw them.

    Example: vae model data=digits model=conv latent_dim=8 -o conv.png
    """
    from vae.commands.model import main

    main(overrides or [], output)


def main() -> None:
    """Runs a command; a refusal or failure ends with its exit code and one line."""
    begin_command()
    sys.path[:] = [place for place in sys.path if place]  # never the working directory: see vae.run.own_modules
    try:
        if app(sys.argv[1:] or ["--help"], prog_name="vae", standalone_mode=False):
            raise KeyboardInterrupt  # typer's answer to it is a number
    except BaseException as error:
        code, line = ending(in_our_words(error))
        if line:
            print(*map(printable, line.splitlines()), sep="\n", file=sys.stderr)
        sys.exit(code)


def in_our_words(error: BaseException) -> BaseException:
    """What typer refuses, as a refusal of ours."""
    if not hasattr(error, "format_message"):
        return error
    context = getattr(error, "ctx", None)
    path = "vae" if context is None else context.command_path
    text = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
    return InputError(f"{path}: {text}; see {path} --help")


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory, by `python -m`
    main()
