"""The signature is the schema: what a constructor says of its keys is what is checked, filled in and shown."""

from pathlib import Path
from typing import Annotated

import pytest
from annotated_types import Len

from vae.errors import InputError
from vae.likelihoods import GaussianHead
from vae.run.compose import compose
from vae.run.helptext import write_help
from vae.run.keys import describe
from vae.run.parts import GROUPS, import_target, keys_of, options
from vae.types import Count, Positive

MODULE = '''
from typing import Annotated
from vae.errors import InputError
from vae.likelihoods import GaussianHead, Likelihood
from vae.networks import MLPEncoder
from vae.types import Choices, Positive

class Head(GaussianHead):
    """Hands on the keys of its base."""
    def __init__(self, width: Annotated[Positive, "width of it"], loose=None, **kwargs):
        super().__init__(**kwargs)

    @classmethod
    def requires(cls, chosen: Choices):
        if chosen["latent_dim"] > 5:
            raise InputError(f"latent_dim={chosen['latent_dim']}: too many for {chosen.parts['prior'].__name__}")

class Open(MLPEncoder):
    def __init__(self, image_shape, out_features, **kwargs):
        super().__init__(image_shape, out_features, hidden=(3,))
'''
HEAD = ("data=digits", "likelihood._target_=parts_of_mine.Head")


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def refusal(*arguments: str) -> str:
    with pytest.raises(InputError) as refused:
        compose(arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_an_own_part_is_read_as_ours_are() -> None:
    likelihood = compose([*HEAD, "likelihood.width=2", "likelihood.sigma=shared"]).plain["likelihood"]
    assert likelihood == {
        "_target_": "parts_of_mine.Head", "width": 2, "sigma": "shared", "loose": None, "min_sigma": 0.01,
        "mean": "sigmoid",
    }  # fmt: skip
    assert refusal(*HEAD) == "likelihood.width: is missing; give likelihood.width=..., a number > 0"
    assert refusal(*HEAD, "likelihood.width=0") == "likelihood.width=0: must be a number > 0"
    assert refusal(*HEAD, "likelihood.width=1", "likelihood.sigma=-1").startswith(
        "likelihood.sigma=-1: must be a number"
    )
    assert refusal(*HEAD, "likelihood.width=1", "likelihood.sigm=1").endswith("did you mean likelihood.sigma?")
    assert refusal(*HEAD, "likelihood.width=1", "latent_dim=6") == "latent_dim=6: too many for Standard"


def test_keys_of_a_base_s_constructor_stand_for_kwargs() -> None:
    keys, takes_others = keys_of("likelihood", import_target("likelihood", "parts_of_mine.Head"))
    assert [*keys] == ["width", "loose", "sigma", "min_sigma", "mean"]
    assert not takes_others
    assert keys["sigma"] == keys_of("likelihood", GaussianHead)[0]["sigma"]
    assert keys["width"].is_required
    assert (keys["sigma"].default, keys["sigma"].meaning) == (0.1, "standard deviation of a pixel")


NESTED = "{_target_:os.getcwd}"


@pytest.mark.parametrize(
    "key",
    ["likelihood.mean", "likelihood._args_", "optimizer.lr", "model.encoder.hidden", "data.mirrors", "prior.layers",
     "logger.tensorboard.x", "callbacks.extra.a.file", "evaluation.samples", "trainer.devices", "seed"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["{}", "[{}]", "{{x:[{}]}}"])
def test_a_value_holds_no_part(key: str, form: str) -> None:
    given = ["data=digits", f"{key}={form.format(NESTED)}"]
    if key.startswith("callbacks.extra"):
        given.append("callbacks.extra.a._target_=lightning.Callback")
    assert refusal(*given).startswith(key)


def test_every_key_of_a_part_of_ours_is_typed_explained_and_holds_its_default() -> None:
    for group in GROUPS:
        for target in options(group).values():
            if target.startswith("vae."):
                part = import_target(group, target)
                for name, key in keys_of(group, part)[0].items():
                    if name not in GROUPS[group].handed_in:
                        assert key.meaning, f"{target}.{name}"
                        assert key.is_required or key.accepts(key.default), f"{target}.{name}"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Count, "an integer >= 1"),
        (Count | None, "an integer >= 1, or null"),
        (Annotated[list[Positive], Len(2, 2)], "a list of 2, each a number > 0"),
        (Annotated[Positive | bool, "meaning"], "a number > 0, or true or false"),
    ],
)
def test_a_type_is_said_in_words(kind: object, words: str) -> None:
    assert describe(kind) == words


def test_help_of_one_group_holds_that_group_alone() -> None:
    text = write_help("model")
    assert "model.encoder.hidden" in text
    assert "model/encoder" in text
    assert "likelihood" not in text
    assert "model.encoder.hidden" in write_help("model.encoder")
    assert "model.decoder" not in write_help("model.encoder")
    with pytest.raises(InputError, match=r"^--help modle: .* model, "):
        write_help("modle")
