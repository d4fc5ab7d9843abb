"""The `vae` command: what is done with runs that are there, and with the machine.

vae evaluate RUN [samples=5000 ...]   the evaluation anew, with other settings of the group `evaluation`
vae show RUN                          the closing table again
vae bench [key=value ...] [--json]    images a second of the configured model, beside a bare PyTorch loop
"""

import argparse
import sys
from pathlib import Path

from vae.errors import InputError, ending
from vae.run import settings
from vae.run.process import log_to


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vae", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    evaluate = commands.add_parser(
        "evaluate", help="evaluate a run's checkpoint anew; rewrites its metrics and figures"
    )
    evaluate.add_argument("run", help="the run's directory")
    evaluate.add_argument("settings", nargs="*", help="keys of the group evaluation, for example samples=5000")
    evaluate.add_argument("--checkpoint", choices=("best", "last"), default="best")
    show = commands.add_parser("show", help="print the closing table of a finished run")
    show.add_argument("run", help="the run's directory")
    bench = commands.add_parser("bench", help="measure training beside a bare PyTorch loop")
    bench.add_argument("overrides", nargs="*", help="as for train.py, for example model=conv data.root=data")
    bench.add_argument("--json", action="store_true", help="print the figures as JSON")
    bench.add_argument("--turns", type=int, default=3, help="epochs of each part; figures are their medians")
    bench.add_argument("--usual", action="store_true", help="also the usual Lightning recipe, 0 and 2 workers")
    return parser


def main() -> None:
    given = arguments().parse_args()
    log_to(None)
    try:
        {"evaluate": evaluate, "show": show, "bench": bench}[given.command](given)
    except BaseException as error:
        code, line = ending(error)
        print(line, file=sys.stderr)
        sys.exit(code)


def evaluate(given: argparse.Namespace) -> None:
    """The run's figures from its checkpoint, under other settings; training's own figures are kept."""
    from vae.run import results
    from vae.run.directory import load_run

    changed = evaluation_settings(given.settings)
    lit, data, run = load_run(given.run, given.checkpoint)
    run.settings["evaluation"] |= changed
    settings.verify(run.settings)
    results.again(run, lit, data, given.checkpoint)


def evaluation_settings(pairs: list[str]) -> dict[str, object]:
    """`samples=5000` as {"samples": 5000}; raises InputError for what the group `evaluation` does not know."""
    import yaml

    changed = {}
    for pair in pairs:
        key, _, value = pair.removeprefix("evaluation.").partition("=")
        full = f"evaluation.{key}"
        rule = settings.RULES.get(full)
        try:
            parsed = yaml.safe_load(value) if value else None
        except yaml.YAMLError as error:
            raise InputError(f"{pair}: cannot be read ({str(error).splitlines()[0]}); give key=value") from error
        if rule is None:
            raise InputError(f"{pair}: there is no such key; {settings.nearest(full, list(settings.RULES))}")
        if not rule.accepts(parsed):
            raise InputError(f"{pair}: must be {rule.allowed}; for example {key}={rule.example}")
        changed[key] = parsed
    return changed


def show(given: argparse.Namespace) -> None:
    from vae.run.directory import Run, read_settings
    from vae.run.table import show as print_results

    run = Run(Path(given.run), read_settings(Path(given.run) / "config.yaml"))
    if run.metrics is None:
        raise InputError(f"{given.run}: has no metrics.json, so it is not finished; its command continues it")
    print_results(run)


def bench(given: argparse.Namespace) -> None:
    from vae.run import bench

    bench.main(given.overrides, given.turns, given.usual, given.json)


if __name__ == "__main__":
    main()
