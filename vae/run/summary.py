"""The end of a sweep: its result, printed and written, and what failed."""

from collections.abc import Iterable
from pathlib import Path

from vae.errors import FAILED, InputError
from vae.run.compare import compare
from vae.run.compare_text import to_text, write_tables
from vae.run.jobs import is_finished
from vae.run.plan import Failed, Job, say

FOLDER = "comparison"  # in the sweep's own


def close(root: Path, jobs: list[Job], results: Iterable[object]) -> None:
    """Prints the comparison of the sweep's runs and the lines of those that failed; exits with 1 where one is left."""
    try:
        found = compare([root])
        say(to_text(found).rstrip())
        if found.tables:
            write_tables(found, root / FOLDER)
            say(f"written: {root / FOLDER}; a run's pictures: vae evaluate RUN")
    except (InputError, OSError) as error:  # the runs are what counts, and they are there
        say(f"no comparison: {error}")
    for result in results:
        if isinstance(result, Failed):
            say(f"failed: {result.line}")
    left = [job for job in jobs if not job.is_done and not is_finished(job.directory, job.settings)]
    if left:
        say(f"{len(left)} of {len(jobs)} runs are not finished; the same command continues them")
        raise SystemExit(FAILED)
