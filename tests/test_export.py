"""What `vae export` writes is used by processes without this package, and gives the model's numbers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import settings_of
from test_use import trained  # noqa: F401  # a fixture
from test_vae_command import vae

from vae.commands import export
from vae.distributions import ContinuousBernoulli, DiscretizedLogistic
from vae.model import VAE
from vae.networks import describe_layer
from vae.run.build import build_vae
from vae.run.load import load_run

WITHOUT = """
import sys
for name in ("lightning", "pytorch_lightning", "hydra", "omegaconf", "vae"):
    sys.modules[name] = None  # import then fails
"""
PLAIN_TORCH = """
import json
import numpy as np
import torch
from torch import nn
folder = sys.argv[1]
with open(f"{folder}/model.json") as file:
    model = json.load(file)
def half(name):
    net = nn.Sequential(*(getattr(nn, each["type"])(**each["arguments"]) for each in model["layers"][name]))
    if model["format"] == "torch":
        weights = torch.load(f"{folder}/{name}.pt", weights_only=True)
    else:
        from safetensors.torch import load_file
        weights = load_file(f"{folder}/{name}.safetensors")
    net.load_state_dict(weights)
    return net.eval()
x = torch.from_numpy(np.load(sys.argv[2]))
with torch.no_grad():
    mu, log_var = half("encoder")(x).chunk(2, dim=1)
    params = half("decoder")(mu).unflatten(1, (model["params_per_pixel"], -1))
    made = eval(model["mean_of_x"])
np.savez(sys.argv[3], mean=mu, stddev=(0.5 * log_var).exp(), x_mean=made)
"""
ONNX = """
import numpy as np
import onnxruntime
sys.modules["torch"] = None
folder = sys.argv[1]
encoder, decoder = (onnxruntime.InferenceSession(f"{folder}/{half}.onnx") for half in ("encoder", "decoder"))
mean, stddev = encoder.run(["mean", "stddev"], {"x": np.load(sys.argv[2])})
np.savez(sys.argv[3], mean=mean, stddev=stddev, x_mean=decoder.run(["x_mean"], {"z": mean})[0])
"""


@pytest.mark.parametrize("form", ["torch", "safetensors", "onnx"])
def test_an_export_gives_the_model_s_numbers_in_a_process_without_this_package(
    form: str,
    trained: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "export"
    assert vae(monkeypatch, "export", str(trained), "--format", form, "--out", str(out)) == 0
    assert "graph" not in capsys.readouterr().out  # onnx's own log
    described = json.loads((out / "model.json").read_text())
    assert (described["latent_dim"], described["image_shape"]) == (3, [1, 28, 28])
    x = torch.rand(7, 1, 28, 28)
    np.save(tmp_path / "x.npy", x.numpy())
    code = WITHOUT + (ONNX if form == "onnx" else PLAIN_TORCH)
    run = [sys.executable, "-c", code, str(out), str(tmp_path / "x.npy"), str(tmp_path / "found.npz")]
    ended = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    model = load_run(trained).vae
    with torch.no_grad():
        q = model.encode(x)
        made = model.decode(q.mean.unsqueeze(0)).mean[0]
    with np.load(tmp_path / "found.npz") as found:
        for name, expected in {"mean": q.mean, "stddev": q.stddev, "x_mean": made}.items():
            np.testing.assert_allclose(found[name].reshape(expected.shape), expected, atol=1e-5)


HEADS = {
    "squared_error": [], "gaussian": [], "gaussian pixel": ["likelihood.sigma=pixel"], "cross_entropy": [],
    "continuous_bernoulli": [],
    "bernoulli": ["data.binarize=dynamic"], "discretized_logistic": [],
}  # fmt: skip
PAIRS = [("mlp", "mlp"), ("conv", "conv"), ("mlp", "conv"), ("conv", "mlp")]
CASES = [("mlp", "mlp", head) for head in HEADS] + [(*pair, "gaussian") for pair in PAIRS[1:]]


def model_of(encoder: str, decoder: str, head: str) -> VAE:
    name = head.partition(" ")[0]
    chosen = [f"model/encoder={encoder}", f"model/decoder={decoder}", f"likelihood={name}", "data=digits"]
    return build_vae(settings_of(*chosen, *HEADS[head]), (1, 28, 28)).eval()


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "decoder", "head"), [(*pair, head) for pair in PAIRS for head in HEADS])
def test_onnx_agrees_with_torch_for_each_pair_and_likelihood(
    encoder: str, decoder: str, head: str, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = model_of(encoder, decoder, head)
    export.write_onnx(model, tmp_path)
    x, z = torch.rand(1000, 1, 28, 28), torch.randn(1000, model.latent_dim)
    with torch.no_grad():
        q, made = model.encode(x), model.decode(z.unsqueeze(0)).mean[0]
    sessions = [onnxruntime.InferenceSession(tmp_path / f"{half}.onnx") for half in ("encoder", "decoder")]
    mean, stddev = sessions[0].run(["mean", "stddev"], {"x": x.numpy()})
    (x_mean,) = sessions[1].run(["x_mean"], {"z": z.numpy()})
    for found, expected in ((mean, q.mean), (stddev, q.stddev), (x_mean, made)):
        assert np.abs(found - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize(("encoder", "decoder", "head"), CASES)
def test_the_layers_of_model_json_are_the_halves(encoder: str, decoder: str, head: str) -> None:
    model = model_of(encoder, decoder, head)
    x, z = torch.rand(5, 1, 28, 28), torch.randn(5, model.latent_dim)
    for half, given in (("encoder", x), ("decoder", z)):
        net = export.sequential(model, half)
        described = json.loads(json.dumps([describe_layer(layer) for layer in net]))
        rebuilt = torch.nn.Sequential(*(getattr(torch.nn, one["type"])(**one["arguments"]) for one in described))
        rebuilt.load_state_dict(net.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(rebuilt(given), getattr(model, half)(given))


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
def test_norms_and_pools_are_described_too(norm: str, pool: str) -> None:
    halves = [f"model.{half}.{key}" for half in ("encoder", "decoder") for key in (f"norm={norm}", f"pool={pool}")]
    model = build_vae(settings_of("model=conv", "data=digits", *halves), (1, 28, 28)).eval()
    for half, given in (("encoder", torch.rand(3, 1, 28, 28)), ("decoder", torch.randn(3, 4))):
        net = export.sequential(model, half)
        rebuilt = torch.nn.Sequential(
            *(getattr(torch.nn, one["type"])(**one["arguments"]) for one in map(describe_layer, net))
        ).eval()
        rebuilt.load_state_dict(net.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(rebuilt(given), getattr(model, half)(given))


def test_the_means_written_for_onnx_are_those_of_the_distributions() -> None:
    loc, scale = torch.rand(2, 3, 1, 5, 4), 0.003 + 0.2 * torch.rand(2, 3, 1, 5, 4)
    for p in (DiscretizedLogistic(loc, scale), ContinuousBernoulli(40 * (loc - 0.5)), ContinuousBernoulli(loc / 10)):
        torch.testing.assert_close(export.mean_of(p), p.mean, rtol=0, atol=5e-6)
