"""Modules of the working directory: found by the names that a command gives or trusts, and by no others.

The working directory itself is never on the path. Libraries import optional packages where they find them, and a
`dill.py` of somebody else's may lie beside a run. Imports nothing of the project, as `vae/__init__.py` calls it.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

VARIABLE = "VAE_OWN_MODULES"  # [folder, name, ...] as JSON, for the processes that this one starts


class OwnModules:
    """The last finder on `sys.meta_path`; a module that it found may import its neighbours too."""

    def __init__(self, folder: str, names: Iterable[str] = ()) -> None:
        self.folder, self.names = folder, set(names)
        self.found: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None or not (name in self.names or importer() in self.found):
            return None
        spec = PathFinder.find_spec(name, [self.folder])
        if spec is not None:
            self.found.add(name)
        return spec


def importer() -> str:
    """The top-level package of the code whose import is under way."""
    frame = sys._getframe(2)
    while frame.f_back is not None and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def find_own_modules(targets: Iterable[str]) -> None:
    """Lets this process, and those that it starts, import the packages of these dotted names from here."""
    names = {name.partition(".")[0] for name in targets}
    finder = next((one for one in sys.meta_path if isinstance(one, OwnModules)), None)
    if finder is None or finder.folder != os.getcwd():
        finder = OwnModules(os.getcwd())
        sys.meta_path[:] = [*(one for one in sys.meta_path if not isinstance(one, OwnModules)), finder]
    finder.names |= names
    os.environ[VARIABLE] = json.dumps([finder.folder, *sorted(finder.names)])


def find_those_of_the_parent() -> None:
    """In a process that another of ours started: what that one may find."""
    folder, *names = json.loads(os.environ[VARIABLE])
    sys.meta_path.append(OwnModules(folder, names))
