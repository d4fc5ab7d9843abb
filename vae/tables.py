"""Tables in writing: aligned for a terminal, and CSV that a spreadsheet computes nothing from."""

import csv
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len

from vae.words import defused, printable

Columns = Mapping[str, Sequence[str]]  # title -> cells, from left to right

UNLIMITED = 10_000  # characters in a line of a file or pipe


def terminal_width() -> int:
    """Characters in a line: the terminal's, or $COLUMNS; a file or pipe has room for everything."""
    limited = sys.stdout.isatty() or "COLUMNS" in os.environ
    return shutil.get_terminal_size().columns if limited else UNLIMITED


def text_table(columns: Columns, drop: Sequence[str] = (), width: int | None = None, rule: bool = True) -> str:
    """Columns side by side, numbers to the right, in lines of at most `width` characters.

    The columns in `drop` are left out, in that order, until a line fits, and a last line says which. What is still too
    wide is left to the terminal: a name is never cut.
    """
    limit = terminal_width() if width is None else width
    cells = {name: [printable(cell) for cell in (name, *column)] for name, column in columns.items()}
    widths = {name: max(map(cell_len, column)) for name, column in cells.items()}
    dropped = []
    for name in drop:
        if name in widths and sum(widths.values()) + 2 * (len(widths) - 1) > limit:
            del widths[name]
            dropped.append(name)
    padded = [_aligned(cells[name], size) for name, size in widths.items()]
    lines = ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
    if rule:
        lines.insert(1, "  ".join("─" * size for size in widths.values()))
    if dropped:
        lines.append(wrapped(f"(no room for {', '.join(dropped)})", limit))
    return "\n".join(lines)


def wrapped(text: str, width: int | None = None) -> str:
    """A sentence in lines of at most `width` characters, by default the terminal's; words are never cut."""
    limit = terminal_width() if width is None else width
    return textwrap.fill(printable(text), limit, break_long_words=False, break_on_hyphens=False)


def _aligned(cells: Sequence[str], width: int) -> list[str]:
    numbers = all(re.match(r"[+−-]?[\d.]|$|nan|inf", cell) for cell in cells[1:])
    gaps = [" " * (width - cell_len(cell)) for cell in cells]
    return [gap + cell if numbers else cell + gap for cell, gap in zip(cells, gaps, strict=True)]


def as_csv(columns: Mapping[str, Sequence[Any]], figures: int | None = None) -> str:
    """A line of titles and a line per row; floats in full or with some figures, nothing for None and nan.

    A text that a spreadsheet would compute, such as a file called `=cmd`, is put behind an apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([defused(name) for name in columns])
    writer.writerows([_csv_cell(cell, figures) for cell in row] for row in zip(*columns.values(), strict=True))
    return text.getvalue()


def _csv_cell(cell: Any, figures: int | None) -> Any:
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, float) and figures:
        return f"{cell:.{figures}g}"
    return defused(cell)
