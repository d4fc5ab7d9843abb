"""Where numbers come from: versions, commit, data, device, processor."""

import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vae.data.module import ImageDataModule
from vae.files import FORMAT
from vae.run.keys import Settings
from vae.run.process import git_commit
from vae.training.history import UNKNOWN


def processor() -> str:
    """The processor's name: its kernels decide how sums are rounded."""
    with suppress(OSError):  # Linux alone has this file
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def provenance(
    settings: Settings, data: ImageDataModule, device: torch.device, commits: Sequence[str] = ()
) -> dict[str, Any]:
    """Of numbers that this process takes; `commits` trained the model, and are named unless they are this one alone."""
    names = ("torch", "lightning", "torchvision", "numpy", "hydra-core", "scikit-learn")
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    commit = git_commit()
    return {
        "format": FORMAT,
        "seed": settings.seed,
        "git_commit": commit,
        **({"training_commits": list(commits)} if set(commits) - {commit or UNKNOWN} else {}),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "data_md5": data.md5,
        "device": cuda or f"{device.type}, {platform.machine()}",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "command": " ".join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
    }
