"""The latent explorer: what the browser computes equals what torch computes, and what cannot be shown is refused."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import frame, requests, wait
from conftest import SHORT, process
from torch import nn

from vae import VAE, likelihoods
from vae.commands import cli
from vae.commands.explore import explore
from vae.commands.page import write_page
from vae.errors import InputError
from vae.evaluation.draws import prior_latents
from vae.evaluation.explorer import explorer, network, packed
from vae.networks import ACTIVATIONS, ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vae.priors import GaussianMixture, Standard

MLP = {"hidden": [11, 9]}
CONV = {"channels": [4, 6], "hidden": [10], "activation": "tanh"}
GREY, COLOUR = (1, 9, 7), (3, 11, 8)
CLASSES = ["zero", "one", "two", "three"]
BERNOULLI = likelihoods.BernoulliHead


def made(
    likelihood: Callable[[], likelihoods.Likelihood] = likelihoods.SquaredErrorHead,
    shape: tuple[int, int, int] = GREY,
    conv: bool = False,
    latents: int = 3,
    prior: Callable[..., Any] = Standard,
    **keys: Any,
) -> VAE:
    """A model whose random weights are large enough for wrong arithmetic to show."""
    torch.manual_seed(3)
    halves, keys = ((ConvEncoder, ConvDecoder), CONV | keys) if conv else ((MLPEncoder, MLPDecoder), MLP | keys)
    vae = VAE(partial(halves[0], **keys), partial(halves[1], **keys), likelihood(), latents, shape, prior)
    with torch.no_grad():
        for name, tensor in vae.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.3)
            elif name.endswith("weight") and tensor.dim() > 1:
                tensor.mul_(2)
    return vae.eval()


def some_images(shape: tuple[int, int, int] = GREY, count: int = 13) -> torch.Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def some_labels(count: int = 13) -> list[int]:
    return [i % 4 for i in range(count)]


# ---- refusals and data, without a browser


class OwnEncoder(MLPEncoder):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Unlisted(nn.Module):
    pass


class OwnHead(likelihoods.BernoulliHead):
    pass


def test_what_the_page_cannot_compute_is_refused_by_its_key() -> None:
    own = made()
    own.encoder.__class__ = OwnEncoder
    unlisted = made()
    unlisted.decoder = Unlisted()
    for vae, words in {
        made(latents=65): "latent_dim=65: the explorer has sliders for 64",
        own: r"model.encoder=OwnEncoder: its layers\(\) do not compute",
        unlisted: "model.decoder: Unlisted: an own network without a method layers",
        made(OwnHead): "likelihood=OwnHead",
    }.items():
        with pytest.raises(InputError, match=words):
            explorer(vae, some_images(), some_labels(), 0, False)


def test_weights_are_halved_only_where_the_pictures_stay_the_same() -> None:
    x, labels = some_images(), some_labels()
    ordinary = explorer(made(), x, labels, 0, False)
    assert ordinary["decoder"]["weights"]["type"] == "float16"
    sharp = made(BERNOULLI)
    with torch.no_grad():
        sharp.decoder.out.weight.mul_(300)  # type: ignore[union-attr, operator]
        sharp.encoder.out.weight.mul_(300)  # type: ignore[union-attr, operator]
    large = explorer(sharp, (x > 127).to(torch.uint8) * 255, labels, 0, True)
    assert large["decoder"]["weights"]["type"] == large["encoder"]["weights"]["type"] == "float32"


def test_a_layer_without_counterpart_is_an_error() -> None:
    decoder = made().decoder
    decoder.hidden.append(nn.Softmax(1))  # type: ignore[union-attr, operator]
    with pytest.raises(InputError, match="Softmax: not one of the layers"):
        network(decoder, True)


def test_draws_are_the_model_s_own_prior_s() -> None:
    """Of a mixture of two far and narrow components no draw lies between them, as many of N(0, I) would."""
    vae = made(prior=partial(GaussianMixture, components=2))
    with torch.no_grad():
        vae.prior_head.loc.copy_(torch.tensor([[4.0, 4, 4], [-4, -4, -4]]))  # type: ignore[union-attr, operator]
        vae.prior_head.log_scale.fill_(-2)  # type: ignore[union-attr, operator]
    far = explorer(vae, some_images(), some_labels(), 0, False)
    assert far["prior"]["shape"] == [256, 3]
    z = prior_latents(vae, 256, 0)
    assert z.abs().min() > 2
    assert far["low"] < [-4, -4, -4]
    assert far["high"] > [4, 4, 4]


def test_arrays_are_packed_the_same_way_every_time() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert packed(array) == packed(array.copy())
    assert packed(array)["shape"] == [2, 3]


# ---- the browser


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page of a model and waits for it; at the end no error stands in the console and nothing was asked."""

    def opens(vae: VAE, images: torch.Tensor | None, labels: list[int] | None = None, binary: bool = False) -> Any:
        page = tmp_path / "page.html"
        data = explorer(vae, images, labels, 0, binary, CLASSES if labels else [])
        write_page(page, "explore.html.j2", name="<script>alert(1)</script>", what="noise", explorer=data)
        requests(browser)  # what the tests before, and the browser's own first page, asked for
        browser.get(page.as_uri())
        wait(browser, "window.explorer !== undefined")
        return browser

    yield opens
    assert browser.get_log("browser") == []
    assert requests(browser) == []


def in_view(browser: Any, name: str) -> Any:
    """The element, scrolled to, so that a pointer reaches it."""
    element = browser.find_element("id", name)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    return element


def state(browser: Any, name: str) -> torch.Tensor:
    return torch.tensor(browser.execute_script(f"return Array.from(window.explorer.state.{name})"))


def picture(browser: Any, canvas: str, shape: tuple[int, int, int] = GREY) -> torch.Tensor:
    """What a canvas shows, (C, H, W) in [0, 1]."""
    script = """const c = document.getElementById(arguments[0]);
        return Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data)"""
    shown = torch.tensor(browser.execute_script(script, canvas)).view(*shape[1:], 4) / 255
    return shown.movedim(-1, 0)[: shape[0]]


HEADS: dict[str, Callable[[], likelihoods.Likelihood]] = {
    "squared_error, sampled": likelihoods.SquaredErrorHead,
    "squared_error, mean": partial(likelihoods.SquaredErrorHead, "mean", "sigmoid"),
    "gaussian": likelihoods.GaussianHead,
    "gaussian, pixel": partial(likelihoods.GaussianHead, "pixel"),
    "gaussian, shared": partial(likelihoods.GaussianHead, "shared"),
    "gaussian, optimal": partial(likelihoods.GaussianHead, "optimal"),
    "bernoulli": BERNOULLI,
    "cross_entropy": likelihoods.CrossEntropyHead,
    "continuous_bernoulli": likelihoods.ContinuousBernoulliHead,
    "discretized_logistic": likelihoods.DiscretizedLogisticHead,
}
MODELS: dict[str, Callable[[], VAE]] = {
    **{name: partial(made, head) for name, head in HEADS.items()},
    **{name: partial(made, BERNOULLI, activation=name) for name in ACTIVATIONS},
    **{
        f"conv, {pool}, {norm}": partial(made, BERNOULLI, COLOUR, True, 3, pool=pool, norm=norm, stride=stride)
        for pool, norm, stride in (
            ("none", "none", 2), ("none", "batch", 2), ("max", "group", 1), ("avg", "layer", 1), ("avg", "none", 1)
        )
    },
    "conv, kernel 2, padding 0": partial(made, BERNOULLI, COLOUR, True, kernel_size=2, padding=0),
    "no hidden layer": partial(made, hidden=[]),
}  # fmt: skip


@pytest.mark.browser
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_both_halves_compute_what_torch_computes(model: Callable[[], VAE], opened: Callable[..., Any]) -> None:
    vae = model()
    x = some_images(vae.image_shape) / 255
    x = x.round() if vae.likelihood.support == "binary" else x
    z = torch.randn(4, vae.latent_dim, generator=torch.Generator().manual_seed(7))
    driver = opened(vae, None)
    script = "return arguments[0].map((x) => Array.from(window.explorer.model.{}))"
    with torch.no_grad():
        q, images = vae.encode(x[:4]), vae.sample(z).clamp(0, 1)
    for part, expected in {"mean": q.mean, "sigma": q.stddev}.items():
        found = torch.tensor(driver.execute_script(script.format(f"encode(x).{part}"), x[:4].flatten(1).tolist()))
        assert expected.std() > 0.02
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    found = torch.tensor(driver.execute_script(script.format("decode(x)"), z.tolist()))
    assert images.std() > 0.05
    assert (found - images.flatten(1)).abs().max() < 2 / 255


@pytest.mark.browser
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_draws_of_pixels_have_the_moments_of_their_distribution(
    head: Callable[[], likelihoods.Likelihood], opened: Callable[..., Any]
) -> None:
    vae = made(head)
    driver = opened(vae, None)
    z = torch.tensor([[0.3, -0.5, 0.2]])
    script = """const sum = new Array(63).fill(0), square = new Array(63).fill(0);
        const add = (v, i) => { sum[i] += v; square[i] += v * v; };
        for (let n = 0; n < 4000; n++) window.explorer.model.decode(arguments[0], "sample").forEach(add);
        return [sum, square]"""
    with torch.no_grad(), torch.random.fork_rng():
        expected = vae.decode(z.expand(4000, 1, 3)).sample().clamp(0, 1).flatten(1)  # (4000, 63)
    total, squares = torch.tensor(driver.execute_script(script, z[0].tolist())) / 4000
    error = 6 * (2 * expected.var(0) / 4000).sqrt() + 1e-3
    assert ((total - expected.mean(0)).abs() < error).all()
    assert ((squares - expected.square().mean(0)).abs() < 2 * error).all()


@pytest.mark.browser
def test_a_moved_slider_shows_what_torch_decodes(opened: Callable[..., Any]) -> None:
    from selenium.webdriver.common.keys import Keys

    vae = made(conv=True)
    driver = opened(vae, some_images(), some_labels())
    before = state(driver, "z")
    driver.find_element("id", "z-1").send_keys(*[Keys.ARROW_RIGHT] * 12)
    frame(driver)
    z = state(driver, "z")
    assert (z - before)[1] > 0.1
    assert ((z - before)[[0, 2]] == 0).all()
    with torch.no_grad():
        expected = vae.sample(z.unsqueeze(0))[0].clamp(0, 1)
    assert (picture(driver, "decoded") - expected).abs().max() <= 2 / 255


@pytest.mark.browser
@pytest.mark.parametrize("binary", [False, True])
def test_a_drawing_is_encoded_as_torch_does(binary: bool, opened: Callable[..., Any]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    vae = made()
    driver = opened(vae, some_images(), some_labels(), binary)
    canvas = in_view(driver, "drawing")
    pen = ActionChains(driver).move_to_element_with_offset(canvas, -30, -40).click_and_hold()
    pen.move_by_offset(45, 30).move_by_offset(-20, 35).release().perform()
    frame(driver)
    x = torch.tensor(driver.execute_script("return Array.from(window.explorer.seen())")).view(1, *GREY).float()
    assert 3 < (x > 0.5).sum() < 50
    assert not binary or set(x.unique().tolist()) == {0, 1}
    z = state(driver, "z")
    with torch.no_grad():
        torch.testing.assert_close(z, vae.encode(x).mean[0], atol=1e-3, rtol=0)
        expected = vae.sample(z.unsqueeze(0))[0].clamp(0, 1)
    for canvas in ("reconstructed", "decoded"):
        assert (picture(driver, canvas) - expected).abs().max() <= 2 / 255


@pytest.mark.browser
def test_the_plane_moves_its_two_latents_to_the_pointer(opened: Callable[..., Any]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    driver = opened(made(), some_images(), some_labels())
    across, up = (int(driver.find_element("id", f"axis-{a}").get_property("value")) for a in "xy")
    plane, seen = in_view(driver, "plane"), []
    for right in (-60, 60):
        ActionChains(driver).move_to_element_with_offset(plane, right, 50).click().perform()
        frame(driver)
        seen.append(state(driver, "z"))
    assert seen[1][across] > seen[0][across]
    rest = [latent for latent in range(3) if latent != across]
    assert (seen[0][rest] == seen[1][rest]).all()
    assert across != up


@pytest.mark.browser
def test_the_nearest_test_image_has_the_nearest_posterior_mean(opened: Callable[..., Any]) -> None:
    vae, images = made(), some_images()
    driver = opened(vae, images, some_labels())
    driver.find_element("id", "from-prior").click()
    frame(driver)
    with torch.no_grad():
        far = (vae.encode(images / 255).mean - state(driver, "z")).norm(dim=1)
    nearest = int(far.argmin())
    assert f"test image {nearest}, class {CLASSES[nearest % 4]}, distance {far.min():.2f}" in driver.find_element(
        "id", "nearest-text"
    ).get_property("textContent")
    assert (picture(driver, "nearest") - images[nearest] / 255).abs().max() < 1e-3


@pytest.mark.browser
def test_dragging_between_two_images_mixes_their_latents(opened: Callable[..., Any]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    driver = opened(made(), some_images(), some_labels())
    ActionChains(driver).move_to_element(in_view(driver, "strip")).click_and_hold().move_by_offset(
        40, 0
    ).release().perform()
    frame(driver)
    a, b, z = (state(driver, name) for name in "abz")
    t = float(driver.find_element("id", "between").get_property("value"))
    assert 0.5 < t < 0.8
    torch.testing.assert_close(z, (1 - t) * a + t * b, atol=1e-5, rtol=0)


@pytest.mark.browser
def test_everything_works_by_keyboard(opened: Callable[..., Any]) -> None:
    from selenium.webdriver.common.keys import Keys

    driver = opened(made(), some_images(), some_labels())
    before = state(driver, "z")
    driver.find_element("id", "plane").send_keys(*[Keys.ARROW_UP] * 5)
    frame(driver)
    assert (state(driver, "z") != before).sum() == 1
    driver.find_element("id", "drawing").send_keys(" ", *[Keys.ARROW_LEFT] * 2, *[Keys.ARROW_UP] * 2, " ")
    frame(driver)
    assert (state(driver, "drawn") > 0.5).sum() >= 4
    reached = set()
    for _ in range(40):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(driver.switch_to.active_element.get_attribute("id"))
    wanted = "plane drawing between from-prior from-nearest clear centre set-a set-b axis-x axis-y z-0 z-1 z-2"
    assert set(wanted.split()) <= reached


@pytest.mark.browser
def test_image_plane_drawing_and_sliders_fit_one_screen(opened: Callable[..., Any]) -> None:
    driver = opened(made(), some_images(), some_labels())
    screen = {"width": 1400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    frame(driver)
    box = """const b = document.getElementById(arguments[0]).getBoundingClientRect();
        return [b.left, b.top, b.right, b.bottom]"""
    for name in ("decoded", "plane", "drawing", "strip", "sliders"):
        left, top, right, bottom = driver.execute_script(box, name)
        assert 0 <= left < right <= 1400, name
        assert 0 <= top < bottom <= 900, name
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
def test_a_script_in_a_name_is_text(opened: Callable[..., Any]) -> None:
    driver = opened(made(), None)
    assert driver.find_element("tag name", "h1").text.startswith("<script>alert(1)</script>")


# ---- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    ended = process(*SHORT, "threads=1", "callbacks.figures_every=0", f"run_dir={directory}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (directory / "there.html").touch()
    return directory.rename(directory.with_name("a <script> & run"))


def test_the_command_writes_one_page_with_or_without_the_data(run: Path, tmp_path: Path) -> None:
    for images, held in ((0, False), (17, True)):
        page = tmp_path / f"{images}.html"
        explore(str(run), page, images)
        text = page.read_text()
        assert ('"means"' in text) == held
        assert "a &lt;script&gt; &amp; run" in text
        assert "://" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere", "-o", "page.html"), "nowhere does not exist"),
        (("{run}", "-o", "page.txt"), "-o page.txt: a page ends in .html"),
        (("{run}", "--images", "-1"), "--images"),
        (("{run}", "-o", "{run}/there.html"), "there.html: is there already; give another name, or --force"),
        (("{run}", "-o", "/proc/page.html", "--images", "0"), "-o /proc/page.html: cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(
    arguments: tuple[str, ...], words: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["vae", "explore", *(a.format(run=run) for a in arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert len(printed.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
