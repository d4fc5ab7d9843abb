"""A comparison in writing: text for the terminal, Markdown, LaTeX and CSV. Imports no torch."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from vae.evaluation.statistics import Difference, Mean
from vae.files import replace
from vae.run.compare import ALPHA, Comparison, Row, Table, name_of, sentence, verdict
from vae.words import digits

MANY_KEYS = 4  # beyond that a configuration is named by what sets it apart from the baseline
MANY_ROWS = 8  # beyond that the differences are counted, and not told one by one


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """comparison.csv, .md and .tex in the folder; the same runs give the same bytes."""
    texts = {"csv": to_csv(comparison), "md": to_markdown(comparison), "tex": to_latex(comparison)}
    files = [folder / f"comparison.{suffix}" for suffix in texts]
    for file, text in zip(files, texts.values(), strict=True):
        replace(file, text.encode())
    return files


def to_text(comparison: Comparison) -> str:
    blocks = [_aligned(cells(table, comparison.keys)) for table in comparison.tables]
    return _page(comparison, blocks, "{}", "")


def to_markdown(comparison: Comparison) -> str:
    blocks = []
    for table in comparison.tables:
        head, *rows = [[cell.replace("|", "\\|") for cell in line] for line in cells(table, comparison.keys)]
        blocks.append("\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows]))
    return _page(comparison, blocks, "## {}", "- ")


def to_latex(comparison: Comparison) -> str:
    r"""One tabular a table, for `\usepackage{booktabs}`."""
    blocks = []
    for table in comparison.tables:
        head, *rows = [[_escape(cell) for cell in line] for line in cells(table, comparison.keys)]
        body = "\n".join(f"{' & '.join(row)} \\\\" for row in rows)
        columns = "l" * len(head)
        blocks.append(
            f"% {title(table)}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{' & '.join(head)} \\\\\n\\midrule\n"
            f"{body}\n\\bottomrule\n\\end{{tabular}}"
        )
    return "\n\n".join(blocks) + "\n"


def _escape(text: str) -> str:
    marks = {"\\": r"\textbackslash{}", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(marks.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _page(comparison: Comparison, blocks: Sequence[str], heading: str, bullet: str) -> str:
    parts = []
    for table, block in zip(comparison.tables, blocks, strict=True):
        said = "\n".join(f"{bullet}{line}" for line in findings(table))
        parts.append("\n\n".join(filter(None, [heading.format(title(table)), block, said])))
    if comparison.reasons:
        parts.append("\n".join(f"{bullet}{line}" for line in comparison.reasons))
    if comparison.left_out:
        parts.append("\n".join(["Not in the tables:", "", *(f"{bullet}{line}" for line in comparison.left_out)]))
    return "\n\n".join(parts) + "\n"


def title(table: Table) -> str:
    """What the runs of the table share and others do not, and the baseline."""
    scale = ", ".join(f"{key}={value}" for key, value in table.scale.items())
    runs = sum(len(row.runs) for row in table.rows)
    return f"{', '.join(table.metrics)}{f' ({scale})' if scale else ''}: {runs} runs"


def cells(table: Table, keys: Sequence[str]) -> list[list[str]]:
    """The table's head and rows as text."""
    varying = [key for key in keys if len({row.keys.get(key) for row in table.rows}) > 1]
    named = len(varying) > MANY_KEYS
    first = table.metrics[0]
    tested = ["difference", "p (Holm)", "verdict"] if len(table.rows) > 1 else []
    head = [*(["configuration"] if named else varying), "seeds", *table.metrics, *tested]
    lines = [head]
    for row in table.rows:
        shown = [name_of(row, table.baseline)] if named else [row.keys.get(key, "-") for key in varying]
        means = [show_mean(row.means[metric]) for metric in table.metrics]
        difference = row.differences[first]
        tests = [show_difference(difference), show_p(row, first), verdict(row, first)]
        if row is table.baseline:
            tests = ["baseline", "", ""]
        lines.append([*shown, str(len(row.runs)), *means, *(tests if tested else [])])
    return lines


def show_mean(mean: Mean) -> str:
    """With the digits that the interval leaves it."""
    half = mean.high - mean.value
    if not half > 0:  # one seed, or the same number at each
        return f"{mean.value:.6g}"
    places = digits(half)
    return f"{mean.value:.{places}f} ± {half:.{places}f}"


def show_difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if not difference.high > difference.low:
        return f"{difference.value:+.4g}"
    places = digits((difference.high - difference.low) / 2)
    return f"{difference.value:+.{places}f} [{difference.low:+.{places}f}, {difference.high:+.{places}f}]"


def show_p(row: Row, metric: str) -> str:
    p = row.corrected.get(metric, math.nan)
    return "" if math.isnan(p) else f"{p:.2g}"


def findings(table: Table) -> list[str]:
    """Sentences on the differences in the table's first metric."""
    metric = table.metrics[0]
    others = [row for row in table.rows if row is not table.baseline]
    if not others:
        return []
    told = [f"baseline: {name_of(table.baseline, table.baseline)}; {METHOD}"]
    if len(others) <= MANY_ROWS:
        return told + [sentence(row, table, metric) for row in others]
    beyond = [row for row in others if row.corrected.get(metric, 1.0) < ALPHA]
    told.append(f"{len(beyond)} of {len(others)} configurations differ from the baseline by more than the noise")
    return told


METHOD = "± is the 95 % t interval over seeds, differences are paired by seed, p is corrected after Holm"


def to_csv(comparison: Comparison) -> str:
    """A row for each table and configuration, with unrounded numbers."""
    names = list(dict.fromkeys(metric for table in comparison.tables for metric in table.metrics))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(comparison.keys, names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v != v else v for k, v in record.items()} for record in records(comparison))
    return out.getvalue()


def columns(keys: Sequence[str], metrics: Sequence[str]) -> list[str]:
    each = ("", "_low", "_high", "_difference", "_difference_low", "_difference_high", "_p", "_p_holm", "_verdict")
    return ["table", *keys, "seeds", *(f"{metric}{end}" for metric in metrics for end in each)]


def records(comparison: Comparison) -> list[dict[str, str | float]]:
    """The same in plain values, for CSV and data frames."""
    found = []
    for number, table in enumerate(comparison.tables, 1):
        for row in table.rows:
            record: dict[str, str | float] = {"table": number, **row.keys, "seeds": len(row.runs)}
            for metric in table.metrics:
                mean, difference = row.means[metric], row.differences[metric]
                record |= {metric: mean.value, f"{metric}_low": mean.low, f"{metric}_high": mean.high}
                if difference is not None:
                    record |= {f"{metric}_difference": difference.value, f"{metric}_difference_low": difference.low}
                    record |= {f"{metric}_difference_high": difference.high, f"{metric}_p": difference.p}
                    record |= {f"{metric}_p_holm": row.corrected[metric], f"{metric}_verdict": verdict(row, metric)}
            found.append(record)
    return found


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in [padded[0], "  ".join("-" * width for width in widths), *padded[1:]])
