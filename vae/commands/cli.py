"""The `vae` command: what is done with runs that are there, and with the machine.

vae train [key=value ...]             a model: the same as python train.py
vae evaluate RUN [samples=5000 ...]   the evaluation anew, with other settings of the group `evaluation`
vae show RUN                          the closing table again
vae bench [key=value ...] [--json]    images a second of the configured model, beside a bare PyTorch loop
"""

import argparse
import runpy
import sys
from pathlib import Path

import yaml

from vae.errors import InputError, ending
from vae.run import settings
from vae.run.keys import CONF, known_keys, nearest
from vae.run.process import find_own_modules, log_to


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vae", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    evaluate = commands.add_parser(
        "evaluate", help="evaluate a run's checkpoint anew; rewrites its metrics and figures"
    )
    evaluate.add_argument("run", help="the run's directory")
    evaluate.add_argument("settings", nargs="*", help="keys of the group evaluation, for example samples=5000")
    evaluate.add_argument("--checkpoint", choices=("best", "last"), default="best")
    evaluate.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="its parts may be built")
    train = commands.add_parser(
        "train", help="train a model: the same as python train.py", add_help=False, prefix_chars="\0"
    )
    train.add_argument("overrides", nargs="*", help="as for train.py; vae train --help explains the keys")
    show = commands.add_parser("show", help="print the closing table of a finished run")
    show.add_argument("run", help="the run's directory")
    show.add_argument("--all", action="store_true", help="every metric, latent by latent")
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
        {"train": train, "evaluate": evaluate, "show": show, "bench": bench}[given.command](given)
    except BaseException as error:
        code, line = ending(error)
        print(line, file=sys.stderr)
        sys.exit(code)


def train(given: argparse.Namespace) -> None:
    """The same as `python train.py`: the file stands beside `conf/`, in a checkout and in an installed package."""
    script = str(Path(CONF).parent / "train.py")
    sys.argv = [script, *given.overrides]
    runpy.run_path(script, run_name="__main__")


def evaluate(given: argparse.Namespace) -> None:
    """The run's metrics from its checkpoint, under other settings; training's own metrics are kept."""
    changed = evaluation_settings(given.settings)
    find_run(given.run)
    find_own_modules()
    from vae.run import results
    from vae.run.load import load_run

    run = load_run(given.run, given.checkpoint, trust=tuple(given.trust))
    plain = run.settings.plain
    run.settings = settings.verify({**plain, "evaluation": plain["evaluation"] | changed})
    results.reevaluate(run, run.lit, run.data, given.checkpoint)


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


def find_run(path: str) -> Path:
    """The directory of a run; raises InputError for one that is none."""
    if not (Path(path) / "config.yaml").is_file():
        raise InputError(
            f"{path}: is not a run (no config.yaml); name a folder that train.py wrote, such as outputs/mine"
        )
    return Path(path)


def show(given: argparse.Namespace) -> None:
    directory = find_run(given.run)
    if not (directory / "metrics.json").exists():
        raise InputError(f"{given.run}: has no metrics.json, so it is not finished; its command continues it")
    from vae.run.directory import Run, read_settings
    from vae.run.table import print_results

    print_results(Run(directory, settings.read(read_settings(directory / "config.yaml"))), everything=given.all)


def bench(given: argparse.Namespace) -> None:
    if given.turns < 1:
        raise InputError(f"--turns={given.turns}: must be a whole number of at least 1; for example --turns 3")
    from vae.commands import bench

    bench.main(given.overrides, given.turns, given.usual, given.json)


if __name__ == "__main__":
    main()
