"""`vae evaluate RUN`: a run's metrics from its checkpoint, under other settings."""

import yaml

from vae.commands.options import Chosen
from vae.errors import InputError
from vae.run import settings
from vae.run.find import find_directory
from vae.run.keys import nearest
from vae.run.parts import known_keys


def evaluate(chosen: Chosen, pairs: list[str]) -> None:
    """Rewrites the run's metrics and figures; what training measured of itself is kept."""
    changed = evaluation_settings(pairs)
    find_directory(chosen.run)
    run = chosen.open()
    from vae.run import results

    plain = run.settings.plain
    run.settings = settings.verify({**plain, "evaluation": plain["evaluation"] | changed})
    results.reevaluate(run, run.lit, run.data, run.which)


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
            raise InputError(f"{pair}: must be {known[full].allowed}")
        changed[name] = parsed
    return changed
