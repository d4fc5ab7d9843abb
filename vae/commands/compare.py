"""vae compare: the runs of sweeps beside one another."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vae.errors import InputError
from vae.run import compare as comparing
from vae.run.compare_text import columns, records, to_text, write_tables

if TYPE_CHECKING:
    from pandas import DataFrame


def compare(
    roots: Sequence[str], metrics: Sequence[str] = (), baseline: str | None = None, output: Path | None = None,
    figures: bool = False,
) -> None:  # fmt: skip
    """Prints the tables and writes them, to `comparison/` in the first folder where no other is named."""
    found = comparing.compare(roots, metrics, baseline)
    print(to_text(found), end="")
    if not found.tables:
        print("no run is finished yet: there is nothing to compare")
        return
    folder = Path(roots[0], "comparison") if output is None else output
    files = write_tables(found, folder)
    if figures:
        from vae.run.compare_figures import draw

        files += draw(found, folder)
    print(f"\nwritten: {folder}/{{{','.join(file.name for file in files)}}}")


def sweep(*roots: str, metrics: Sequence[str] = (), baseline: str | None = None) -> "DataFrame":
    """`vae compare` as a data frame: a row for each table and configuration. Raises InputError without pandas."""
    try:
        from pandas import DataFrame
    except ImportError:
        raise InputError("vae.sweep: needs pandas; pip install 'vae-lightning[frames]'") from None
    found = comparing.compare(roots, metrics, baseline)
    names = list(dict.fromkeys(metric for table in found.tables for metric in table.metrics))
    return DataFrame(records(found), columns=columns(found.keys, names))
