"""`vae dashboard DIR`: TensorBoard with the flags that these runs want."""

import os
import sys
from pathlib import Path

from vae.errors import InputError

# Without it TensorBoard keeps ten images of each series, and an epoch's picture is one of many.
IMAGES = "--samples_per_plugin=images=1000"


def dashboard(folder: str, port: int, host: str) -> None:
    """Becomes TensorBoard's process; raises InputError for a folder without event files."""
    path = Path(folder)
    if next(path.rglob("events.out.tfevents.*"), None) is None:
        what = "holds no event files" if path.is_dir() else "there is no such folder"
        raise InputError(f"{folder}: {what}; name a run or a folder of runs, such as outputs")
    flags = [f"--logdir={folder}", f"--port={port}", f"--host={host}", IMAGES]
    print(f"tensorboard {' '.join(flags)}", flush=True)
    # -P: no module of the working directory, where a tensorboard.py of somebody else's may lie
    os.execv(sys.executable, [sys.executable, "-P", "-m", "tensorboard.main", *flags])
