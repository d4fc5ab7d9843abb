"""A comparison in writing: text for the terminal, Markdown, LaTeX and CSV. Imports no torch."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pandas import DataFrame

from vae.errors import InputError
from vae.files import replace
from vae.run.compare import ALPHA, Comparison, Table, effects, lower_is_better
from vae.tables import as_csv, text_table, wrapped
from vae.words import digits, number, plus_minus, printable

MANY_KEYS = 4  # beyond that a configuration is named by what sets it apart from the baseline
MANY_ROWS = 8  # beyond that the differences are counted, not told one by one
METHOD = (
    "± and [ ] are 95 % t intervals over seeds, differences are paired by seed, p is corrected after Holm over the "
    "rows of this table"
)
Cells = dict[str, list[str]]  # title of a column -> its cells


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """comparison.csv, .md and .tex in the folder; the same runs give the same bytes. Raises InputError."""
    texts = {"csv": to_csv(comparison), "md": to_markdown(comparison), "tex": to_latex(comparison)}
    files = [folder / f"comparison.{suffix}" for suffix in texts]
    try:
        for file, text in zip(files, texts.values(), strict=True):
            replace(file, text.encode())
    except OSError as error:
        raise InputError(f"--out={folder}: cannot be written ({error.strerror}); choose another folder") from error
    return files


def to_text(comparison: Comparison, width: int | None = None) -> str:
    """Tables for a terminal of some width, by default this one's."""

    def block(table: Cells, drop: Sequence[str]) -> str:
        return text_table(table, drop, width)

    def line(text: str) -> str:
        return wrapped(text, width)

    return _page(comparison, block, line, line)


def to_markdown(comparison: Comparison) -> str:
    def block(table: Cells, _: Sequence[str]) -> str:
        columns = [[cell.replace("|", "\\|") for cell in (name, "---", *cells)] for name, cells in table.items()]
        return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))

    return _page(comparison, block, "- {}".format, "## {}".format)


def to_csv(comparison: Comparison) -> str:
    """A row for each table and configuration, with unrounded numbers."""
    return as_csv({name: column.tolist() for name, column in comparison.frame.items()})


def _page(
    comparison: Comparison,
    block: Callable[[Cells, Sequence[str]], str],
    line: Callable[[str], str],
    heading: Callable[[str], str],
) -> str:
    """A page of tables, headings and lines, each written by one of these."""

    def lines(texts: Sequence[str]) -> str:
        return "\n".join(line(printable(text)) for text in texts)

    parts = []
    for table in comparison.tables:
        cells, metrics = cells_of(table), table.metrics
        drop = ("p (Holm)", "difference", *reversed(metrics[1:]))
        parts += [heading(printable(title(table))), block(cells, drop), lines(findings(table))]
        if len(table.keys_that_vary) > 1 and (effect := effect_cells(table)):
            parts += [f"effect of each key on {metrics[0]}, all else equal:", block(effect, ["pairs"])]
    parts += [lines(comparison.reasons)]
    if comparison.left_out:
        parts += ["Not in the tables:", lines(comparison.left_out)]
    return "\n\n".join(filter(None, parts)) + "\n"


def title(table: Table) -> str:
    """The metrics, what the runs of the table share and others do not, and their number."""
    scale = ", ".join(f"{key}={value}" for key, value in table.scale.items())
    count = f"{len(table.runs)} runs" if len(table.runs) > 1 else "one run"
    return f"{', '.join(table.metrics)}{f' ({scale})' if scale else ''}: {count}"


def cells_of(table: Table) -> Cells:
    """The columns of a table as text: the keys that vary, or the configuration's name; metrics; tests."""
    rows, first = table.rows, table.metrics[0]
    keys = table.keys_that_vary
    if len(keys) > MANY_KEYS:
        cells = {"configuration": [table.short_name(name) for name in rows.index]}
    else:
        cells = {key: [value or "–" for value in rows[key]] for key in keys}
    cells["seeds"] = [str(seeds) for seeds in rows["seeds"]]
    for metric in table.metrics:
        halves = rows[f"{metric}_high"] - rows[metric]
        cells[metric] = [plus_minus(*pair) for pair in zip(rows[metric], halves, strict=True)]
    if table.baseline and len(rows) > 1:
        tests = difference_cells(rows, first)
        tests["verdict"][rows.index.get_loc(table.baseline)] = "baseline"
        cells |= tests
    return cells


def difference_cells(rows: DataFrame, metric: str = "") -> Cells:
    """Of a metric's differences: each with its interval, the corrected p value and the verdict."""
    names = [f"{metric}{end}" for end in ("_difference", "_difference_low", "_difference_high")]
    return {
        "difference": [show_difference(*each) for each in rows[names].itertuples(index=False)],
        "p (Holm)": ["" if math.isnan(p) else f"{p:.2g}" for p in rows[f"{metric}_p_holm"]],
        "verdict": ["" if word != word else word for word in rows[f"{metric}_verdict"]],
    }


def effect_cells(table: Table) -> Cells:
    """What each value of each key does; nothing where no two configurations differ in one key alone."""
    rows = effects(table, table.metrics[0])
    if rows.empty:
        return {}
    keys = {name: [str(value) or "–" for value in rows[name]] for name in ("key", "value", "against", "pairs")}
    return keys | difference_cells(rows)


def show_difference(value: float, low: float, high: float) -> str:
    """`−2.9 [−6.7, +0.8]`."""
    if math.isnan(value) or not high > low:
        return "" if math.isnan(value) else number(value, "+")
    places = digits((high - low) / 2)
    return f"{value:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]".replace("-", "−")


def findings(table: Table) -> list[str]:
    """Sentences on the differences in the table's first metric."""
    rows, metric = table.rows, table.metrics[0]
    if len(rows) < 2:
        return []
    if not table.baseline:
        return ["no run here matches the baseline, so there are no differences", METHOD]
    lines = [f"baseline: {table.baseline}; {METHOD}"]
    others = rows.drop(table.baseline)
    if len(others) <= MANY_ROWS:
        return lines + [sentence(table, name, metric) for name in others.index]
    beyond = int((others[f"{metric}_p_holm"] < ALPHA).sum())
    return [*lines, f"{beyond} of {len(others)} configurations differ from the baseline by more than seed noise"]


def sentence(table: Table, name: str, metric: str) -> str:
    """What the difference to the baseline is, and whether it is more than noise."""
    row: dict[str, Any] = table.rows.loc[name].to_dict()
    value, low, high = (row[f"{metric}_difference{end}"] for end in ("", "_low", "_high"))
    seeds = int((table.values(metric).loc[[name, table.baseline]]).notna().all().sum())
    size = (
        f"{table.short_name(name)}: {metric} is {abs(value):.3g} {'lower' if value < 0 else 'higher'} than the baseline"
    )
    match row[f"{metric}_verdict"]:
        case "no shared seed":
            return f"{table.short_name(name)}: no seed in common with the baseline"
        case "one seed":
            return f"{size} at the one seed that both have; more seeds show whether that is noise: seed=0,1,2"
        case "no spread":
            return f"{size} at each of {seeds} seeds; without a spread there is no test"
        case "within noise":
            return f"{size} (p = {row[f'{metric}_p_holm']:.2g}): not distinguishable from seed noise ({seeds} seeds)"
    near, far = sorted((abs(low), abs(high)))
    return f"{size} (95 % interval {near:.3g} to {far:.3g}): more than seed noise ({seeds} seeds)"


# --- LaTeX


def to_latex(comparison: Comparison) -> str:
    r"""A table environment for each table, for `\usepackage{booktabs}`; the best means are bold."""
    return "\n\n".join(map(_latex_table, comparison.tables)) + "\n"


def _latex_table(table: Table) -> str:
    cells = cells_of(table)
    columns = []
    for name, column in cells.items():
        best = _best(table, name)
        columns.append([_escape(name), *(_latex_cell(cell, bold=i == best) for i, cell in enumerate(column))])
    head, *rows = [" & ".join(line) + r" \\" for line in zip(*columns, strict=True)]
    numbers = {"seeds", "difference", "p (Holm)", *table.metrics}
    sides = "".join("r" if name in numbers else "l" for name in cells)
    body = "\n".join([r"\toprule", head, r"\midrule", *rows, r"\bottomrule"])
    caption = _escape(f"{title(table)}; {METHOD}; the best mean is bold.")
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\begin{{tabular}}{{{sides}}}\n{body}\n"
        "\\end{tabular}\n\\end{table}"
    )


def _best(table: Table, column: str) -> int | None:
    """The row with the best mean of a metric; none for other columns and a table of one row."""
    if column not in table.metrics or len(table.rows) < 2:
        return None
    means = table.rows[column]
    return int(means.argmin() if lower_is_better(column) else means.argmax())


def _latex_cell(text: str, bold: bool) -> str:
    if not re.match(r"[+−-]?\d", text) or not re.fullmatch(r"[\d.,\s±+−e\[\]-]+", text):
        return _escape(text)
    maths = text.replace("±", r"\pm").replace("−", "-")
    return f"$\\mathbf{{{maths}}}$" if bold else f"${maths}$"


def _escape(text: str) -> str:
    marks = {"\\": r"\textbackslash{}", "±": r"$\pm$", "−": "$-$", "–": "--"}
    marks |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(marks.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
