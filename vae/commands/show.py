"""`vae show RUN`: the closing table of a finished run."""

from vae.errors import InputError
from vae.run.find import find_directory


def show(path: str, everything: bool) -> None:
    directory = find_directory(path).directory
    if not (directory / "metrics.json").exists():
        raise InputError(f"{path}: has no metrics.json, so it is not finished; its command continues it")
    from vae.run.directory import Run, as_settings, read_settings
    from vae.run.table import print_results

    settings = as_settings(read_settings(directory / "config.yaml"), directory)
    print_results(Run(directory, settings), everything=everything)
