"""The `vae` command: what is done with models, with runs and with the machine.

A verb is a short function here: its arguments, its help with an example. What it does stands in a file of its own
beside this one, which it imports when it is called: help and refusals wait for no import of torch.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vae.errors import InputError, ending

app = typer.Typer(
    name="vae", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
OVERRIDES = {"ignore_unknown_options": True, "help_option_names": []}  # all that follows is train.py's

TRAIN, RUNS, MACHINE = "Train", "Look at runs", "The machine"  # sections of the help


class Checkpoint(StrEnum):
    best = "best"
    last = "last"


RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's directory.", show_default=False)]
CheckpointOption = Annotated[Checkpoint, typer.Option(help="Which of the run's checkpoints.")]
TrustOption = Annotated[list[str] | None, typer.Option(metavar="PACKAGE", help="Its parts may be built.")]
OutputPage = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The page, one file for any browser.")]
ImagesOption = Annotated[
    int, typer.Option(min=0, help="Test images in the page; 0: none, and the data set need not be there.")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)]


@app.callback()
def describe() -> None:
    """Variational auto-encoders: train them, look at them, measure them, take them elsewhere."""


@app.command(rich_help_panel=TRAIN, context_settings=OVERRIDES)
def train(overrides: Overrides = None) -> None:
    """Train a model: the same as python train.py. `vae train --help` explains the keys.

    Example: vae train data=digits run_dir=outputs/mine
    """
    from vae.commands.train import train

    train(overrides or [])


@app.command(rich_help_panel=RUNS)
def evaluate(
    run: RunArgument,
    settings: Annotated[list[str] | None, typer.Argument(help="Keys of the group evaluation.")] = None,
    checkpoint: CheckpointOption = Checkpoint.best,
    trust: TrustOption = None,
) -> None:
    """Evaluate a run's checkpoint anew, with other settings; rewrites its metrics and figures.

    Example: vae evaluate outputs/mine samples=5000
    """
    from vae.commands.evaluate import evaluate

    evaluate(run, settings or [], checkpoint, tuple(trust or ()))


@app.command(rich_help_panel=RUNS)
def show(
    run: RunArgument, everything: Annotated[bool, typer.Option("--all", help="Every metric, latent by latent.")] = False
) -> None:
    """Print the closing table of a finished run again.

    Example: vae show outputs/mine --all
    """
    from vae.commands.show import show

    show(run, everything)


@app.command(rich_help_panel=RUNS)
def explore(
    run: RunArgument,
    output: OutputPage = Path("page.html"),
    images: ImagesOption = 1000,
    checkpoint: CheckpointOption = Checkpoint.best,
    trust: TrustOption = None,
) -> None:
    """Write a page in which the latent space of a run is walked: move z, draw an image, go from one to another.

    Example: vae explore outputs/mine -o page.html
    """
    from vae.commands.explore import explore

    explore(run, output, images, checkpoint, tuple(trust or ()))


@app.command(rich_help_panel=MACHINE)
def bench(
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the measures as JSON.")] = False,
    turns: Annotated[int, typer.Option(help="Epochs of each part; the measures are their medians.")] = 3,
    usual: Annotated[bool, typer.Option("--usual", help="Also the usual Lightning recipe, 0 and 2 workers.")] = False,
) -> None:
    """Measure training of the configured model, in images a second, beside a bare PyTorch loop.

    Example: vae bench model=conv data.root=data --turns 5
    """
    if turns < 1:
        raise InputError(f"--turns={turns}: must be a whole number of at least 1; for example --turns 3")
    from vae.commands.bench import main

    main(overrides or [], turns, usual, as_json)


def main() -> None:
    """Runs a command; a refusal or failure ends with its exit code and one line."""
    try:
        if app(sys.argv[1:] or ["--help"], prog_name="vae", standalone_mode=False):
            raise KeyboardInterrupt  # typer's answer to it is a number
    except BaseException as error:
        code, line = ending(in_our_words(error))
        if line:
            print(line, file=sys.stderr)
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
    main()
