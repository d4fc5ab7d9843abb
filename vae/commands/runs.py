"""`vae runs`: what is there, how each run stands, its metrics."""

import math
import sys
from pathlib import Path
from typing import Any

from vae.commands.output import as_csv, check_out
from vae.errors import InputError
from vae.files import replace
from vae.run.find import HOME
from vae.run.keys import nearest
from vae.run.keys import show as show_value
from vae.run.sweep import list_runs

Row = dict[str, Any]
USUAL = ("epochs", "dev/loss", "test/neg_elbo", "test/unweighted_loss", "test/nll", "test/active_units", "seconds")


def list_(
    folders: list[str] | None, sort: str, metrics: list[str] | None, reverse: bool, out: str | None, force: bool
) -> None:
    place = check_out(out, force, (".csv",))
    if not folders and not Path(HOME).is_dir():
        raise InputError(f"{HOME}: there are no runs here; train one: vae train data=digits run_dir={HOME}/mine")
    rows = [record.row for record in list_runs(*folders or (HOME,))]
    known = list(dict.fromkeys(name for row in rows for name in row))
    for name in (sort, *(metrics or ())):
        if rows and name not in known:
            raise InputError(f"{name}: no run here has it; {nearest(name, known)}")
    rows = sorted_by(rows, sort, reverse)
    if place is not None:
        replace(place, as_csv({name: [cell(row.get(name)) for row in rows] for name in known}).encode())
        print(place)
    else:
        show(rows, metrics or [name for name in USUAL if name in known])


def sorted_by(rows: list[Row], name: str, reverse: bool) -> list[Row]:
    """Numbers by size; runs that have no such value, or no number where others have one, come last either way."""

    def has(row: Row) -> bool:
        value = row.get(name)
        return value is not None and not (isinstance(value, float) and math.isnan(value))

    if name == "run":
        return rows[::-1] if reverse else rows
    known = [row for row in rows if has(row)]
    numbers = [row for row in known if isinstance(row[name], (int, float))]
    texts = [row for row in known if not isinstance(row[name], (int, float))]
    ordered = [
        *sorted(numbers, key=lambda row: row[name], reverse=reverse),
        *sorted(texts, key=lambda row: str(row[name]), reverse=reverse),
    ]
    return [*ordered, *(row for row in rows if not has(row))]


def show(rows: list[Row], metrics: list[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for name in ("run", "status", *metrics):
        table.add_column(name, overflow="fold", justify="right" if name in metrics else "left")
    for row in rows:
        status = f"{row['status']}: {row['message']}" if row["message"] else row["status"]
        table.add_row(row["run"], status, *(written(row.get(name)) for name in metrics))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table, highlight=False) if rows else console.print("no runs")


def cell(value: Any) -> Any:
    """A list as one text."""
    return "" if value is None else show_value(value) if isinstance(value, list) else value


def written(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
