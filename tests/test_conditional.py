"""Conditional models: labels reach both halves, and nothing changes for the others."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import settings_of, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from vae.commands import cli
from vae.errors import InputError
from vae.evaluation import estimates
from vae.evaluation.architecture import architecture
from vae.likelihoods import GaussianHead
from vae.model import VAE
from vae.networks import MLPDecoder, MLPEncoder
from vae.noise import fixed_noise
from vae.objectives import ELBO, Terms, log_weights, terms_of
from vae.run import command
from vae.run.build import build, takes_labels
from vae.run.load import load_run
from vae.training.dashboard import add_graph

CLASSES, SHAPE = 3, (2, 4, 5)


def make(classes: int = CLASSES) -> VAE:
    torch.manual_seed(0)

    def encoder(**known: object) -> nn.Module:
        return MLPEncoder(**known, hidden=(7,))  # type: ignore[arg-type]  # what VAE hands in

    def decoder(**known: object) -> nn.Module:
        return MLPDecoder(**known, hidden=(6,))  # type: ignore[arg-type]  # what VAE hands in

    return VAE(encoder, decoder, GaussianHead(), 2, SHAPE, classes=classes)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, *SHAPE)


LABELS = torch.tensor([0, 2, 1, 2, 0])


def test_labels_move_both_halves_image_by_image(x: Tensor) -> None:
    vae, other = make(), LABELS.clone()
    other[3] = 1
    z = torch.randn(4, 5, 2)
    q, p = vae.encode(x, LABELS).mean, vae.decode(z, LABELS).mean
    q_other, p_other = vae.encode(x, other).mean, vae.decode(z, other).mean
    same = [0, 1, 2, 4]
    torch.testing.assert_close(q[same], q_other[same])
    torch.testing.assert_close(p[:, same], p_other[:, same])
    assert (q[3] != q_other[3]).all()
    assert (p[:, 3] != p_other[:, 3]).any((-1, -2, -3)).all()


def test_one_label_serves_all_images_and_none_is_an_error(x: Tensor) -> None:
    vae = make()
    twos, each = vae.encode(x, 2).mean, vae.encode(x, LABELS).mean
    torch.testing.assert_close(each[LABELS == 2], twos[LABELS == 2])
    for call in (lambda: vae.encode(x), lambda: vae.sample(4), lambda: vae.reconstruct(x)):
        with pytest.raises(InputError, match=r"needs a class for each image"):
            call()


@pytest.mark.parametrize("y", [3, -1, LABELS + 1, LABELS[:4], LABELS.float(), torch.zeros(6, dtype=torch.int64)])
def test_labels_that_are_no_classes_or_not_as_many_are_an_error(x: Tensor, y: Tensor | int) -> None:
    vae = make()
    for call in (lambda: vae.encode(x, y), lambda: vae.decode(torch.randn(4, 5, 2), y)):
        with pytest.raises(InputError, match="labels"):
            call()


def test_gradients_reach_what_the_labels_pass_through(x: Tensor) -> None:
    vae = make()
    ELBO(samples=2)(vae, x, 0, LABELS).loss.backward()
    assert log_weights(vae, x, 3, LABELS).shape == (3, 5)
    assert vae.planes.weight.grad is not None
    assert (vae.planes.weight.grad != 0).any(1).tolist() == [True] * CLASSES


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_the_graph_of_a_model_shows_both_halves(classes: int, tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        add_graph(writer, make(classes))
    events = EventAccumulator(str(tmp_path)).Reload()
    nodes = " ".join(node.name for node in events.Graph().node)
    assert all(half in nodes for half in ("encoder", "decoder"))
    assert ("planes" in nodes) == bool(classes)


def test_a_model_without_classes_has_no_more_parts_and_ignores_labels(x: Tensor) -> None:
    vae = make(0)
    assert not hasattr(vae, "planes")
    assert torch.equal(vae.encode(x, LABELS).mean, make(0).encode(x).mean)


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_an_objective_without_labels_serves_models_without_classes(x: Tensor, classes: int) -> None:
    def own(vae: VAE, x: Tensor, step: int) -> Terms:
        return ELBO()(vae, x, step)

    assert takes_labels(ELBO())
    assert not takes_labels(own)
    vae = make(classes)
    objective = ELBO() if classes else own
    with fixed_noise(0):
        expected = ELBO()(vae, x, 0, LABELS).loss
    with fixed_noise(0):
        assert torch.equal(terms_of(objective, vae, x, 0, LABELS).loss, expected)


def test_evaluation_meets_each_image_with_its_own_label(x: Tensor) -> None:
    from vae.data.batches import Images

    vae = make()
    images = Images((x * 255).to(torch.uint8), LABELS)
    found = estimates.posteriors(vae, images)
    torch.testing.assert_close(found.mu, vae.encode(images.images / 255, LABELS).mean.detach())
    turned = estimates.posteriors(vae, images.take(torch.arange(4, -1, -1)))
    torch.testing.assert_close(turned.mu.flip(0), found.mu)


RUN = (
    "data=digits", "model.conditional=true", "likelihood=gaussian", "latent_dim=2", "model.encoder.hidden=[100]",
    "model.decoder.hidden=[100]", "optimizer.lr=0.004", "evaluation.samples=3", "evaluation.generated=200", "threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conditional")
    train(*RUN, "trainer.max_epochs=10", f"evaluation.cache_dir={folder}", f"run_dir={folder / 'run'}")
    return folder / "run"


def test_a_run_trains_evaluates_and_draws(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"test/nll", "test/active_units"} <= metrics.keys()
    assert "test/knn_accuracy" not in metrics  # the encoder is told what it would be asked for
    drawn = {path.stem for path in (run / "figures").iterdir()}
    assert {"samples", "reconstructions", "latents"} <= drawn
    assert not {"traversals", "manifold", "interpolations"} & drawn


def test_samples_are_of_the_class_that_is_asked_for(run: Path) -> None:
    """The mean image of each class is nearer to samples of that class than to those of others, for most classes."""
    loaded = load_run(run)
    assert loaded.vae.classes == 10
    data = loaded.data
    means = torch.stack([data.train.images[data.train.labels == k].float().mean(0) / 255 for k in range(10)])
    z = loaded.vae.prior.sample(torch.Size((40,)))
    with torch.no_grad():
        drawn = [loaded.vae.sample(z, y=k).mean(0) for k in range(10)]
    nearest = torch.cdist(torch.stack(drawn).flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == torch.arange(10)).sum() >= 7


def test_the_test_nll_depends_on_the_labels(run: Path) -> None:
    loaded = load_run(run)
    few = loaded.data.test.take(slice(60))
    right = estimates.bounds(loaded.vae, few, 5, 0).log_px
    few.labels = (few.labels + 1) % 10
    wrong = estimates.bounds(loaded.vae, few, 5, 0).log_px
    assert right.mean() > wrong.mean()


def test_the_commands_use_the_labels_of_the_test_split_or_the_class_that_is_named(run: Path, tmp_path: Path) -> None:
    with np.load(use(tmp_path, "encode", run)) as found, np.load(use(tmp_path, "encode", run, 3)) as told:
        own, threes, labels = found["mean"], told["mean"], found["label"]
    same = (own == threes).all(1)
    assert same[labels == 3].all()
    assert not same[labels != 3].any()
    with np.load(use(tmp_path, "sample", run, None, "-n", "20")) as found:
        turns, z = found["x"], torch.from_numpy(found["z"])
    vae = load_run(run).vae
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(turns), vae.sample(z, y=torch.arange(20) % 10).clamp(0, 1))
    for verb in ("reconstruct", "score"):
        with np.load(use(tmp_path, verb, run, None, "-n", "7")) as found:
            assert len(found["x"]) == 7
    with pytest.raises(InputError, match=r"model.conditional=true: .* give one with --label"):
        use(tmp_path, "traverse", run)
    with np.load(use(tmp_path, "traverse", run, 4)) as found:
        assert found["x"].shape[1] == 11


def use(folder: Path, verb: str, run: Path, label: int | None = None, *options: str) -> Path:
    """Runs `vae verb run` and gives the file that it wrote."""
    out = folder / f"{verb}-{label}.npz"
    told = [] if label is None else ["--label", str(label)]
    cli.app([verb, str(run), *told, *options, "--out", str(out)], standalone_mode=False)
    return out


def test_what_takes_no_labels_says_so(run: Path, tmp_path: Path) -> None:
    for verb, options in (("export", ("--format", "onnx")), ("explore", ("-o", str(tmp_path / "page.html")))):
        with pytest.raises(InputError, match=r"model\.conditional=true: "):
            cli.app([verb, str(run), *options], standalone_mode=False)
    cli.app(["report", str(run), "-o", str(tmp_path / "page.html")], standalone_mode=False)
    assert "model.conditional=true: the explorer" in (tmp_path / "page.html").read_text()


def test_the_picture_of_the_model_names_the_class(run: Path) -> None:
    halves = architecture(load_run(run).vae)
    assert halves["Encoder"][0] == "x  1 x 28 x 28, class"
    assert halves["Decoder"][0] == "z  2, class"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("prior=vamp", "pseudo-inputs of prior=vamp have no labels"),
        ("likelihood=gaussian evaluation.annealing=5", "evaluation.annealing"),
        ("model.conditional=maybe", "true or false"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        command.check(["model.conditional=true", *arguments.split()])


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(256, size=(30, 4, 6), dtype=np.uint8))
    with pytest.raises(InputError, match="the images have no labels"):
        build(settings_of("data=npz", f"data.path={tmp_path / 'x.npy'}", "model.conditional=true"))
