"""What a RUN on the command line means, and what is said of a path that leads to none."""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import SMALL, settings_of

from vae.errors import InputError
from vae.run.find import Found, find_run, latest, require_checkpoint


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """outputs/mine and outputs/all/0 with checkpoints, outputs/begun without, in the working directory."""
    monkeypatch.chdir(tmp_path)
    text = yaml.safe_dump(settings_of(*SMALL).plain)
    for age, name in enumerate(("mine", "all/0", "begun")):
        run = tmp_path / "outputs" / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(text)
        if name != "begun":
            (run / "checkpoints").mkdir()
            for which in ("best", "last"):
                (run / "checkpoints" / f"{which}.ckpt").write_bytes(b"")
                os.utime(run / "checkpoints" / f"{which}.ckpt", (100 - age, 100 - age))
    return tmp_path


@pytest.mark.usefixtures("place")
def test_a_directory_a_checkpoint_and_latest_lead_to_a_run() -> None:
    mine = Path("outputs/mine")
    assert find_run("outputs/mine") == find_run(mine) == find_run("latest") == Found(mine)
    assert find_run("outputs/mine/checkpoints/last.ckpt") == Found(mine, "last")
    assert find_run(mine.resolve() / "checkpoints" / "best.ckpt") == Found(mine.resolve(), "best")
    shutil.copy("outputs/mine/checkpoints/best.ckpt", "taken.ckpt")
    assert find_run("taken.ckpt") == Found(Path("."), file=Path("taken.ckpt"))
    os.chdir("outputs/mine")
    assert find_run(".") == Found(Path("."))


@pytest.mark.usefixtures("place")
def test_latest_is_the_run_that_wrote_last() -> None:
    os.utime("outputs/all/0/checkpoints/last.ckpt", (200, 200))
    assert latest() == Path("outputs/all/0")


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("outputs/mien", "does not exist; did you mean outputs/mine?"),
        ("mine", "does not exist; did you mean outputs/mine?"),
        ("outputs/all", "holds 1; give one of them, for example outputs/all/0"),
        ("outputs/mine/checkpoints", "is a part of the run outputs/mine; give that instead"),
        ("outputs/mine/config.yaml", "is a part of the run outputs/mine; give that instead"),
        (
            "elsewhere/quite",
            "does not exist; give a folder written by train.py, such as outputs/mine; `vae runs`",
        ),
        ("note.txt", "is not a checkpoint"),
    ],
)
def test_another_path_is_answered_with_the_nearest_thing_to_do(path: str, advice: str, place: Path) -> None:
    (place / "note.txt").write_text("")
    with pytest.raises(InputError) as caught:
        find_run(path)
    assert str(caught.value).startswith(f"{path} ")
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_there_is_no_run_at_all_one_is_to_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("latest", "outputs/mine"):
        with pytest.raises(InputError, match="vae train data=digits run_dir=outputs/mine"):
            find_run(path)


@pytest.mark.usefixtures("place")
def test_a_run_without_its_checkpoint_says_how_it_stands() -> None:
    with pytest.raises(InputError, match=r"^outputs/begun has no best\.ckpt \(unfinished\); train it again"):
        require_checkpoint(find_run("outputs/begun"), "best")
    Path("outputs/mine/checkpoints/best.ckpt").unlink()
    with pytest.raises(InputError, match=r"has no best\.ckpt .*--checkpoint last"):
        require_checkpoint(find_run("outputs/mine"), "best")
    require_checkpoint(find_run("outputs/mine"), "last")
