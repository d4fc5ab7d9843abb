"""`vae compare`: the runs of sweeps beside one another."""

from collections.abc import Sequence
from pathlib import Path

from pandas import DataFrame

from vae.run import compare as comparing
from vae.run.compare_text import to_text, write_tables


def compare(
    roots: Sequence[str], metrics: Sequence[str] = (), baseline: str | None = None, output: Path | None = None,
    figures: bool = False,
) -> None:  # fmt: skip
    """Prints the tables and writes them, to `comparison/` in the first folder where no other is named."""
    comparison = comparing.compare(roots, metrics, baseline)
    print(to_text(comparison), end="")
    if not comparison.tables:
        print("no run is finished yet: there is nothing to compare")
        return
    folder = Path(roots[0], "comparison") if output is None else output
    files = write_tables(comparison, folder)
    if figures:
        from vae.run.compare_figures import draw  # matplotlib and torch

        files += draw(comparison, folder)
    print(f"\nwritten: {folder}/{{{','.join(file.name for file in files)}}}")


def sweep(*roots: str, metrics: Sequence[str] = (), baseline: str | None = None) -> DataFrame:
    """`vae compare` as a data frame: a row for each table and configuration, unrounded."""
    return comparing.compare(roots, metrics, baseline).frame
