"""`vae figure RUN NAME`: one figure of a run, drawn anew."""

from pathlib import Path

from vae.commands.options import Chosen
from vae.commands.output import PICTURES, check_out, write
from vae.errors import InputError
from vae.evaluation.estimates import sample_metrics
from vae.evaluation.gallery import FIGURES, NO_CLASSIFIER, Subject, draw_figure
from vae.run.keys import nearest
from vae.run.results import history_of


def list_() -> None:
    for name, kind in FIGURES.items():
        print(f"{name:<20} {kind.shows}{'' if kind.at_the_end else ' (by name only)'}")


def draw(chosen: Chosen, name: str, out: str | None, force: bool) -> None:
    """Raises InputError for a name that is none, and for a figure that this model does not have."""
    place = check_out(out, force, PICTURES)
    if name not in FIGURES:
        near = nearest(name, FIGURES)
        hint = near if near.startswith("did") else f"it is one of {', '.join(FIGURES)}"
        raise InputError(f"{name}: there is no such figure; {hint}")
    run = chosen.open()
    history, s = history_of(run), run.settings
    subject = Subject(run.vae, run.data, history.curve, run.caption, s.seed, f"{run.which} checkpoint")
    if NO_CLASSIFIER in FIGURES[name].reasons and run.data.classes > 1:
        count = s.evaluation.generated or 1000
        subject.generated = sample_metrics(run.vae, run.data, Path(s.evaluation.cache_dir), count, s.seed)[1]
    figure = draw_figure(name, subject)
    write(place or run.directory / "figures" / f"{name}.png", lambda: figure, {})
