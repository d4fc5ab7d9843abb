"""`vae ledger`: nats beside nats, in groups within which they may be compared. Imports no torch."""

import sys
from collections.abc import Iterable
from typing import Any

from vae.commands.output import as_csv, check_out
from vae.errors import InputError
from vae.files import replace
from vae.run.compare import scale_of
from vae.run.find import HOME
from vae.run.sweep import RunRecord, list_runs
from vae.words import short_commits

Row = dict[str, Any]
COLUMNS = ("NLL", "+-", "ELBO", "rate", "active", "prior", "posterior", "objective", "latents", "epochs", "seed")


def main(folders: list[str] | None, out: str | None, force: bool) -> None:
    place = check_out(out, force, (".csv",))
    groups = ledger(folders or (HOME,))
    if not groups:
        raise InputError(
            f"{' '.join(folders or (HOME,))}: no finished run here has an NLL in nats; it takes a normalised "
            "likelihood, such as likelihood=bernoulli data.binarize=dynamic, and evaluation.samples above 0"
        )
    if place is None:
        show(groups)
        return
    rows = [{"group": group, **row} for group, rows in groups.items() for row in rows]
    replace(place, as_csv({name: [row[name] for row in rows] for name in rows[0]}).encode())
    print(place)


def ledger(folders: Iterable[str]) -> dict[str, list[Row]]:
    """What may be compared, in words and alphabetical order -> its runs, best first."""
    groups: dict[str, list[Row]] = {}
    for record in list_runs(*folders):
        if record.settings and record.metrics and "test/nll" in record.metrics:
            groups.setdefault(group_of(record), []).append(row_of(record))
    return {group: sorted(groups[group], key=lambda row: float(row["NLL"])) for group in sorted(groups)}


def group_of(record: RunRecord) -> str:
    """Numbers compare where all of this is the same: the images, their binarisation, the split, the kind of nats."""
    scale = scale_of("test/nll", record)
    return "; ".join(f"{key.removeprefix('data.')} {value}" for key, value in scale.items() if value != "null")


def part(node: Row) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def row_of(record: RunRecord) -> Row:
    assert record.settings is not None
    assert record.metrics is not None
    s, m = record.settings, record.metrics
    return {
        "run": str(record.directory),
        "NLL": m["test/nll"],
        "+-": m.get("test/nll_error"),
        "ELBO": m.get("test/elbo"),
        "rate": m.get("test/rate"),
        "active": m.get("test/active_units"),
        "prior": part(s["prior"]),
        "posterior": part(s["posterior"]),
        "objective": part(s["objective"]),
        "latents": s["latent_dim"],
        "epochs": m["epochs"],
        "seed": s["seed"],
        "commit": " ".join(short_commits(m["provenance"])),
    }


def show(groups: dict[str, list[Row]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    for group, rows in groups.items():
        table = Table("run", *COLUMNS, box=box.SIMPLE, title=group, title_justify="left", title_style="bold")
        for row in rows:
            table.add_row(row["run"], *(written(row[name]) for name in COLUMNS))
        console.print(table, highlight=False)


def written(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
