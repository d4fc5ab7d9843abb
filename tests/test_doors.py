"""What a verb is given badly, or finds damaged: one line with exit code 2, and nothing that was saved is lost."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hostile_runs import planted, settings_in
from test_use import trained  # noqa: F401  # a fixture
from test_vae_command import vae

from vae.commands import export
from vae.errors import InputError
from vae.run.find import latest
from vae.run.load import load_run
from vae.run.records import list_runs
from vae.training import checkpoints

Said = pytest.CaptureFixture[str]


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "outputs" / "run")
    return Path("outputs/run")


def refused(monkeypatch: pytest.MonkeyPatch, capsys: Said, *arguments: str) -> str:
    """The one line that a command is refused with."""
    capsys.readouterr()
    assert vae(monkeypatch, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 600
    return line


# --- bad runs ---------------------------------------------------------------------------------------------------------

DAMAGED: dict[str, Callable[[Path], object]] = {
    "null config": lambda run: (run / "config.yaml").write_text("null"),
    "text config": lambda run: (run / "config.yaml").write_text("hello"),
    "deep config": lambda run: (run / "config.yaml").write_text("[" * 100_000),
    "list config": lambda run: (run / "config.yaml").write_text("[1, 2]"),
    "config of other types": lambda run: (run / "config.yaml").write_text("trainer: {max_epochs: many}"),
    "null metrics": lambda run: (run / "metrics.json").write_text("null"),
    "text metrics": lambda run: (run / "metrics.json").write_text('"hello"'),
    "deep metrics": lambda run: (run / "metrics.json").write_text("[" * 100_000),
    "metrics of texts": lambda run: (run / "metrics.json").write_text(
        '{"epochs": "x", "best_epoch": 1, "stopped_early": 0, "test/nll": "x"}'
    ),
    "metrics of an odd origin": lambda run: (run / "metrics.json").write_text(
        '{"epochs": 3, "best_epoch": 1, "stopped_early": 0, "provenance": {"format": 2, "training_commits": [1]}}'
    ),
    "metrics are a FIFO": lambda run: ((run / "metrics.json").unlink(), os.mkfifo(run / "metrics.json")),
    "log is a FIFO": lambda run: ((run / "metrics.json").unlink(), os.mkfifo(run / "train.log")),
}


@pytest.fixture
def damaged(run: Path) -> list[str]:
    """Runs beside a good one, each damaged in its own way, all linked from another folder; and a loop of links."""
    for name, damage in DAMAGED.items():
        shutil.copytree(run, run.with_name(name))
        (run.with_name(name) / "train.log").unlink()
        damage(run.with_name(name))
        for checkpoint in (run.with_name(name) / "checkpoints").iterdir():
            os.utime(checkpoint, (0, 0))
    (run.parent / "loop").symlink_to(run.parent.absolute())
    return [*DAMAGED, "run"]


def test_a_page_waits_for_no_fifo(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    (run / "figures").mkdir(exist_ok=True)
    os.mkfifo(run / "figures" / "losses.png")
    page = ("report", "outputs/run", "--images", "0", "-o", "x.html")
    assert "losses.png: cannot be read (it is a FIFO" in refused(monkeypatch, capsys, *page)
    (run / "figures" / "losses.png").unlink()
    (run / "figures" / "losses.png").write_text("no picture")
    assert "losses.png: cannot be read as a picture" in refused(monkeypatch, capsys, *page)


@pytest.mark.parametrize("arguments", [("runs",), ("compare", "outputs"), ("ledger",)])
def test_a_bad_run_is_a_line_and_the_list_goes_on(
    arguments: tuple[str, ...], damaged: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    code = vae(monkeypatch, *arguments)
    out = capsys.readouterr()
    if arguments[0] == "ledger":  # none of these has an NLL
        assert code == 2
        assert "no finished run" in out.err
    else:
        assert code == 0, out.err
    if arguments[0] == "runs":
        for name in damaged:
            assert f"outputs/{name} " in out.out


def test_the_latest_run_is_found_among_bad_ones_and_through_links(damaged: list[str]) -> None:
    (Path("outputs") / "run" / "checkpoints" / "dead.ckpt").symlink_to("nowhere")
    assert latest() == Path("outputs/run")
    Path("linked").mkdir()
    (Path("linked") / "mine").symlink_to(Path("outputs/run").absolute())
    assert load_run("linked/mine").vae.latent_dim == 3


@pytest.mark.parametrize("verb", ["show", "encode", "verify", "evaluate"])
def test_a_damaged_run_is_one_line_in_every_verb(
    verb: str, damaged: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    for name in damaged:
        if "config" in name:
            assert refused(monkeypatch, capsys, verb, f"outputs/{name}").startswith(f"outputs/{name}/config.yaml")


def _vae(**parts: Any) -> Callable[[dict[str, Any]], object]:
    return lambda checkpoint: checkpoint["vae"].update(parts)


ODD: dict[str, Callable[[dict[str, Any]], object]] = {
    "settings": _vae(settings=[1]),
    "settings.x": lambda checkpoint: checkpoint["vae"]["settings"].update(x={1: 2}),
    "image_shape": _vae(image_shape="large"),
    "(200": _vae(image_shape=[1, 10**6, 10**6]),
    "class_names": _vae(data={"class_names": 3}),
    "epoch": lambda checkpoint: checkpoint.update(epoch="one"),
    "callbacks": lambda checkpoint: checkpoint.pop("callbacks"),
    "rows": lambda checkpoint: checkpoint["callbacks"]["History"].update(rows={"a": 1}),
    "state_dict": lambda checkpoint: checkpoint.update(state_dict=[1]),
    "checkpoint of this project": lambda checkpoint: checkpoint.update(vae=None),
}


@pytest.mark.parametrize("part", ODD)
def test_a_checkpoint_of_other_types_is_one_line(
    part: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    for name in ("best", "last"):
        checkpoint = copy.deepcopy(torch.load(run / "checkpoints" / f"{name}.ckpt"))
        ODD[part](checkpoint)
        torch.save(checkpoint, run / "checkpoints" / f"{name}.ckpt")
    shutil.copy(run / "checkpoints" / "best.ckpt", "alone.ckpt")
    hint = {"(200": "1000000000000", "settings.x": "settings"}.get(part, part)
    for arguments in (("encode", "outputs/run"), ("encode", "alone.ckpt"), ("verify", "outputs/run")):
        assert hint in refused(monkeypatch, capsys, *arguments)


ANY = st.sampled_from(
    [None, True, 0, -1, 10**23, 1e308, float("nan"), "", "x", "a\nb\x1b[2J", "vae.priors.Vamp", [], [1, "a"], [[1]], {},
     {"a": 1}, {"_target_": None}, "~", [10**9]]
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_run_with_any_value_under_any_key_loads_or_is_one_line(data: st.DataObject, run: Path) -> None:
    whole = run.with_name("whole.yaml")
    if not whole.exists():
        shutil.copy(run / "config.yaml", whole)
    plain = yaml.safe_load(whole.read_text())
    path, value = data.draw(st.sampled_from(list(settings_in(plain)))), data.draw(ANY)
    (run / "config.yaml").write_text(yaml.safe_dump(planted(plain, path, value)))
    try:
        line = str(load_run(run)) and ""
    except InputError as error:
        line = str(error)
    assert line.isprintable()
    assert len(list_runs("outputs")) == 1


def test_a_checkpoint_without_a_history_or_a_configuration_says_so(run: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt")
    del checkpoint["callbacks"]["History"]
    torch.save(checkpoint, "alone.ckpt")
    with pytest.raises(InputError, match=r"alone\.ckpt holds no history of its epochs"):
        checkpoints.read_history("alone.ckpt")
    checkpoint["vae"]["settings"] = {}
    torch.save(checkpoint, "alone.ckpt")
    with pytest.raises(InputError, match=r"alone\.ckpt: was trained without a configuration"):
        load_run("alone.ckpt")


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["sample", "figure", "export", "runs", "ledger", "compare", "model"])
def test_a_place_that_cannot_be_written_is_one_line(
    verb: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"test/nll": 1.0, "test/elbo": 1.0}))
    arguments = {
        "sample": ["outputs/run", "-n", "1"], "figure": ["outputs/run", "losses"], "compare": ["outputs"],
        "export": ["outputs/run", "--format", "torch"], "runs": [], "ledger": [],
        "model": ["data=digits", "model.encoder.hidden=[4]", "model.decoder.hidden=[4]"],
    }  # fmt: skip
    suffix = {"runs": ".csv", "ledger": ".csv", "export": "", "compare": ""}.get(verb, ".png")
    before = tree(run)
    for place in ("/proc/nowhere/x", "outputs/run/config.yaml/x", "n" * 300):
        line = refused(monkeypatch, capsys, verb, *arguments[verb], "--out", f"{place}{suffix}")
        assert line.startswith(f"--out={place}{suffix}: cannot be written")
    assert tree(run) == before


def test_values_that_no_verb_takes_are_refused_by_name(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    for arguments, said in {
        ("sample", "outputs/run", "--seed", str(10**23)): "--seed",
        ("sample", "outputs/run", "--temperature", "inf"): "--temperature=inf",
        ("sample", "outputs/run", "--temperature", "nan"): "--temperature=nan",
        ("sample", "outputs/run", "--label", "3"): "--label=3: this model is not conditional",
        ("interpolate", "outputs/run", "--between", "²", "3"): "² is neither a class nor a file",
        ("interpolate", "outputs/run", "--between", "3", "test:²"): "test:² is neither a class nor a file",
        ("interpolate", "outputs/run", "--between", "3", "test:999"): "test:999: there are 300 test images",
        ("figure", "outputs/run", "looses"): "looses: there is no such figure; did you mean losses?",
        ("model", "data=digits", "-o", "x.exe"): "--out=x.exe: must end in .png",
        ("encode", "n" * 300): "cannot be looked up (File name too long)",
    }.items():
        assert said in refused(monkeypatch, capsys, *arguments)


def test_an_export_is_whole_or_the_old_one(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    arguments = ("export", "outputs/run", "--format", "torch", "--out", "mine")
    assert vae(monkeypatch, *arguments) == 0
    before = tree(Path("mine"))
    assert set(before) == {"encoder.pt", "decoder.pt", "model.json"}
    with monkeypatch.context() as patch:
        patch.setattr(export, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # before its last file
        assert vae(patch, *arguments, "--force") == 130
    assert tree(Path("mine")) == before
    assert vae(monkeypatch, *arguments, "--force") == 0
    assert tree(Path("mine")) != before
    assert sorted(path.name for path in Path().iterdir()) == ["mine", "outputs"]
    (Path("mine") / "notes.txt").touch()
    assert "notes.txt would be lost" in refused(monkeypatch, capsys, *arguments, "--force")
    place = Path("outputs/run/export_torch")
    place.mkdir()
    (place / "notes.txt").touch()
    assert "notes.txt would be lost" in refused(monkeypatch, capsys, *arguments[:4])
    assert (place / "notes.txt").exists()


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_name_moves_no_cursor_and_is_no_markup(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    for name in ("[/bold]", "[red]a", "a\x1b[2Jb"):
        shutil.copytree(run, f"outputs/{name}")
    assert vae(monkeypatch, "runs") == 0
    out = capsys.readouterr().out
    assert "outputs/[/bold]" in out
    assert "outputs/[red]a" in out
    assert "\x1b" not in out
    assert r"\x1b" in refused(monkeypatch, capsys, "show", "outputs/a\x1b[2Jc")


def test_a_cell_of_a_table_is_no_formula(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run, "=cmd")
    assert vae(monkeypatch, "runs", ".", "--out", "runs.csv") == 0
    assert [line.split(",")[0] for line in Path("runs.csv").read_text().splitlines()] == ["run", "'=cmd", "outputs/run"]


def test_classes_are_named_by_the_data(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_run(run)
    assert loaded.class_names == [str(digit) for digit in range(10)]
    assert vae(monkeypatch, "interpolate", "outputs/run", "--between", "3", "test:2", "-o", "x.npz") == 0
