"""Options that several verbs share, each said once, and what they come to: a run whose model is loaded, an output.

Imports no torch: help and refusals wait for nothing.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vae.errors import InputError
from vae.files import expand

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vae.run.load import TrainedRun


class Checkpoint(StrEnum):
    best = "best"
    last = "last"


class Mode(StrEnum):
    mean = "mean"
    sample = "sample"


class Origin(StrEnum):
    prior = "prior"
    posterior = "posterior"


class Format(StrEnum):
    torch = "torch"
    safetensors = "safetensors"
    onnx = "onnx"


def complete(kind: str) -> Callable[[str], list[str]]:
    """What the shell proposes: `runs`, `metrics` or `figures`."""

    def propose(incomplete: str) -> list[str]:
        from vae.commands import completion

        names: list[str] = getattr(completion, kind)(incomplete)
        return names

    return propose


OUT = ("-o", "--out", "--output")
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Run directory, checkpoint file, or latest.", autocompletion=complete("runs"),
        show_default=False,
    ),
]  # fmt: skip
CheckpointOption = Annotated[Checkpoint, typer.Option(help="Which of the run's checkpoints.")]
TrustOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Package, module or class whose parts may be built.", show_default=False),
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same draws.")]
ModeOption = Annotated[Mode, typer.Option("--x", help="Show the mean of p(x|z) or a sample from it.")]
OutOption = Annotated[
    str | None,
    typer.Option(*OUT, help="A .png, .svg or .pdf picture, or the numbers as .npz or .csv.",
                 show_default="in RUN/figures"),
]  # fmt: skip
LabelOption = Annotated[
    str | None,
    typer.Option(help="Class of all images, by name or number; for a conditional model.", show_default=False),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
ImagesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[IMAGE]...", help="Image files, or folders of them.", show_default="the test split"),
]
CountOption = Annotated[int, typer.Option("-n", "--count", min=1, max=10**6, help="Number of images.")]
StepsOption = Annotated[int, typer.Option(min=2, max=1000, help="Images per row.")]
PageOption = Annotated[
    Path, typer.Option(*OUT, metavar="FILE", parser=expand, help="The page, one file for any browser.")
]
PageImagesOption = Annotated[
    int, typer.Option(min=0, help="Test images on the page; 0: none, and the data set is not needed.")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)]


def announce(run: str) -> None:
    """A line for a person who waits for imports, the model and its data."""
    if sys.stderr.isatty():
        print(f"loading {run} ...", file=sys.stderr, flush=True)


@dataclass
class Chosen:
    """The run that a verb is given, and which of its checkpoints; the parts that it may build."""

    run: RunArgument
    checkpoint: CheckpointOption = Checkpoint.best
    trust: TrustOption = None

    def open(self, label: str | None = None) -> "TrainedRun":
        """The run with its model, in eval mode; a conditional model takes every image for one of the class `label`.

        Raises InputError as `load_run` does, and for a class that the model does not have.
        """
        from vae.run.find import find_run, require_checkpoint

        found = find_run(self.run)
        require_checkpoint(found, found.which or self.checkpoint)  # before torch's seconds of import
        announce(self.run)
        import torch

        from vae.run.load import load_run
        from vae.run.process import log_to

        log_to(None)
        run = load_run(self.run, self.checkpoint, trust=tuple(self.trust or ()))
        run.label = None if label is None else run.class_number(label)
        if run.settings.threads:
            torch.set_num_threads(run.settings.threads)
        return run


@dataclass
class Use(Chosen):
    """A model in use: what becomes a picture, or numbers."""

    label: LabelOption = None
    out: OutOption = None
    force: ForceOption = False

    def __post_init__(self) -> None:
        from vae.commands.output import check_out

        self.place = check_out(self.out, self.force)

    def start(self) -> "TrainedRun":
        return self.open(self.label)

    def write(
        self, run: "TrainedRun", name: str, draw: Callable[[str], "Figure"], values: Mapping[str, Any], text: str,
        shows: str,
    ) -> None:  # fmt: skip
        """The picture that `draw` makes under the caption, or `values`; to `name` in the run's figures by default.

        `text` ends the caption; `shows` opens the picture's alternative text.
        """
        from vae.commands.output import write

        of_class = "" if run.label is None else f"; given class {run.class_names[run.label]}"
        begin = f"{run.directory.absolute().name}: {run.caption}; {run.vae.latent_dim} latents"
        place = self.place or run.directory / "figures" / name
        write(place, lambda: draw(f"{begin}{of_class}; {text}"), values, shows)


def require_images(paths: list[str] | None) -> None:
    """Raises InputError for a path that does not exist."""
    for path in paths or ():
        if not expand(path).exists():
            raise InputError(f"{path} does not exist; give an image file, or a folder of them")


Verb = Callable[..., None]


def verb(app: typer.Typer, panel: str) -> Callable[[Verb], Verb]:
    """Registers a verb whose first parameter is a `Chosen` or `Use`: that class's options, and the verb's own."""

    def register(function: Verb) -> Verb:
        first, *own = inspect.signature(function, eval_str=True).parameters.values()
        run, *shared = inspect.signature(first.annotation, eval_str=True).parameters.values()

        @functools.wraps(function)
        def call(**values: Any) -> None:
            function(first.annotation(**{option.name: values.pop(option.name) for option in (run, *shared)}), **values)

        options = [option.replace(kind=option.KEYWORD_ONLY) for option in (run, *own, *shared)]
        call.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # what typer reads
        call.__annotations__ = {option.name: option.annotation for option in options}
        app.command(rich_help_panel=panel)(call)
        return function

    return register
