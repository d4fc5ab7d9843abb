"""`vae ledger`: nats beside nats, in groups within which they may be compared. Imports no torch."""

from collections.abc import Iterable
from typing import Any

from vae.commands.output import check_out, write_text
from vae.errors import InputError
from vae.run.compare import grouped, has
from vae.run.find import HOME
from vae.run.records import RunRecord, list_runs
from vae.tables import as_csv, text_table, wrapped
from vae.words import HALF_INTERVAL, number, plus_minus, short_commits

Row = dict[str, Any]
# columns beside run and NLL; a narrow terminal drops them from the end
COLUMNS = ("ELBO", "active", "latents", "prior", "posterior", "objective", "rate", "epochs", "seed", "commit")
NOTE = "nats per image on the test set; ± is half of the 95 % interval over images"


def main(folders: list[str] | None, out: str | None, force: bool) -> None:
    place = check_out(out, force, (".csv",))
    groups = ledger(folders or (HOME,))
    if not groups:
        raise InputError(
            f"{' '.join(folders or (HOME,))}: no finished run has an NLL in nats; that takes a normalised likelihood, "
            "such as likelihood=bernoulli data.binarize=dynamic, and evaluation.samples above 0"
        )
    if place is None:
        show(groups)
        return
    rows = [{"group": group, **row} for group, rows in groups.items() for row in rows]
    write_text(place, as_csv({name: [row[name] for row in rows] for name in rows[0]}))


def ledger(folders: Iterable[str]) -> dict[str, list[Row]]:
    """What may be compared, in words and alphabetical order -> its runs, best first."""
    records = [record for record in list_runs(*folders) if record.settings and has(record, "test/nll")]
    groups = {group: [row_of(record) for record in runs] for group, runs in grouped(records, "test/nll").items()}
    return {group: sorted(groups[group], key=lambda row: float(row["NLL"])) for group in sorted(groups)}


def part(node: Any) -> str:
    return str((node or {}).get("_target_")).rpartition(".")[2]


def row_of(record: RunRecord) -> Row:
    """A run's columns; `NLL_error` is the standard error over images."""
    s, m = record.settings or {}, record.metrics or {}
    return {
        "run": str(record.directory),
        "NLL": m["test/nll"],
        "NLL_error": m.get("test/nll_error"),
        "ELBO": m.get("test/elbo"),
        "rate": m.get("test/rate"),
        "active": m.get("test/active_units"),
        "prior": part(s.get("prior")),
        "posterior": part(s.get("posterior")),
        "objective": part(s.get("objective")),
        "latents": s["latent_dim"],
        "epochs": m["epochs"],
        "seed": s["seed"],
        "commit": " ".join(short_commits(m.get("provenance", {}))),
    }


def show(groups: dict[str, list[Row]]) -> None:
    for group, rows in groups.items():
        nll = [plus_minus(row["NLL"], HALF_INTERVAL * (row["NLL_error"] or 0.0)) for row in rows]
        columns = {"run": [row["run"] for row in rows], "NLL": nll}
        columns |= {name: [_cell(row[name]) for row in rows] for name in COLUMNS if any(row[name] for row in rows)}
        print(f"{wrapped(group)}\n{text_table(columns, drop=COLUMNS[::-1])}\n")
    print(NOTE)


def _cell(value: Any) -> str:
    return "" if value is None else number(value) if isinstance(value, int | float) else str(value)
