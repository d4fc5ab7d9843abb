"""The model as a table and a picture: what is shown is what was built."""

import math
from pathlib import Path

import pytest
from conftest import settings_of
from typer.testing import CliRunner

from vae.commands.cli import app
from vae.errors import InputError
from vae.evaluation.architecture import architecture, architecture_figure
from vae.run.build import build_vae

OPTIONS = {
    "mlp": ("model=mlp", "model.encoder.hidden=[5,6]", "dropout=0.25"),
    "conv": ("model=conv", "model.encoder.channels=[2,3]", "model.decoder.channels=[4,5]", "model.encoder.hidden=[7]"),
    "pooled": ("model=conv", "model.encoder.pool=max", "model.encoder.stride=1", "model.encoder.norm=batch"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_parameter_is_in_one_layer_and_the_shapes_meet(name: str) -> None:
    vae = build_vae(settings_of("data=digits", "latent_dim=3", *OPTIONS[name]), (1, 12, 10)).train()
    halves = architecture(vae)
    counted = [sum(layer.parameters for layer in layers) for _, _, layers in halves.values()]
    assert counted == [sum(p.numel() for p in half.parameters()) for half in (vae.encoder, vae.decoder)]
    assert math.prod(halves["Encoder"][2][-1].shape) == 2 * 3
    assert math.prod(halves["Decoder"][2][-1].shape) == 2 * 12 * 10  # the mean and the variance of each pixel
    assert vae.training
    drawn = {text.get_text() for axis in architecture_figure(vae, "what").axes for text in axis.texts}
    assert any("x  1 x 12 x 10" in text for text in drawn)


def test_what_has_no_weights_stands_with_what_it_follows() -> None:
    vae = build_vae(settings_of("data=digits", "latent_dim=3", *OPTIONS["mlp"]), (1, 12, 10))
    assert [layer.names for layer in architecture(vae)["Encoder"][2]] == [
        ["Linear", "ReLU", "Dropout 0.25"], ["Linear", "ReLU", "Dropout 0.25"], ["Linear"],
    ]  # fmt: skip
    assert [layer.shape for layer in architecture(vae)["Encoder"][2]] == [(5,), (6,), (6,)]


def test_the_command_prints_and_draws_the_configured_model(tmp_path: Path) -> None:
    picture = tmp_path / "model.svg"
    ended = CliRunner().invoke(app, ["model", "data=digits", "model.encoder.hidden=[5]", "-o", str(picture)])
    assert ended.exit_code == 0, ended.output
    assert "3,925" in ended.output  # 784 x 5 + 5
    assert "<svg" in picture.read_text()


def test_the_command_refuses_a_key_that_is_not_there(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["model", "latent_dimm=3", "-o", str(tmp_path / "model.png")])
    assert isinstance(ended.exception, InputError)
    assert "did you mean latent_dim?" in str(ended.exception)
    assert not list(tmp_path.iterdir())
