"""What the shell proposes: runs, names of metrics, names of figures."""

from pathlib import Path

from vae.run.find import HOME, LATEST
from vae.run.records import find_directories, list_runs


def runs(incomplete: str) -> list[str]:
    """`latest` and the runs in outputs/, or those below the folder that is being typed."""
    typed = Path(incomplete if incomplete.endswith("/") else incomplete.rpartition("/")[0] or HOME)
    found = [LATEST, *map(str, find_directories(typed if typed.is_dir() else Path(HOME)))]
    return [name for name in found if name.startswith(incomplete)]


def metrics(incomplete: str) -> list[str]:
    """The names in the metrics.json files of outputs/."""
    records = list_runs(HOME) if Path(HOME).is_dir() else []
    names = {name for record in records for name in record.metrics or {} if name != "provenance"}
    return sorted(name for name in names if name.startswith(incomplete))


def figures(incomplete: str) -> list[str]:
    from vae.evaluation.gallery import FIGURES  # with torch: two seconds that the other names need not wait for

    return [name for name in FIGURES if name.startswith(incomplete)]
