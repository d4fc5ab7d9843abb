"""TensorBoard's own server, asked over HTTP for all that a sweep has written."""

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from vae.likelihoods import GaussianHead
from vae.model import VAE
from vae.networks import MLPDecoder, MLPEncoder
from vae.training.dashboard import Means, is_round, layout
from vae.training.hparams import FIXED, METRICS, Sheet


class Server:
    """TensorBoard on loopback, over the runs of a folder."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", "--host=127.0.0.1", "--port=0"]
        self.process = subprocess.Popen(
            [*command, "--load_fast=false", "--reload_multifile=true"], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                self.address = f"http://127.0.0.1:{found[1]}/data"
                break

    def has_read_all_of(self, run: str) -> bool:
        """Whether the last scalar that a run writes is there."""
        return "final/seconds" in self.ask("plugin/scalars/tags").get(run, {})

    def ask(self, path: str, body: dict[str, Any] | None = None, **query: Any) -> Any:
        return json.loads(self.bytes(path, body, **query))

    def bytes(self, path: str, body: dict[str, Any] | None = None, **query: Any) -> bytes:
        address = f"{self.address}/{path}?{urllib.parse.urlencode(query)}"
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=60) as answer:
            return answer.read()


@pytest.fixture(scope="module")
def server(sweep: Path) -> Iterator[Server]:
    running = Server(sweep)
    while not all(running.has_read_all_of(path.parent.name) for path in sweep.glob("*/metrics.json")):
        time.sleep(0.3)  # it reads the folder in the background
    yield running
    running.process.terminate()
    running.process.communicate(timeout=30)  # which closes the pipe too


@pytest.fixture(scope="module")
def names(sweep: Path) -> list[str]:
    return sorted(path.parent.name for path in sweep.glob("*/metrics.json"))


def test_every_curve_counts_steps_taken(server: Server, names: list[str], sweep: Path) -> None:
    tags = server.ask("plugin/scalars/tags")
    assert sorted(tags) == names
    metrics = json.loads((sweep / names[0] / "metrics.json").read_text())
    for tag in tags[names[0]]:
        points = server.ask("plugin/scalars/scalars", run=names[0], tag=tag)
        assert [step for _, step, _ in points] == [metrics["steps"]], tag  # a run of one epoch
    wanted = {"train/loss", "dev/loss", "dev/elbo", "dev/active_units", "kl_per_latent/z00", "images_per_second", "lr"}
    assert wanted <= set(tags[names[0]])
    assert server.ask("plugin/scalars/scalars", run=names[0], tag="epoch")[0][2] == 1
    assert not [tag for tag in tags[names[0]] if tag.startswith("final/") and tag not in METRICS]


def test_charts_hold_what_the_runs_have_written(server: Server, names: list[str]) -> None:
    charts = server.ask("plugin/custom_scalars/layout")
    written = {tag for tags in server.ask("plugin/scalars/tags").values() for tag in tags}
    asked = {tag for group in charts["category"] for chart in group["chart"] for tag in chart["multiline"]["tag"]}
    assert all(any(re.fullmatch(pattern, tag) for tag in written) for pattern in asked)
    titles = [chart["title"] for group in charts["category"] for chart in group["chart"]]
    assert len(titles) == len(set(titles))  # of runs with two latents and with three
    assert {"train/elbo", "dev/elbo"} <= asked


def test_pictures_histograms_and_projector(server: Server, names: list[str], sweep: Path) -> None:
    images = server.ask("plugin/images/tags")
    for run in names:
        assert {"pictures/reconstructions", "pictures/samples"} < set(images[run])
        assert {"pictures/manifold", "pictures/traversals"} & set(images[run])
        one = server.ask("plugin/images/images", run=run, tag="pictures/samples", sample=0)[0]
        assert server.bytes(f"plugin/images/individualImage?{one['query']}&").startswith(b"\x89PNG")
    histograms = server.ask("plugin/histograms/tags")[names[0]]
    assert {"posterior_mean/z00", "posterior_variance/z01"} <= set(histograms)
    bins = server.ask("plugin/histograms/histograms", run=names[0], tag="posterior_variance/z00")[0][2]
    assert sum(count for _, _, count in bins) == 300  # the dev images of digits
    assert sorted(server.ask("plugin/projector/runs")) == names
    (embedding,) = server.ask("plugin/projector/info", run=names[0])["embeddings"]
    assert embedding["tensorShape"][0] == 300


def test_texts_say_what_was_run(server: Server, names: list[str]) -> None:
    assert {"command", "configuration", "results"} <= {
        tag.split("/")[0] for tag in server.ask("plugin/text/tags")[names[0]]
    }

    def text(tag: str) -> str:
        (found,) = [t for t in server.ask("plugin/text/tags")[names[0]] if t.startswith(tag)]
        return server.ask("plugin/text/text", run=names[0], tag=found)[-1]["text"]

    assert "python train.py" in text("command")
    assert "likelihood=gaussian" in text("command")
    assert "latent_dim: " in text("configuration")
    assert "<table>" in text("results")


def test_the_graph_shows_both_halves(server: Server, names: list[str]) -> None:
    graph = server.bytes("plugin/graphs/graph", run=names[0], large_attrs_key="", limit_attr_size=1024).decode()
    assert "encoder" in graph
    assert "decoder" in graph


def test_hparams_open_on_what_varies(server: Server, names: list[str], sweep: Path) -> None:
    experiment = server.ask("plugin/hparams/experiment", {"experimentName": ""})
    columns = [info["name"] for info in experiment["hparamInfos"]]
    assert {"latent_dim", "model"} <= set(columns[:5])  # TensorBoard ticks the first five
    assert len(columns) < 25
    assert [info["name"]["tag"] for info in experiment["metricInfos"]] == list(METRICS)
    groups = server.ask(
        "plugin/hparams/session_groups",
        {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "colParams": [], "startIndex": 0, "sliceSize": 9},
    )["sessionGroups"]
    rows = {group["sessions"][0]["name"]: group for group in groups}
    assert sorted(rows) == names
    assert {(row["hparams"]["latent_dim"], row["hparams"]["model"]) for row in rows.values()} == {
        (latents, model) for latents in (2, 3) for model in ("mlp", "conv")
    }
    for name, row in rows.items():
        found = {value["name"]["tag"]: value["value"] for value in row["metricValues"]}
        metrics = json.loads((sweep / name / "metrics.json").read_text())
        assert found["final/dev_loss"] == pytest.approx(metrics["dev/loss"])
        assert found["final/test_active_units"] == metrics["test/active_units"]


# --- without a server -------------------------------------------------------------------------------------------------


def test_pictures_are_drawn_at_round_epochs() -> None:
    assert [epoch for epoch in range(1, 301) if is_round(epoch)] == [1, 2, 5, 10, 20, 50, 100, 200]


@pytest.mark.parametrize("normalised", [True, False])
def test_no_chart_of_the_layout_stays_empty(normalised: bool) -> None:
    tags = {tag for _, tags in layout(normalised)["losses"].values() for tag in tags}
    assert ("dev/elbo" in tags) == normalised
    assert ("dev/unweighted_loss" in tags) == (not normalised)
    assert ("reference/.*" in tags) == (not normalised)


def test_a_row_has_given_keys_first_and_the_same_columns_whatever_the_run() -> None:
    settings = {
        "latent_dim": 3,
        "model": {"encoder": {"_target_": "vae.networks.MLPEncoder", "hidden": [5, 4]}},
        "likelihood": {"_target_": "vae.likelihoods.GaussianHead", "sigma": "pixel"},
        "data": {"_target_": "vae.data.Digits", "batch_size": 7},
    }
    cells = Sheet(settings, {"model.encoder.hidden": "[5,4]", "model": "mlp", "likelihood": "gaussian"}).cells()
    assert list(cells)[:3] == ["model.encoder.hidden", "model", "likelihood"]
    assert cells["model.encoder.hidden"] == "[5, 4]"
    assert cells["model"] == "mlp"
    assert cells["model.encoder"] == "MLPEncoder"
    assert cells["data"] == "Digits"
    assert set(cells) - {"model.encoder.hidden", "model"} <= set(FIXED)
    assert Sheet(settings, {}).cells()["likelihood"] == "GaussianHead"


def test_what_varies_is_what_the_folder_of_the_job_is_called_by() -> None:
    given = {"latent_dim": "3", "data": "digits"}
    assert [key for key in (*given, "seed") if Sheet({}, given, "latent_dim=3,model=conv").varies(key)] == [
        "latent_dim"
    ]
    assert [key for key in (*given, "seed") if Sheet({}, given, "mine").varies(key)] == ["latent_dim", "data"]


def test_the_graph_draws_no_random_number() -> None:
    halves = partial(MLPEncoder, hidden=(5,), dropout=0.5), partial(MLPDecoder, hidden=(4,), dropout=0.5)
    means = Means(VAE(*halves, GaussianHead(), 2, (1, 3, 2))).eval()
    state, x = torch.random.get_rng_state(), torch.ones(1, 1, 3, 2)
    assert torch.equal(means(x), means(x))
    assert torch.equal(torch.random.get_rng_state(), state)
