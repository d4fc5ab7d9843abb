"""`vae explore RUN -o page.html`: a page in which the latent space of a run is walked."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.commands.page import check_output, write_page
from vae.errors import InputError

if TYPE_CHECKING:
    from vae.run.load import TrainedRun

IMAGES = 1000


def explore(run: "TrainedRun", output: Path, images: int = IMAGES) -> None:
    """Writes the page; `images` is how many test images it holds, 0 for none, and then no data set is read."""
    from vae.run.settings import caption

    check_images(images)
    check_output(output)
    data = explorer_of(run, images)
    write_page(output, "explore.html.j2", name=run.directory.name, what=caption(run.settings.plain), explorer=data)


def check_images(images: int) -> None:
    if images < 0:
        raise InputError(f"--images={images}: must be a whole number of at least 0; for example --images {IMAGES}")


def explorer_of(run: "TrainedRun", images: int) -> dict[str, Any]:
    """The explorer's data of a run, with its first test images and their labels where it has some."""
    from vae.evaluation.explorer import check, explorer

    check(run.vae)
    binary = run.settings.plain["data"].get("binarize", "none") != "none"
    if not images:
        return explorer(run.vae, None, None, run.settings.seed, binary)
    test = run.data.test
    labels = test.labels[:images].tolist() if run.data.classes else None
    return explorer(run.vae, test.images[:images], labels, run.settings.seed, binary)
