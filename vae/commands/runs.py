"""`vae runs`: the runs below a folder, how each stands, and its metrics."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pandas import DataFrame, to_numeric

from vae.commands.output import check_out, write_text
from vae.errors import InputError
from vae.run.compare import grouped
from vae.run.directory import NOT_IDENTITY
from vae.run.find import HOME
from vae.run.keys import nearest
from vae.run.keys import show as show_value
from vae.run.records import RunRecord, list_runs
from vae.tables import as_csv, text_table, wrapped
from vae.words import number

# columns where no metric is named; a narrow terminal drops them from the end
USUAL = (
    "dev/loss", "test/nll", "test/active_units", "epochs", "test/neg_elbo", "test/unweighted_loss", "seconds",
)  # fmt: skip
PLACE = ("run", "status", "message")


def runs(*roots: str | os.PathLike[str]) -> DataFrame:
    """The runs below these folders (by default `outputs`), one row per run: place, status, settings, metrics.

    The columns that differ between the runs come first.
    """
    return frame_of(list_runs(*roots or (HOME,)))


def frame_of(records: Iterable[RunRecord]) -> DataFrame:
    rows = DataFrame([record.row for record in records])
    settings = [name for name in rows if name not in (*PLACE, *NOT_IDENTITY)]
    varying = [name for name in settings if rows[name].map(repr).nunique() > 1]
    first = [name for name in (*PLACE, *varying) if name in rows]
    return rows[[*first, *(name for name in rows if name not in first)]]


def list_(
    folders: list[str] | None, sort: str, metrics: list[str] | None, reverse: bool, out: str | None, force: bool
) -> None:
    place = check_out(out, force, (".csv",))
    if not folders and not Path(HOME).is_dir():
        raise InputError(f"{HOME}: there are no runs here; train one: vae train data=digits run_dir={HOME}/mine")
    records = list_runs(*folders or (HOME,))
    if not records:
        print("no runs")
        return
    table = frame_of(records)
    for name in (sort, *(metrics or ())):
        if name not in table:
            raise InputError(f"{name}: no run here has it; {nearest(name, list(table))}")
    order = order_of(table, sort, reverse)
    if place is not None:
        write_text(place, as_csv(table.iloc[order].map(_csv_value).to_dict("list")))
    else:
        show([records[i] for i in order], metrics)


def order_of(table: DataFrame, name: str, reverse: bool) -> list[int]:
    """Rows by a column: numbers by size, then texts; rows without a value come last either way."""
    if name == "run":
        return list(range(len(table)))[:: -1 if reverse else 1]
    column = table[name].map(lambda value: str(value) if isinstance(value, list) else value)
    numbers = to_numeric(column, errors="coerce")
    texts = column.astype(str).where(numbers.isna() & column.notna())
    ordered = DataFrame({"number": numbers, "text": texts}).reset_index(drop=True)
    return list(ordered.sort_values(["number", "text"], ascending=not reverse, kind="stable").index)


def _csv_value(value: Any) -> Any:
    return show_value(value) if isinstance(value, list | dict) else value


def show(records: Sequence[RunRecord], metrics: Sequence[str] | None) -> None:
    """A table for each group of finished runs that can be compared, then how the others stand."""
    ended = [record for record in records if record.metrics is not None]
    for title, runs in grouped(ended, "dev/reconstruction").items():
        known = {name for record in runs for name in record.metrics or {}}
        shown = [name for name in metrics or USUAL if name in known or metrics]
        columns = {"run": [str(record.directory) for record in runs]}
        if any(record.status != "finished" for record in runs):
            columns["status"] = [record.status for record in runs]
        columns |= {name: [_cell(record, name) for record in runs] for name in shown}
        print(f"{wrapped(title)}\n{text_table(columns, drop=shown[:0:-1])}\n")
    others = [record for record in records if record.metrics is None]
    if others:
        states = [f"{record.status}{': ' if record.message else ''}{record.message}" for record in others]
        print(text_table({"run": [str(record.directory) for record in others], "not finished": states}))


def _cell(record: RunRecord, name: str) -> str:
    value = record.row.get(name)
    return "" if value is None else number(value) if isinstance(value, int | float) else show_value(value)
