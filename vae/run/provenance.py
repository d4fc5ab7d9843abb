"""Where numbers come from: versions, commit, data, device."""

import functools
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vae.data.module import ImageDataModule
from vae.run.keys import Settings

FORMAT = 2  # of metrics.json: epochs count from 1, and `neg_elbo` or `unweighted_loss` is what was `bound`


def provenance(settings: Settings, data: ImageDataModule, device: torch.device) -> dict[str, Any]:
    names = ("torch", "lightning", "torchvision", "numpy", "hydra-core", "scikit-learn")
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "format": FORMAT,
        "seed": settings.seed,
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "data_md5": data.md5,
        "device": cuda or f"{device.type}, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "command": " ".join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
    }


@functools.cache  # the code of this process, also of a sweep's later jobs
def git_commit() -> str | None:
    """The project's commit, with `+changes` where the tree differs from it; None outside a git checkout."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
