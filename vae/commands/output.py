"""What a verb writes: a picture, or with --out its numbers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae import tables
from vae.errors import InputError
from vae.files import replace, whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES, DATA = (".png", ".svg", ".pdf"), (".npz", ".csv")


def check_out(out: str | None, force: bool, kinds: tuple[str, ...] = PICTURES + DATA) -> Path | None:
    """Where the result goes; raises InputError for another kind of file, and for one that is there already."""
    if out is None:
        return None
    path = Path(out)
    if path.suffix.lower() not in kinds:
        raise InputError(f"--out={out}: ends in none of {', '.join(kinds)}; for example --out {path.stem}{kinds[0]}")
    if path.is_dir() or (path.exists() and not force):
        raise InputError(f"--out={out}: is there already; give another name, or --force to replace it")
    return path


def write_text(path: Path, text: str) -> None:
    """The file, written whole, and a line that says where. Raises InputError for a place that cannot be written."""
    try:
        replace(path, text.encode())
    except OSError as error:
        raise cannot_write(path, error) from error
    print(path)


def cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"--out={path}: cannot be written ({error.strerror}); choose another place")


def write(path: Path, draw: Callable[[], "Figure"], values: Mapping[str, Any], shows: str = "") -> None:
    """The picture, or `values` (arrays over the same first axis) as npz or csv, and a line that says where.

    `shows` opens the picture's alternative text.
    """
    try:
        if path.suffix.lower() in PICTURES:
            _write_picture(path, draw(), shows)
        elif path.suffix.lower() == ".npz":
            _write_npz(path, values)
        else:
            replace(path, as_csv(values).encode())
    except OSError as error:
        raise cannot_write(path, error) from error
    print(path)


def _write_picture(path: Path, figure: "Figure", shows: str) -> None:
    from vae.evaluation import figures

    if shows:
        figures.describe(figure, shows)
    figures.write_figure(figure, path)


def _write_npz(path: Path, values: Mapping[str, Any]) -> None:
    import numpy as np

    with whole_file(path) as file:
        np.savez_compressed(file, **values)


def as_csv(values: Mapping[str, Any]) -> str:
    """A row for each index of the first axis, a second axis as columns name_0, name_1, ...; images are left out.

    Where points lie in rows (R, S, D) there is a line for each of them, with its row and its step.
    """
    import numpy as np

    arrays = {name: array for name, value in values.items() if (array := np.asarray(value)).ndim < 4}
    points = next((array for array in arrays.values() if array.ndim == 3), None)
    if points is not None:
        place, step = np.indices(points.shape[:2]).reshape(2, -1)
        lines = {n: a.reshape(-1, a.shape[2]) if a.ndim == 3 else a[place] for n, a in arrays.items()}
        arrays = {"row": place, "step": step, **lines}
    columns: list[tuple[str, list[Any]]] = []
    for name, array in arrays.items():
        flat = array.reshape(len(array), -1)
        names = [name] if array.ndim == 1 else [f"{name}_{k}" for k in range(flat.shape[1])]
        columns += [(each, flat[:, k].tolist()) for k, each in enumerate(names)]
    return tables.as_csv(dict(columns), figures=9)
