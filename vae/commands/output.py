"""What a verb writes: a picture, or with --out its numbers."""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae import tables
from vae.errors import InputError
from vae.files import expand, replace, whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES, DATA = (".png", ".svg", ".pdf"), (".npz", ".csv")


def check_out(out: str | None, force: bool, kinds: tuple[str, ...] = PICTURES + DATA) -> Path | None:
    """Where the result goes; raises InputError for another kind of file, and one that exists or cannot be written."""
    if out is None:
        return None
    path = expand(out)
    if path.suffix.lower() not in kinds:
        stem = path.stem or "x"
        raise InputError(f"--out={out}: must end in {', '.join(kinds)}; for example --out {stem}{kinds[0]}")
    _require_place(path, force)
    if path.is_dir():
        raise InputError(f"--out={out}: is a folder; choose another name")
    return path


def check_folder(out: str | None, force: bool, own: Sequence[str]) -> Path | None:
    """The same for a folder; one that holds anything but files called `own` is never replaced."""
    if out is None:
        return None
    path = expand(out)
    _require_place(path, force)
    require_only(path, own)
    return path


def require_only(folder: Path, own: Sequence[str]) -> None:
    """Raises InputError for a folder that holds anything but files called `own`: it is replaced as a whole."""
    others = [file.name for file in folder.iterdir() if file.stem not in own] if folder.is_dir() else []
    if others or folder.is_file():
        raise InputError(f"--out={folder}: {others[0] if others else 'a file'} would be lost; choose a new folder")


def _require_place(path: Path, force: bool) -> None:
    try:
        if path.exists() and not force:
            advice = "choose another name" if path.is_dir() else "choose another name or use --force"
            raise InputError(f"--out={path}: already exists; {advice}")
        parent = next(parent for parent in path.absolute().parents if parent.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise NotADirectoryError(errno.EACCES, f"{parent} is not a folder that can be written")
    except OSError as error:
        raise cannot_write(path, error) from error


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
