"""The types that a part's keys may have: one line of a constructor is the whole definition of a key.

    def __init__(self, sigma: Annotated[Positive, "standard deviation of a pixel"] = 0.1) -> None: ...

Values are checked against the type and its range, the text is the key's help, the default is the configuration's:
`vae/run/parts.py` reads them, for the project's parts and for a person's own alike. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt, MinLen

Plain = dict[str, Any]

Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Lt(2**63)]
Rate = Annotated[float, Ge(0), Lt(1)]
Fraction = Annotated[float, Gt(0), Lt(1)]
Portion = Annotated[float, Gt(0), Le(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Text = Annotated[str, MinLen(1)]


@dataclass(frozen=True)
class Choices:
    """A configuration as a part sees it that depends on others: `requires(chosen)` raises InputError where it must.

    `parts` holds the class or function that each group names, `plain` the values of the keys.
    """

    plain: Plain
    parts: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        """The value of a dotted key; None where this configuration has no such key."""
        node: Any = self.plain
        for name in key.split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
        return node
