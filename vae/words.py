"""Numbers as one says them."""


def duration(seconds: float) -> str:
    """40 s, 4 min, 2.5 h."""
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99 * 60 else f"{seconds / 3600:.1f} h"
