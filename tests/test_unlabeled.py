"""Sets of one's own: without labels nothing is said of classes, and with labels there are as many as the labels say."""

import json
from pathlib import Path

import torch
from conftest import train
from torch import Tensor

from vae.data.module import ImageDataModule

RUN = (
    "data.dev_size=20", "data.batch_size=8", "model.encoder.hidden=[5]", "model.decoder.hidden=[4]", "latent_dim=2",
    "trainer.max_epochs=1", "threads=1", "evaluation.samples=3", "evaluation.generated=30",
)  # fmt: skip


def images(count: int) -> Tensor:
    return torch.randint(256, (count, 1, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


class Unlabeled(ImageDataModule):
    def load(self) -> tuple[tuple[Tensor, None], tuple[Tensor, None]]:
        return (images(90), None), (images(30), None)


class TwelveClasses(ImageDataModule):
    def load(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return (images(90), torch.arange(90) % 12), (images(30), torch.arange(30) % 12)


def test_without_labels_a_run_ends_with_all_that_needs_none(tmp_path: Path) -> None:
    train("data._target_=test_unlabeled.Unlabeled", *RUN, f"run_dir={tmp_path / 'run'}")
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"dev/loss", "test/loss", "test/active_units"} <= found.keys()
    assert not [name for name in found if "accuracy" in name or name.startswith("samples/")]
    drawn = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert {"reconstructions", "kl_per_latent", "manifold"} <= drawn
    assert not {"latents", "class_histogram"} & drawn
    assert (tmp_path / "run" / "train.log").read_text().count("no probes") == 1


def test_there_are_as_many_classes_as_the_labels_say(tmp_path: Path) -> None:
    cache = f"evaluation.cache_dir={tmp_path / 'cache'}"
    train("data._target_=test_unlabeled.TwelveClasses", *RUN, cache, f"run_dir={tmp_path / 'run'}")
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "test/knn_accuracy" in found
    assert (tmp_path / "run" / "figures" / "class_histogram.png").exists()
    assert TwelveClasses(dev_size=20).image_shape == (1, 5, 7)
    data = TwelveClasses(dev_size=20)
    data.setup()
    assert data.classes == 12
