import re
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.contour import QuadContourSet
from matplotlib.patches import StepPatch
from PIL import Image

from vae.evaluation import colours, figures

LONG = "Dev split, z is the posterior mean, x is the decoder's mean, costs $5 or $6. " * 3 + "outputs/" + "run" * 40
RNG = np.random.default_rng(0)
GREY, COLOUR = RNG.random((3, 1, 7, 5)), RNG.random((4, 3, 6, 8))
CURVE = [(epoch, 36 + 12 * 0.9**epoch) for epoch in range(30)]
HISTORY = {
    "train/loss": [(e, v + 3) for e, v in CURVE],
    "dev/loss": CURVE,
    "train_eval/loss": [(e, v - 0.5) for e, v in CURVE],
    "train/reconstruction": [(e, v - 2) for e, v in CURVE],
    "dev/reconstruction": [(e, v - 4) for e, v in CURVE],
    "dev/kl": [(e, 5 - 4 * 0.8**e) for e, _ in CURVE],
}
BASELINES = {
    "mean image": 52.19,
    "PCA 2": 43.97,
    "PCA 4": 38.51,
    "nearly": 38.52,
    "again": 38.53,
    "PCA 32": 14.12,
}
LABELS = np.arange(60) % 10
TEN = [str(k) for k in range(10)]


def panel(latents):
    """Normal densities of three widths on a grid."""
    z = np.linspace(-4, 4, 41)
    squares = z**2 if latents == 1 else z[:, None] ** 2 + z**2
    widths = {"truth": 1.0, "q": 0.7, "best": 0.9}
    return {"x": GREY[0], "z": [z] * latents} | {name: np.exp(-squares / 2 / sd**2) for name, sd in widths.items()}


EVERY = {
    "reconstructions": lambda text: figures.reconstructions(GREY, GREY**2, text),
    "reconstructions, colour": lambda text: figures.reconstructions(COLOUR, COLOUR**2, text),
    "losses": lambda text: figures.losses(HISTORY, text, BASELINES),
    "latents, 1": lambda text: figures.latents(RNG.normal(size=(60, 1)), LABELS, text, TEN),
    "latents, 2": lambda text: figures.latents(RNG.normal(size=(60, 2)), LABELS, text, TEN),
    "latents, 5": lambda text: figures.latents(RNG.normal(size=(60, 5)), LABELS, text, TEN),
    "samples": lambda text: figures.samples({"x sampled": GREY, "x mean": GREY**2}, text),
    "errors": lambda text: figures.errors(GREY, GREY**2, text),
    "errors, colour": lambda text: figures.errors(COLOUR, COLOUR**2, text),
    "grid": lambda text: figures.grid(COLOUR, 2, text, ["z 0", "z 1"], ["a", "b"], "across", "up"),
    "aggregate_posterior": lambda text: figures.aggregate_posterior(
        RNG.normal(size=(90, 2)), RNG.normal(size=(70, 2)), ["z3", "z1"], text
    ),
    "true_posteriors, 1": lambda text: figures.true_posteriors([panel(1)] * 2, ["one", "two"], text, ["z0"]),
    "true_posteriors, 2": lambda text: figures.true_posteriors([panel(2)] * 4, list("abcd"), text, ["z0", "z1"]),
    "sigma_history": lambda text: figures.sigma_history([(e, 0.8**e) for e in range(40)], text),
    "kl_per_latent": lambda text: figures.kl_per_latent([1.0, 0.0, 3.0], text, [True, False, True]),
    "rate_distortion": lambda text: figures.rate_distortion([5, 20], [200, 90], [0, 1], text),
    "neighbours": lambda text: figures.neighbours(GREY, GREY**2, [1.0, 2.0, 30.0], text),
    "heat_map": lambda text: figures.heat_map(GREY[0], "squared error", text),
    "heat_map, colour": lambda text: figures.heat_map(COLOUR[0], "sigma", text),
    "residuals": lambda text: figures.residuals(RNG.normal(size=(9, 50)), text),
    "class_histogram": lambda text: figures.class_histogram([3, 0, 5], text, ["a", "b", "long name"]),
}


def drawn(figure):
    return [np.asarray(image.get_array()) for axis in figure.axes for image in axis.images]


def labels(figure, axis=-1):
    """The heads of the bands, and what stands at the left of and below the last one."""
    heads = [axis.get_title(loc="left") for axis in figure.axes]
    ticks = (figure.axes[axis].get_yticklabels(), figure.axes[axis].get_xticklabels())
    return heads, *([text.get_text() for text in each] for each in ticks)


def notes(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def bands(figure):
    """What the PNG holds where each axes stands: (high, wide, 3) each."""
    picture = pixels(figure)
    for axis in figure.axes:
        left, low, right, high = (round(edge) for edge in axis.bbox.extents)
        yield picture[len(picture) - high : len(picture) - low, left:right]


def enlarged(image, factor):
    """(C, H, W) in [0, 1] as bytes (high, wide, 3), each pixel a square."""
    byte = np.broadcast_to(np.round(255 * image.transpose(1, 2, 0)), (*image.shape[1:], 3))
    return byte.repeat(factor, axis=0).repeat(factor, axis=1)


# --- the page -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_the_caption_is_whole_inside_the_figure_and_below_everything(name):
    figure = EVERY[name](LONG)
    renderer = figure.canvas.get_renderer()
    (caption,) = (found for found in figure.texts if found.get_gid() == "caption")
    assert caption.get_text().replace("\n", "").replace(" ", "") == LONG.replace(" ", "")
    box = caption.get_window_extent(renderer)
    width, height = figure.bbox.size
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    for artist in [*figure.axes, *figure.legends]:
        other = artist.get_tightbbox(renderer)
        assert other.x0 >= -1
        assert other.x1 <= width + 1
        assert other.y1 <= height + 1
        assert other.y0 >= box.y1 - 1


def test_no_figure_is_registered_with_pyplot_and_threads_draw_the_same():
    def draw(name):
        return pixels(EVERY[name]("A caption."))

    fixed = ["reconstructions", "kl_per_latent", "sigma_history"]
    alone = [draw(name) for name in fixed]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, fixed))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


# --- images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_reconstructions_show_every_pixel_of_both_rows_as_a_square(images):
    figure = figures.reconstructions(torch.tensor(images), torch.tensor(1 - images), "")
    assert labels(figure)[0] == ["Original images", "Reconstructed images"]
    factor = 96 // max(images.shape[2:])
    wide = factor * (images.shape[3] + 1)
    for band, row in zip(bands(figure), (images, 1 - images), strict=True):
        assert len(band) == factor * images.shape[2]
        for k, image in enumerate(row):
            block = band[:, k * wide : k * wide + factor * images.shape[3]].astype(int)
            assert np.abs(block - enlarged(image, factor)).max() <= 1  # the colour map has 256 steps


def test_images_are_white_on_black_and_clipped_not_rescaled():
    image = np.array([-3.0, 0.25, 0.5, 9.0]).reshape(1, 1, 2, 2)
    (band,) = bands(figures.grid(image, 1, ""))
    assert sorted(np.unique(band)) == [0, 64, 128, 255]
    np.testing.assert_array_equal(drawn(figures.grid(image, 1, ""))[0], [[0, 0.25], [0.5, 1]])


def test_samples_keep_one_column_per_z():
    figure = figures.samples({"x sampled": GREY, "mean": GREY / 2, "third": GREY / 4}, "")
    assert labels(figure)[0] == ["x sampled", "mean", "third"]
    edges = np.array([axis.get_position().extents for axis in figure.axes])
    assert (edges[:, [0, 2]] == edges[0, [0, 2]]).all()  # left and right do not depend on the row
    assert (np.diff(edges[:, 1]) < 0).all()
    np.testing.assert_array_equal(drawn(figure)[1][:, 6:11], GREY[1, 0] / 2)


def test_grid_reads_left_to_right_and_may_end_early():
    figure = figures.grid(COLOUR, 3, "", ["first", "second"], ["a", "b", "c"])
    (sheet,) = drawn(figure)
    np.testing.assert_array_equal(sheet[:6, 18:26], COLOUR[2].transpose(1, 2, 0))
    np.testing.assert_array_equal(sheet[7:13, :8], COLOUR[3].transpose(1, 2, 0))
    assert (sheet[7:, 9:] == 1).all()
    assert labels(figure)[1:] == (["first", "second"], ["a", "b", "c"])


def test_neighbours_put_each_distance_under_its_pair():
    figure = figures.neighbours(GREY, GREY**2, torch.tensor([0.5, 12.345, 678.9]), "")
    assert labels(figure)[2] == ["0.500", "12.3", "679"]
    assert figure.axes[1].get_xticks().tolist() == [2, 8, 14]  # the middles of images 5 pixels wide, one apart


# --- curves -------------------------------------------------------------------------------------------------


def test_losses_draw_the_histories_given():
    figure = figures.losses(HISTORY, "", units=("squared error + nats", "squared error"))
    loss, reconstruction, kl = figure.axes
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "squared error + nats per image",
        "squared error per image",
        "nats per image",
    ]
    for axis, name, splits in (
        (loss, "loss", ["train", "train_eval", "dev"]),
        (reconstruction, "reconstruction", ["train", "dev"]),
        (kl, "kl", ["dev"]),
    ):
        lines = [line for line in axis.lines if not line.get_label().startswith("_")]
        for line, split in zip(lines, splits, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), HISTORY[f"{split}/{name}"])
    assert [to_rgb(line.get_color()) for line in kl.lines[:1]] == [to_rgb(colours.LIGHT["dev"])]
    note = notes(figure)[0].split("\n")
    assert note[0] == f"dev {HISTORY['dev/loss'][-1][1]:.4g} at epoch 29, the lowest"
    assert note[1] == "first epoch off scale: train 51"


def test_the_first_epoch_does_not_eat_the_scale():
    late = [(epoch, 30 - 0.1 * epoch) for epoch in range(2, 41)]
    curve = [(1, 900.0), *late]
    axis = figures.losses({"train/loss": curve, "dev/loss": curve}, "").axes[0]
    low, high = axis.get_ylim()
    settled = [value for epoch, value in late if epoch > 4]
    assert np.ptp(settled) / (high - low) > 0.8
    assert low < min(settled)
    (carets, _) = (line for line in axis.lines if line.get_marker() == "^")
    assert carets.get_xydata()[0].tolist() == [1, high]
    assert (carets.get_ydata() == high).all()


def test_baselines_stand_at_their_values_beside_the_reconstruction_and_their_names_do_not_collide():
    figure = figures.losses(HISTORY, "", BASELINES)
    panel = figure.axes[1]
    low, high = panel.get_ylim()
    level = {line.get_ydata()[0] for line in panel.lines if line.get_linestyle() == ":"}
    assert level == {value for value in BASELINES.values() if low < value < high}
    assert not any(line.get_linestyle() == ":" for axis in figure.axes[::2] for line in axis.lines)
    names = [text for text in panel.texts if text.get_gid() != "note"]
    lines = "\n".join(text.get_text() for text in names).split("\n")
    assert sorted(line.lstrip("\u2191\u2193 ").split(":")[0] for line in lines) == sorted(BASELINES)
    assert "\u2193 PCA 32: 14.12" in lines  # would squeeze the curve
    pixels(figure)
    boxes = [text.get_window_extent() for text in names]
    assert not any(box.overlaps(other) for box, other in combinations(boxes, 2))
    assert all(box.x0 > panel.bbox.x1 for box in boxes)


@pytest.mark.parametrize("baselines", [None, BASELINES], ids=["plain", "baselines"])
def test_a_single_epoch_is_a_visible_point(baselines):
    single = {name: curve[:1] for name, curve in HISTORY.items()}
    figure = figures.losses(single, "", baselines)
    panel = figure.axes[1]
    assert panel.lines[1].get_marker() == "o"
    assert panel.get_xlim() == (-1, 1)
    assert panel.get_ylim()[0] < single["dev/reconstruction"][0][1] < panel.get_ylim()[1]
    if baselines:
        assert sum(line.get_linestyle() == ":" for line in panel.lines) == len(baselines)


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1, 0.3, 0.05], "log"), ([1, 0.5], "linear"), ([1, 0.0], "linear"), ([2], "linear")],
)
def test_sigma_is_drawn_on_a_log_axis_only_beyond_a_decade(values, scale):
    (axis,) = figures.sigma_history(list(enumerate(values)), "", label="sigma").axes
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), values)
    assert axis.get_yscale() == scale
    assert axis.get_ylabel() == "sigma"


def test_rate_and_distortion_with_lines_of_equal_elbo():
    rate, distortion, epochs = [5.0, 15.0, 22.0], [180.0, 110.0, 95.0], [0, 10, 20]
    figure = figures.rate_distortion(rate, distortion, epochs, "")
    axis = figure.axes[0]
    (dots,) = (found for found in axis.collections if isinstance(found, PathCollection))
    np.testing.assert_array_equal(dots.get_offsets(), np.transpose([rate, distortion]))
    np.testing.assert_array_equal(dots.get_array(), epochs)
    (lines,) = (found for found in axis.collections if isinstance(found, QuadContourSet))
    segments = [
        (level, path) for level, path in zip(lines.levels, lines.get_paths(), strict=True) if len(path.vertices)
    ]
    assert len(segments) >= 3
    for level, path in segments:
        np.testing.assert_allclose(path.vertices.sum(axis=1), level)
    assert axis.get_legend().get_texts()[0].get_text() == "epoch 20: rate 22 + distortion 95 = 117 nats"
    figures.rate_distortion([5.0], [9.0], [0], "")


# --- the latent space ---------------------------------------------------------------------------------------


def test_the_principal_components_name_their_true_share_of_the_variance():
    mu = RNG.normal(size=(80, 4)) @ RNG.normal(size=(4, 4))
    (axis,) = figures.latents(torch.tensor(mu), torch.arange(80) % 3, "", TEN).axes
    share = 100 * np.linalg.eigvalsh(np.cov(mu.T))[::-1] / np.trace(np.cov(mu.T))
    for label, expected in zip((axis.get_xlabel(), axis.get_ylabel()), share, strict=False):
        assert f"({expected:.1f} % of variance)" in label
    points = np.asarray(axis.collections[0].get_offsets())
    np.testing.assert_allclose(100 * points.var(0) / mu.var(0).sum(), share[:2])
    assert axis.get_aspect() == 1


def test_two_latents_are_shown_as_they_are_and_coloured_as_in_the_legend():
    mu, labels = RNG.normal(size=(12, 2)), np.array([0, 4, 7] * 4)
    figure = figures.latents(mu, labels, "", [f"digit {k}" for k in range(10)])
    (dots,) = figure.axes[0].collections
    np.testing.assert_array_equal(dots.get_offsets(), mu)
    legend = {
        text.get_text(): to_rgb(handle.get_color())
        for text, handle in zip(figure.legends[0].get_texts(), figure.legends[0].legend_handles, strict=True)
    }
    assert list(legend) == ["digit 0", "digit 4", "digit 7"]
    for label, colour in zip(labels, dots.get_facecolors(), strict=True):
        np.testing.assert_allclose(colour[:3], legend[f"digit {label}"])


def test_one_latent_is_a_histogram_per_class_where_its_values_are():
    mu = np.concatenate([np.full(5, -2.0), np.full(9, 1.0)])
    (axis,) = figures.latents(mu[:, None], [3] * 5 + [8] * 9, "", TEN).axes
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["8", "3"]
    for patch, value in zip(
        (p for p in axis.patches if isinstance(p, StepPatch) and p.get_fill()), [1, -2], strict=True
    ):
        heights, edges, _ = patch.get_data()
        peak = heights.argmax()
        assert edges[peak] <= value <= edges[peak + 1]


def test_a_collapsed_posterior_can_be_drawn():
    (axis,) = figures.latents(np.full((6, 3), 0.5), np.arange(6), "", TEN).axes
    assert "no variance" in axis.get_xlabel()
    figures.latents(np.full((6, 2), 0.5), np.arange(6), "", TEN)
    figures.latents(np.full((6, 1), 0.5), np.arange(6), "", TEN)


@pytest.mark.parametrize("dims", [1, 7, 200])
def test_kl_bars_are_sorted_coloured_by_activity_and_summed(dims):
    kl = RNG.permutation(np.linspace(0, 4, dims + 1)[1:])
    active = kl > 1
    (axis,) = figures.kl_per_latent(torch.tensor(kl), "", torch.tensor(active)).axes
    heights = [bar.get_height() for bar in axis.patches]
    assert heights == sorted(kl, reverse=True)
    assert [to_rgb(bar.get_facecolor()) == to_rgb(colours.LIGHT["dev"]) for bar in axis.patches] == [
        h > 1 for h in heights
    ]
    assert f"{kl.sum():.4g} nats" in axis.get_title(loc="left")
    assert f"active: {active.sum()} of {dims}" in [text.get_text() for text in axis.get_legend().get_texts()]
    if dims == 7:
        assert [tick.get_text() for tick in axis.get_xticklabels()] == [f"z{k}" for k in np.argsort(-kl)]


# --- noise and samples --------------------------------------------------------------------------------------


def test_sigma_images_share_one_scale_over_their_channels():
    figure = figures.heat_map(COLOUR[0], "sigma", "")
    for image, channel in zip(drawn(figure), COLOUR[0], strict=False):
        np.testing.assert_array_equal(image, channel)
    assert {image.get_clim() for axis in figure.axes[:3] for image in axis.images} == {(0, COLOUR[0].max())}


def test_residuals_say_their_moments_and_their_density_is_one():
    values = 1.7 * RNG.normal(size=(40, 3, 50)) + 0.2
    (axis,) = figures.residuals(values, "").axes
    text = axis.get_legend().get_texts()[0].get_text().replace("\u2212", "-")
    mean, sd, beyond = (float(number) for number in re.findall(r"(-?\d+\.\d+)", text))
    assert mean == pytest.approx(values.mean(), abs=5e-4)
    assert sd == pytest.approx(values.std(), abs=5e-4)
    assert beyond == pytest.approx(100 * (abs(values) > 3).mean(), abs=5e-3)
    heights, edges, _ = axis.patches[0].get_data()
    inside = (abs(values) <= edges[-1]).mean()
    assert (heights * np.diff(edges)).sum() == pytest.approx(inside)
    at, normal = axis.lines[0].get_data()
    assert (normal * np.gradient(at)).sum() == pytest.approx(1, abs=1e-4)
    assert (normal * at**2 * np.gradient(at)).sum() == pytest.approx(1, abs=1e-3)


def test_a_spike_at_zero_turns_the_density_axis_logarithmic():
    (axis,) = figures.residuals(np.concatenate([np.zeros(900), RNG.normal(size=100)]), "").axes
    assert axis.get_yscale() == "log"


def test_class_counts_stand_beside_equal_shares():
    (axis,) = figures.class_histogram(torch.tensor([30, 0, 50, 20]), "", ["a", "b", "c", "d"]).axes
    assert [bar.get_height() for bar in axis.patches[:4]] == [30, 0, 50, 20]
    assert set(axis.lines[0].get_ydata()) == {25}
    assert notes(axis.figure)[1:] == ["30.0 %", "0.0 %", "50.0 %", "20.0 %"]
    assert "100 samples" in axis.get_title(loc="left")


# --- what is refused ----------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
HOLED = GREY.copy()
HOLED[1, 0, 2, 3] = NAN


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("x_hat", lambda: figures.reconstructions(GREY, HOLED, "")),
        (r"history\['dev/loss'\]", lambda: figures.losses({"train/loss": [(0, 1.0)], "dev/loss": [(0, INF)]}, "")),
        (r"history\['train_eval/loss'\]", lambda: figures.losses({**HISTORY, "train_eval/loss": [(0, NAN)]}, "")),
        ("baselines", lambda: figures.losses(HISTORY, "", {"mean image": NAN})),
        ("mu", lambda: figures.latents([[NAN, 0.0]], [0], "", TEN)),
        (r"rows\['b'\]", lambda: figures.samples({"a": GREY, "b": HOLED}, "")),
        ("images", lambda: figures.grid(HOLED, 2, "")),
        ("history", lambda: figures.sigma_history([(0, NAN)], "")),
        ("kl", lambda: figures.kl_per_latent([1.0, INF], "", [True, True])),
        ("rate", lambda: figures.rate_distortion([NAN], [1.0], [0], "")),
        ("distortion", lambda: figures.rate_distortion([1.0], [NAN], [0], "")),
        ("nearest", lambda: figures.neighbours(GREY, HOLED, [1, 2, 3], "")),
        ("distances", lambda: figures.neighbours(GREY, GREY, [1, 2, NAN], "")),
        ("sigma", lambda: figures.heat_map(np.full((1, 2, 2), NAN), "sigma", "")),
        ("r", lambda: figures.residuals([0.0, -INF], "")),
        ("counts", lambda: figures.class_histogram([1, NAN], "", "ab")),
    ],
)
def test_what_is_not_finite_is_refused_by_name(name, draw):
    with pytest.raises(ValueError, match=rf"^{name}: .* not finite"):
        draw()


@pytest.mark.parametrize(
    ("message", "draw"),
    [
        (r"x: shape \(3, 7, 5\), expected 4 dimensions", lambda: figures.reconstructions(GREY[:, 0], GREY, "")),
        (r"mu: shape \(3,\), expected 2 dimensions", lambda: figures.latents([0.0] * 3, [0, 1, 2], "", TEN)),
        ("kl: empty", lambda: figures.kl_per_latent([], "", [])),
        ("sigma: -1", lambda: figures.heat_map(np.full((1, 2, 2), -1), "sigma", "")),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(message, draw):
    with pytest.raises(ValueError, match=f"^{message}"):
        draw()


def test_the_first_bad_value_is_located():
    with pytest.raises(ValueError, match=r"1 of 105 values are not finite, the first is nan at index \(1, 0, 2, 3\)"):
        figures.grid(HOLED, 2, "")


# --- for every eye --------------------------------------------------------------------------------------------

# linear sRGB as eyes without one of the three cones see it: Machado et al. (2009), table 1, severity 1
CONES = {
    "all": np.eye(3),
    "no long": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no middle": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no short": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(colours, cones):
    """sRGB (n, 3) as CIELAB (n, 3) under these cones."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.transpose(CONES[cones])).clip(0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    xyz = seen @ np.transpose(to_xyz) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("cones", CONES)
@pytest.mark.parametrize("palette", [colours.CLASSES, colours.CLASSES_ON_DARK], ids=["light", "dark"])
def test_no_two_colours_of_the_palette_look_alike(cones, palette):
    points = lab(np.array([to_rgb(colour) for colour in palette]), cones)
    apart = min(np.linalg.norm(one - other) for one, other in combinations(points, 2))
    assert apart > 28
    if cones == "all":
        assert np.hypot(points[:, 1], points[:, 2]).min() > 40  # none is a grey


def test_class_names_on_the_plane_are_all_there_and_apart():
    """Three classes on one spot, and seven elsewhere."""
    middles = np.concatenate([np.zeros((3, 2)), RNG.normal(size=(7, 2)) * 3])
    labels = np.arange(200) % 10
    (axis,) = figures.latents(middles[labels] + 0.01 * RNG.normal(size=(200, 2)), labels, "", TEN).axes
    names = [text for text in axis.texts if text.get_text() in TEN]
    assert sorted(text.get_text() for text in names) == TEN
    pixels(axis.figure)
    boxes = [text.get_window_extent() for text in names]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_the_alternative_text_says_what_is_there_and_goes_into_the_files(tmp_path):
    figure = figures.kl_per_latent([1.0, 0.0, 3.0], "Dev split.", [True, False, True])
    figures.describe(figure, "Bar chart of KL")
    text = figures.alternative_text(figure)
    assert text == "Bar chart of KL. KL per latent: 4 nats in total. Dev split."
    for suffix in ("png", "svg", "pdf"):
        figures.write_figure(figure, tmp_path / f"kl.{suffix}")
    with Image.open(tmp_path / "kl.png") as picture:
        assert picture.text["Description"] == text
    drawing = (tmp_path / "kl.svg").read_text()
    assert text in drawing
    assert "KL (nats per image)</text>" in drawing  # text stays text
    assert (tmp_path / "kl.pdf").read_bytes().startswith(b"%PDF")


def test_files_of_one_figure_are_the_same_and_dpi_enlarges(tmp_path):
    figure = figures.grid(GREY, 2, "")
    for name in ("a", "b"):
        figures.write_figure(figure, tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    figures.write_figure(figure, tmp_path / "a.png")
    figures.write_figure(figure, tmp_path / "b.png", dpi=256)
    with Image.open(tmp_path / "a.png") as small, Image.open(tmp_path / "b.png") as large:
        assert [2 * side for side in small.size] == pytest.approx(large.size, abs=1)


# --- the aggregate and the true posterior ---------------------------------------------------------------------


def test_draws_of_the_prior_itself_lie_on_the_line_of_the_qq_plot():
    drawn, prior = RNG.normal(size=(40_000, 1)), RNG.normal(size=(40_000, 1))
    same, wider = (figures.aggregate_posterior(k * drawn, prior, ["z0"], "").axes[1].lines[1] for k in (1, 3))
    x, y = same.get_data()
    assert np.abs(x - y)[5:-5].max() < 0.1
    slope = np.polyfit(*wider.get_data(), 1)[0]
    assert slope == pytest.approx(3, rel=0.05)


def test_contours_hold_half_and_nearly_all_of_a_density():
    """Of a normal in the plane, a share s lies within r^2 = -2 log(1 - s)."""
    axis = figures.true_posteriors([panel(2)], [""], "", ["z0", "z1"]).axes[0]
    paths = [path for found in axis.collections for path in found.get_paths()]
    radii = sorted({round(float(np.linalg.norm(path.vertices, axis=1).mean()), 1) for path in paths[:2]})
    assert radii == pytest.approx(sorted(np.sqrt(-2 * np.log([0.5, 0.05]))), abs=0.15)


# --- files --------------------------------------------------------------------------------------------------


def test_a_written_figure_replaces_a_picture_whole_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "figures" / "grid.png"
    figures.write_figure(figures.grid(GREY, 1, "One column."), path)
    figure = figures.grid(GREY, 3, "Three columns.")
    figures.write_figure(figure, path)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), pixels(figure))
    assert [found.name for found in path.parent.iterdir()] == ["grid.png"]


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OSError, match="taken"):
        figures.write_figure(figures.sigma_history([(0, 1.0)], ""), tmp_path / "taken.png")
    assert [found.name for found in tmp_path.iterdir()] == ["taken.png"]
