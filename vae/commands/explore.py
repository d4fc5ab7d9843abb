"""`vae explore RUN -o page.html`: a page in which the latent space of a run is walked."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.commands.page import check_output, write_page
from vae.run.find import find_run

if TYPE_CHECKING:
    from vae.run.load import TrainedRun


def explore(
    path: str, output: Path, images: int, which: str = "best", trust: tuple[str, ...] = (), force: bool = False
) -> None:
    """Writes the page with so many test images; with 0 no data set is read."""
    find_run(path)  # answers in a moment, where torch takes seconds
    check_output(output, force)
    from vae.run.load import load_run

    run = load_run(path, which, trust=trust)
    data = explorer_of(run, images)
    write_page(
        output,
        "explore.html.j2",
        name=run.directory.name,
        what=run.caption,
        explorer=data,
    )


def explorer_of(run: "TrainedRun", images: int) -> dict[str, Any]:
    """The explorer's data of a run, with its first test images and their labels where it has some."""
    from vae.evaluation.explorer import check, explorer

    check(run.vae)  # before the data are read
    binary = run.settings.plain["data"].get("binarize", "none") != "none"
    if not images:
        return explorer(run.vae, None, None, run.settings.seed, binary)
    test = run.data.test
    labels = test.labels[:images].tolist() if run.data.classes else None
    names = run.data.class_names if labels else ()
    return explorer(run.vae, test.images[:images], labels, run.settings.seed, binary, names)
