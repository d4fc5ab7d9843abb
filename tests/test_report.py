"""`vae report`: the page of a run and of a sweep, their words without a browser and their behaviour in one."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import frame, requests, serious_faults, wait
from conftest import SHORT, process

from vae.commands import report_sweep
from vae.commands.meanings import meaning
from vae.commands.report import charts, report
from vae.errors import InputError
from vae.run.compare import Table, frame_of, summarise
from vae.run.records import RunRecord

NAME = "a <script>alert(1)</script> run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose name and log carry a script; a slash in a name would be a folder."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    ended = process(*SHORT, "trainer.max_epochs=2", "threads=1", f"run_dir={directory}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with open(directory / "train.log", "a") as log:
        log.write("2026-01-01 00:00:00,000 WARNING <script>alert(2)</script>\n")
    return directory.rename(directory.with_name(NAME.replace("/", "")))


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "run.html"
    report(str(run), path, 25)
    return path


@pytest.fixture(scope="module")
def sweep_page(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a copy with one run whose key holds a script, and one that has not ended."""
    copy = tmp_path_factory.mktemp("sweeps") / "<script>alert(3)"
    shutil.copytree(sweep, copy)
    runs = sorted(path.parent for path in copy.rglob("metrics.json"))
    (runs[0] / "metrics.json").unlink()
    config = runs[1] / "config.yaml"
    config.write_text(re.sub(r"^  root: .*$", "  root: <script>alert(4)</script>", config.read_text(), flags=re.M))
    path = tmp_path_factory.mktemp("pages") / "sweep.html"
    report(str(copy), path, 0)
    return path


class Cells(HTMLParser):
    """The rows of a page's tables, and the alternative texts of its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.alts: list[str] = []
        self.inside = False  # a cell, and no small print
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag == "img":
            self.alts.append(dict(attrs)["alt"] or "")
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = tag in ("td", "th") or (self.inside and tag != "small")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def rows_of(page: Path) -> dict[str, list[str]]:
    return {row[0].strip(): row[1:] for row in Cells(page.read_text()).rows if row}


def test_the_page_says_what_metrics_json_says(page: Path, run: Path) -> None:
    metrics, rows = json.loads((run / "metrics.json").read_text()), rows_of(page)
    dev, test = rows["reconstruction"]
    assert float(dev.split(" ±\u00a0")[0]) == pytest.approx(metrics["dev/reconstruction"], rel=1e-2)
    assert float(test.split(" ±\u00a0")[0]) == pytest.approx(metrics["test/reconstruction"], rel=1e-2)
    assert "reconstruction <small>in squared error per image</small>" in page.read_text()
    assert rows["this run"] == [rows["loss"][0], rows["reconstruction"][0]]
    assert float(rows["mean image"][1]) > float(rows["PCA 2"][1]) > float(rows["PCA 4"][1]) > 0
    assert rows["dropout"] == ["0.3", "0.3"]
    assert rows["git_commit"] == [str(metrics["provenance"]["git_commit"])]


def test_keys_that_differ_come_first_and_pictures_before_numbers(page: Path) -> None:
    text = page.read_text()
    changed, unchanged = text.partition('id="configuration"')[2].split("<summary>All other keys")
    first = set(re.findall(r'<th scope="row"><code>([\w.]+)</code>', changed))
    assert {"latent_dim", "model.encoder.hidden", "trainer.max_epochs", "data.batch_size"} <= first
    assert not first & {"run_dir", "seed", "dropout", "objective.samples", "threads"}
    assert "<code>dropout</code>" in unchanged
    assert "_target_" not in changed + unchanged
    places = [text.index(f"<strong>{name}</strong>") for name in ("reconstructions", "samples", "manifold", "losses")]
    assert places[:3] < [text.index('id="results"')] * 3 < places[3:] * 3


def test_every_picture_has_words(page: Path, run: Path) -> None:
    alts = Cells(page.read_text()).alts
    assert len(alts) == len(list((run / "figures").glob("*.png"))) > 3
    assert all(len(alt) > 10 for alt in alts)


def test_a_script_in_a_name_or_log_is_text(page: Path, sweep_page: Path) -> None:
    for path in (page, sweep_page):
        assert not re.search(r"<script>alert", path.read_text())
    assert "&lt;script&gt;alert(2)" in page.read_text()


def test_the_charts_are_the_history(page: Path) -> None:
    found = [json.loads(unescape(data)) for data in re.findall(r'data-chart="([^"]*)"', page.read_text())]
    loss = next(chart for chart in found if chart["title"] == "Loss")
    assert [one["name"] for one in loss["series"]] == ["train/loss", "train_eval/loss", "dev/loss"]
    assert loss["series"][2]["x"] == [1, 2]
    assert float(rows_of(page)["loss"][0].split(" ±\u00a0")[0]) == pytest.approx(min(loss["series"][2]["y"]), rel=1e-2)


def test_constant_curves_are_left_out() -> None:
    rows = [{"epoch": e, "step": e, "dev/loss": 3.0 - e, "train/beta": 1.0, "lr": 0.1} for e in (1, 2)]
    assert [chart["title"] for chart in charts(rows)] == ["Loss"]


def test_an_unfinished_run_says_so(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "half"
    shutil.copytree(run, copy)
    (copy / "metrics.json").unlink()
    (copy / "checkpoints" / "last.ckpt").unlink()
    report(str(copy), tmp_path / "half.html", 0)
    text = (tmp_path / "half.html").read_text()
    assert "The run is unfinished: epoch 2 of 2." in text
    assert "No data set was read" in text
    assert 'id="results"' not in text


def test_the_sweep_s_page_holds_the_table_of_vae_compare(sweep_page: Path, sweep: Path) -> None:
    rows = Cells(sweep_page.read_text()).rows
    head = next(row for row in rows if "seeds" in row)
    assert head[:4] == ["latent_dim", "model", "seeds", "dev/loss"]
    shown = [row for row in rows if row and row[0] in ("2", "3")]
    assert len({tuple(row[:2]) for row in shown}) == len(shown) == 3
    assert {row[1] for row in shown} == {"mlp", "conv"}
    assert "Not in the tables:" in sweep_page.read_text()


def test_a_sweep_is_compared_by_a_metric_and_its_best_runs_are_drawn(sweep: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sweep, tmp_path / "sweep"))
    best = min(copy.glob("*/metrics.json"), key=lambda file: json.loads(file.read_text())["dev/kl"]).parent
    shutil.rmtree(best / "figures")
    before = sorted(copy.rglob("*"))
    report(str(copy), tmp_path / "page.html", 1, metrics=["dev/kl"])
    found = Cells((tmp_path / "page.html").read_text())
    assert sorted(copy.rglob("*")) == before
    assert found.rows[0][:4] == ["latent_dim", "model", "seeds", "dev/kl"]
    assert ["key", "value", "against", "pairs"] in [row[:4] for row in found.rows]
    assert len(found.alts) == 3 * 2
    assert "No pictures" not in (tmp_path / "page.html").read_text()
    with pytest.raises(InputError, match="is one run"):
        report(str(best), tmp_path / "run.html", 0, metrics=["dev/kl"])


def test_the_best_run_is_the_one_with_the_lowest_loss_or_the_highest_elbo() -> None:
    runs = [
        RunRecord(Path(str(n)), {"seed": n}, {"dev/loss": n, "dev/elbo": n, "dev/neg_elbo": n}, "finished")
        for n in (2, 1, 3)
    ]
    for metric, best in {"dev/loss": "1", "dev/elbo": "3", "dev/neg_elbo": "1"}.items():
        table = Table([metric], {}, frame_of(runs, [{"k": "v"}] * 3))
        (name, record), *_ = report_sweep.best_first(table, metric)
        assert (name, record.name) == (f"k=v, seed {best}", best)


def test_effects_are_means_over_all_other_keys() -> None:
    pairs = [(a, b) for a in (1, 2) for b in (3, 5)]
    records = [RunRecord(Path("r"), {"seed": 0}, {"m": 10 * a + b}, "finished") for a, b in pairs]
    table = Table(["m"], {}, frame_of(records, [{"a": str(a), "b": str(b)} for a, b in pairs]))
    table.rows = summarise(table, ["a", "b"])
    effect, _ = report_sweep.effect_charts(table, "m")
    runs, means = effect["series"]
    assert (runs["x"], runs["y"]) == (["1", "1", "2", "2"], [13, 15, 23, 25])
    assert (means["x"], means["y"]) == (["1", "2"], [14, 24])


def test_a_folder_of_runs_without_a_result_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "all" / "one")
    (tmp_path / "all" / "one" / "metrics.json").unlink()
    with pytest.raises(InputError, match="none of its 1 runs is finished"):
        report(str(tmp_path / "all"), tmp_path / "page.html", 0)
    assert not (tmp_path / "page.html").exists()


def test_metrics_have_meanings() -> None:
    for name in ("test/nll", "loss", "samples/frechet_convnet-3dc1e330", "train_eval/loss", "active_units"):
        assert meaning(name)
    assert meaning("own/thing") == ""


# ---- the browser


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[[Path], Any]]:
    def opens(page: Path) -> Any:
        requests(browser)
        browser.get(page.as_uri())
        wait(browser, "window.charts !== undefined")
        return browser

    yield opens
    assert browser.get_log("browser") == []
    assert requests(browser) == []


@pytest.mark.browser
@pytest.mark.parametrize("which", ["page", "sweep_page"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_axe_finds_nothing_serious_and_nothing_runs_over_the_edge(
    which: str, scheme: str, width: int, opened: Callable[[Path], Any], request: pytest.FixtureRequest, browser: Any
) -> None:  # fmt: skip
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver = opened(request.getfixturevalue(which))
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert serious_faults(driver) == []


@pytest.mark.browser
def test_charts_are_drawn_and_read_by_keyboard(opened: Callable[[Path], Any], page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    driver = opened(page)
    chart = driver.find_element("css selector", ".chart")
    driver.execute_script("arguments[0].scrollIntoView()", chart)
    wait(driver, "document.querySelector('.chart .scatterlayer') !== null")
    assert len(chart.find_elements("css selector", ".scatterlayer .trace")) == 3
    before = driver.execute_script("return arguments[0]._fullLayout.yaxis.range", chart)
    chart.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    wait(driver, "document.querySelector('.chart + [role=status]').textContent.includes('epoch 2')")
    said = driver.find_element("css selector", ".chart + [role=status]").text
    assert re.fullmatch(r"train_eval/loss, epoch 2: [\d.]+", said)
    chart.send_keys("+")
    wait(driver, "document.querySelector('.chart')._fullLayout.yaxis.autorange === false")
    after = driver.execute_script("return arguments[0]._fullLayout.yaxis.range", chart)
    assert before[0] < after[0] < after[1] < before[1]


@pytest.mark.browser
def test_the_explorer_stands_in_the_page(opened: Callable[[Path], Any], page: Path) -> None:
    driver = opened(page)
    wait(driver, "window.explorer !== undefined")
    assert driver.find_element("tag name", "h1").text == NAME.replace("/", "")


@pytest.mark.browser
def test_it_prints(opened: Callable[[Path], Any], page: Path) -> None:
    """As PDF: white paper, and every section is there."""
    import base64

    driver = opened(page)
    printed = driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    charts = driver.find_elements("css selector", ".chart")
    assert len(driver.find_elements("css selector", ".chart .scatterlayer")) == len(charts) > 2
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    colour = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert colour == "rgb(255, 255, 255)"


THREE = (  # moves of the pen, in pixels of the screen
    (-45, -55), (35, -20), (35, 10), (10, 25), (-25, 30), (-20, 5), (30, 5), (25, 25), (-10, 35), (-35, 15), (-45, -15)
)  # fmt: skip


def draw_a_three(driver: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = driver.find_element("id", "drawing")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    pen = ActionChains(driver, duration=20).move_to_element_with_offset(canvas, *THREE[0]).click_and_hold()
    for move in THREE[1:]:
        pen.move_by_offset(*move)
    pen.release().perform()
    frame(driver)


@pytest.mark.browser
def test_screenshots_for_the_docs(browser: Any, run: Path, tmp_path: Path) -> None:
    """Of the run that VAE_PAGE_RUN names, into VAE_SCREENSHOTS; else of a small one, thrown away."""
    from PIL import Image

    folder, page = Path(os.environ.get("VAE_SCREENSHOTS", tmp_path)), tmp_path / "page.html"
    report(os.environ.get("VAE_PAGE_RUN", str(run)), page, 1000)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.set_window_size(1100, 1250)
    browser.get(page.as_uri())
    wait(browser, "window.charts !== undefined && window.explorer !== undefined")
    draw_a_three(browser)
    assert len(set(browser.execute_script("return Array.from(window.explorer.seen())"))) > 1
    for name, selector in {"report_page": "#results", "report_curves": "#curves", "explorer": "#explorer"}.items():
        browser.execute_script("document.querySelector(arguments[0]).scrollIntoView()", selector)
        if selector == "#curves":
            wait(browser, "document.querySelectorAll('.chart .scatterlayer').length > 1")
        frame(browser)
        browser.save_screenshot(str(folder / f"{name}.png"))
        with Image.open(folder / f"{name}.png") as shown:
            assert len(shown.convert("L").getcolors()) > 20
            shown.convert("RGB").quantize(256).save(folder / f"{name}.png", optimize=True)


DRAG = """const done = arguments[0], slider = document.querySelector("#sliders input"), times = [];
    function step(now) {
        times.push(now);
        slider.value = +slider.min + (times.length / 90) * (slider.max - slider.min);
        slider.dispatchEvent(new Event("input"));
        if (times.length < 90) requestAnimationFrame(step);
        else done(times.slice(1).map((t, i) => t - times[i]));
    }
    requestAnimationFrame(step);"""  # milliseconds between frames
FRAME = """const start = performance.now();
    for (let i = 0; i < 50; i++) window.explorer.show();
    return (performance.now() - start) / 50"""  # milliseconds


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_is_quick(browser: Any, run: Path, tmp_path: Path) -> None:
    """Interactive in 2 s, 30 frames a second, 8 MB; of the run that VAE_PAGE_RUN names. Prints what it measured."""
    page = tmp_path / "page.html"
    report(os.environ.get("VAE_PAGE_RUN", str(run)), page, 1000)
    browser.get(page.as_uri())
    wait(browser, "window.charts !== undefined && window.explorer !== undefined")
    marks = "return ['explorer', 'charts'].map((name) => performance.getEntriesByName(name)[0].startTime)"
    explorer, charts = browser.execute_script(marks)
    between, cost = browser.execute_async_script(DRAG), browser.execute_script(FRAME)
    rate = 1000 * len(between) / sum(between)
    print(f"{page.stat().st_size / 1e6:.2f} MB, explorer after {explorer:.0f} ms, charts after {charts:.0f} ms")
    print(f"a dragged slider: {rate:.0f} frames a second, worst {max(between):.0f} ms; a frame costs {cost:.1f} ms")
    assert page.stat().st_size < 8e6
    assert max(explorer, charts) < 2000
    assert rate > 30
