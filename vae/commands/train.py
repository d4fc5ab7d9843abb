"""`vae train`: train.py, wherever it is installed."""

import runpy
import sys
from pathlib import Path

from vae.run.keys import CONF


def train(overrides: list[str]) -> None:
    """The same as `python train.py`: the file stands beside `conf/`, in a checkout and in an installed package."""
    script = str(Path(CONF).parent / "train.py")
    sys.argv = [script, *overrides]
    runpy.run_path(script, run_name="__main__")
