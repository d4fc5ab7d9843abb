"""`vae evaluate RUN`: a run's metrics from its checkpoint, under other settings."""

import yaml

from vae.errors import InputError
from vae.run import settings
from vae.run.find import find_directory
from vae.run.keys import known_keys, nearest
from vae.run.process import log_to


def evaluate(path: str, pairs: list[str], which: str, trust: tuple[str, ...]) -> None:
    """Rewrites the run's metrics and figures; what training measured of itself is kept."""
    changed = evaluation_settings(pairs)
    found = find_directory(path)
    log_to(None)
    from vae.run import results
    from vae.run.load import load_run

    run = load_run(found.directory, found.which or which, trust=trust)
    plain = run.settings.plain
    run.settings = settings.verify({**plain, "evaluation": plain["evaluation"] | changed})
    results.reevaluate(run, run.lit, run.data, found.which or which)


def evaluation_settings(pairs: list[str]) -> dict[str, object]:
    """`samples=5000` as {"samples": 5000}; raises InputError for what the group `evaluation` does not know."""
    changed = {}
    for pair in pairs:
        name, _, value = pair.removeprefix("evaluation.").partition("=")
        full, known = f"evaluation.{name}", known_keys()
        try:
            parsed = yaml.safe_load(value) if value else None
        except yaml.YAMLError as error:
            raise InputError(f"{pair}: cannot be read ({str(error).splitlines()[0]}); give key=value") from error
        if full not in known:
            raise InputError(f"{pair}: there is no such key; {nearest(full, known)}")
        if not known[full].accepts(parsed):
            raise InputError(f"{pair}: must be {known[full].allowed}; for example {name}={known[full].example}")
        changed[name] = parsed
    return changed
