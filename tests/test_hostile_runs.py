"""Opening a run executes nothing of its author's: whatever its files name, and whatever lies beside it."""

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from test_use import trained  # noqa: F401  # a fixture
from test_vae_command import vae

from vae.errors import InputError
from vae.run.load import load_run
from vae.run.own_modules import find_own_modules
from vae.run.process import log_to

MARK = "from pathlib import Path\nPath(__file__).parent.joinpath('executed').touch()\n"
# what libraries import where they find it, and what this project starts
PLANTED = (
    "evil", "dill", "pyarrow", "tensorboard", "absl", "mlflow", "wandb", "jax", "tensorflow", "cupy", "apex",
    "torch_xla", "litmodels", "onnx_ir", "hydra_plugins", "sitecustomize", "usercustomize", "train", "conf",
)  # fmt: skip
TARGETS = ("evil.Part", "os.mkdir", "pathlib.Path.touch", "vae.networks.torch.hub.load", "torch.optim.evil", "vae.fit")
PAGE = ["-o", "x.html"]
NEEDED = {"export": ["--format", "torch"], "figure": ["losses"], "explore": PAGE, "report": PAGE}
VERBS = (
    "evaluate", "sample", "reconstruct", "encode", "score", "interpolate", "traverse", "manifold", "figure", "export",
    "verify", "explore", "report",
)  # fmt: skip


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """The working directory: a run, and modules that leave a file `executed` behind."""
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(MARK)
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def part(target: str, place: Path) -> dict[str, Any]:
    return {"_target_": target, "_args_": [str(place / "executed")]}


def settings_in(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key, those of groups among them."""
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from settings_in(value, (*path, key))


def planted(plain: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    whole = copy.deepcopy(plain)
    node = whole
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return whole


def refused(run: str, place: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_run(run)
    assert not (place / "executed").exists()
    return str(caught.value)


def test_nothing_is_built_under_any_key_of_the_configuration(place: Path) -> None:
    config = place / "run" / "config.yaml"
    plain = yaml.safe_load(config.read_text())
    paths = list(settings_in(plain))
    assert len(paths) > 70
    for path in paths:
        for value in (part("evil.Part", place), [part("pathlib.Path.touch", place)]):
            config.write_text(yaml.safe_dump(planted(plain, path, value)))
            said = refused("run", place)
            assert said.count("\n") == 0
            assert "nothing of it was executed" in said or "is not the configuration" in said, said


@pytest.mark.parametrize("target", TARGETS)
def test_no_group_builds_a_part_of_a_stranger(target: str, place: Path) -> None:
    config = place / "run" / "config.yaml"
    plain = yaml.safe_load(config.read_text())
    groups = [path for path in settings_in(plain) if path[-1] == "_target_"]
    groups += [("callbacks", "extra", "x"), ("logger", "x")]
    for path in groups:
        value = target if path[-1] == "_target_" else part(target, place)
        config.write_text(yaml.safe_dump(planted(plain, path, value)))
        assert "nothing of it was executed" in refused("run", place)


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_executes_anything(
    verb: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A callback, a logger and a nested part; in config.yaml, and in the checkpoints of the run."""
    config, best = place / "run" / "config.yaml", place / "run" / "checkpoints" / "best.ckpt"
    plain, checkpoint = yaml.safe_load(config.read_text()), torch.load(best)
    nested = {"_target_": "lightning.pytorch.callbacks.LambdaCallback", "on_fit_start": part("evil.Part", place)}
    attacks = {
        ("callbacks", "extra", "x"): nested,
        ("logger", "x"): part("evil.Part", place),
        ("optimizer", "lr"): [part("pathlib.Path.touch", place)],
        ("objective", "_target_"): "evil.Part",
    }
    arguments = [verb, "run", *NEEDED.get(verb, [])]
    for path, value in attacks.items():
        hostile = planted(plain, path, value)
        config.write_text(yaml.safe_dump(hostile))
        assert vae(monkeypatch, *arguments) == 2
        config.write_text(yaml.safe_dump(plain))
        for name in ("best", "last"):
            torch.save(checkpoint | {"vae": checkpoint["vae"] | {"settings": hostile}}, best.with_name(f"{name}.ckpt"))
        assert vae(monkeypatch, *arguments) == (1 if verb == "verify" and path[0] != "logger" else 2)
        shutil.copy(best, place / "alone.ckpt")
        assert vae(monkeypatch, verb, "alone.ckpt", *NEEDED.get(verb, [])) == 2
        refusal = "is a checkpoint without its run" if verb in ("evaluate", "verify") else "nothing of it was executed"
        assert refusal in capsys.readouterr().err.splitlines()[-1]
        assert not (place / "executed").exists()
    assert "evil" not in sys.modules


def test_code_in_a_trusted_package_is_trusted_and_what_it_imports_is_not(place: Path) -> None:
    (place / "mine.py").write_text("from pathlib import Path\nfrom neighbour import Head\n")
    (place / "neighbour.py").write_text("from vae.likelihoods import SquaredErrorHead as Head\n")
    config = place / "run" / "config.yaml"
    plain = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(planted(plain, ("objective",), part("mine.Path", place))))
    for trust in (("mine",), ("mine.Path",)):
        with pytest.raises(InputError, match="nothing of it was executed"):
            load_run("run", trust=trust)
    assert not (place / "executed").exists()
    del sys.modules["mine"], sys.modules["neighbour"]


@pytest.mark.parametrize("target", ["torch.hub.load", "vae.commands.cli.train", "os.mkdir"])
def test_a_package_of_many_functions_is_not_trusted_as_a_whole(target: str, place: Path) -> None:
    config = place / "run" / "config.yaml"
    plain = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(planted(plain, ("objective",), part(target, place))))
    with pytest.raises(InputError, match=rf"or --trust {target}$"):
        load_run("run", trust=(target.partition(".")[0],))
    assert not (place / "executed").exists()


def test_a_log_that_is_a_link_is_not_written_to(place: Path) -> None:
    (place / "victim").write_text("mine")
    (place / "run" / "train.log").unlink(missing_ok=True)
    (place / "run" / "train.log").symlink_to(place / "victim")
    with pytest.raises(InputError, match="is a link or no plain file"):
        log_to(place / "run" / "train.log")
    assert (place / "victim").read_text() == "mine"


def test_of_the_working_directory_only_what_was_named_is_found(place: Path) -> None:
    """In a process of its own, and in one that this starts; a named module may import its neighbours."""
    (place / "mine.py").write_text("import neighbour\n")
    (place / "neighbour.py").write_text("")
    child = "import vae, mine, importlib.util as u; print(mine.neighbour.__name__, u.find_spec('dill'))"
    find_own_modules(["mine.Head"])
    command = [sys.executable, "-P", "-c", child]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "neighbour None\n", ended.stderr
    assert not (place / "executed").exists()


def test_verbs_in_a_process_of_their_own_import_nothing_from_the_working_directory(place: Path) -> None:
    for name in (
        "sitecustomize",
        "usercustomize",
    ):  # Python itself imports them from PYTHONPATH, before any code of ours
        (place / f"{name}.py").unlink()
    commands = [["evaluate", "run", "samples=2"], ["encode", "run", "--out", "x.npz"], ["verify", "run"]]
    code = "import sys\nfrom vae.commands.cli import main\n"
    code += f"for sys.argv in {[['vae', *command] for command in commands]}:\n    main()\n"
    environment = os.environ | {"PYTHONPATH": os.pathsep + str(ROOT)}  # an empty entry is the working directory
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert (place / "x.npz").exists()
    assert not (place / "executed").exists()


def test_tensorboard_is_not_taken_from_the_working_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda file, arguments: started.append(arguments))
    assert vae(monkeypatch, "dashboard", ".", "--port", "0") == 0
    ended = subprocess.run([*started[0], "--version_tb"], cwd=place, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout[0].isdigit()
    assert not (place / "executed").exists()
