"""Every key and every option: it composes, it builds, it trains, it changes the run, and what it may not be is said."""

import copy
import functools
import hashlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import SHORT, SMALL, composed, settings_of
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from test_downloads import publish, put, small_set

from vae.data import KMNIST, MNIST, FashionMNIST
from vae.errors import InputError
from vae.run import command, results, settings
from vae.run.build import build, build_objective
from vae.run.directory import NOT_IDENTITY, Run
from vae.run.keys import CONF, leaves
from vae.run.parts import EXTRAS, known_keys
from vae.run.trainer import build_trainer
from vae.training.checkpoints import SaveLast
from vae.training.dashboard import Dashboard
from vae.training.history import History
from vae.training.hparams import Sheet
from vae.training.lit import LitVAE
from vae.training.signals import GracefulStop

pytestmark = [
    # Lightning's opinions on the number of workers and of steps between log lines
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
]
Settings = dict[str, Any]
CONF = Path(CONF)
CONVOLUTIONS = (
    "data=digits",
    "dropout=0.3",
    "latent_dim=2",
    "model=conv",
    *(f"model.{half}.{key}" for half in ("encoder", "decoder") for key in ("channels=[2,3]", "hidden=[5]")),
)
NEEDS = {  # what an option cannot do without
    "likelihood=bernoulli": ("data.binarize=dynamic",),
    "objective=iwae": ("objective.samples=3", "likelihood=gaussian"),
    "prior=vamp": ("prior.inputs=3",),
    "data=sprites": ("data.size=9", "data.count=300"),
    "experiment=sprites": ("data.test_size=300", "data.count=900"),
    "data=folder": ("data.path=mine",),
    "data=npz": ("data.path=mine.npz",),
}
ELSEWHERE = {  # files, other devices
    "data=mnist", "data=fashion_mnist", "data=kmnist", "data=cifar10", "data=svhn", "data=emnist", "data=omniglot",
    "data=folder", "data=npz", "trainer=gpu", "trainer=mps", "trainer=ddp",
}  # fmt: skip


def options() -> list[str]:
    """Every `group=option` there is; `base` is what the options of a group share."""
    files = [path for path in CONF.rglob("*/*.yaml") if path.stem not in ("base", "own")]
    many_runs = ("sweep", "tune", "launcher", "reproduce")
    files = [path for path in files if path.parent.name not in many_runs]
    absent = {f"logger={name}" for name in EXTRAS if find_spec(name) is None}  # refused, see test_trainer.py
    return sorted({f"{path.parent.relative_to(CONF)}={path.stem}" for path in files} - absent)


def fitted(s: Settings, **more: Any) -> tuple[LitVAE, Trainer]:
    lit, data = build(s)
    trainer = Trainer(**trainer_options(s) | more, **QUIET)
    trainer.fit(lit, datamodule=data)
    return lit, trainer


QUIET: Settings = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def trainer_options(s: Settings) -> dict[str, Any]:
    return {key: value for key, value in s.plain["trainer"].items() if key != "enable_progress_bar"}


# --- every option -----------------------------------------------------------------------------------------------------


def small_with(option: str) -> tuple[str, ...]:
    """A small configuration with this option, after which its keys stand."""
    convolutional = option in ("model=conv", "experiment=report_conv_decoder")
    half = {"model/encoder=conv": "encoder", "model/decoder=conv": "decoder", "experiment=report_conv": "encoder"}
    channels = [f"model.{half[option]}.channels=[2,3]"] if option in half else []
    base = CONVOLUTIONS if convolutional else (*SMALL, *channels)
    name = option.partition("=")[0]
    replaced = (name, "data") if option == "experiment=sprites" else (name,)
    kept = [given for given in base if given.partition("=")[0] not in replaced]
    lengths = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "data.eval_batch_size=50"]
    return (*kept, *lengths, *([] if name == "evaluation" else ["evaluation=none"]), option, *NEEDS.get(option, ()))


@pytest.mark.parametrize("option", [o for o in options() if o not in ELSEWHERE])
def test_option_trains_two_steps(option: str) -> None:
    s = settings_of(*small_with(option))
    before = build(s)[0].state_dict()
    lit, trainer = fitted(s, limit_val_batches=1)
    assert trainer.global_step == 2
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert torch.isfinite(trainer.callback_metrics["dev/loss"])
    assert any(not torch.equal(value, before[name]) for name, value in lit.state_dict().items())


@pytest.mark.parametrize(("name", "kind"), [("mnist", MNIST), ("fashion_mnist", FashionMNIST), ("kmnist", KMNIST)])
def test_data_option_trains_on_its_files(
    name: str, kind: type[MNIST], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = small_set()
    publish(monkeypatch, contents, kind)
    put(tmp_path, contents, kind)
    base = [given for given in SHORT if given != "data=digits"]
    s = settings_of(*base, f"data={name}", f"data.root={tmp_path}", "data.dev_size=9", "data.batch_size=5")
    lit, trainer = fitted(s)
    assert trainer.global_step == 2
    assert lit.vae.image_shape == (1, 5, 7)
    assert torch.isfinite(trainer.callback_metrics["dev/loss"])


def test_trainer_options_name_their_devices() -> None:
    assert settings_of("trainer=gpu").plain["trainer"] == settings_of().plain["trainer"] | {"accelerator": "gpu"}
    assert settings_of("trainer=cpu").plain["trainer"] == settings_of().plain["trainer"] | {"accelerator": "cpu"}
    trainer = Trainer(**trainer_options(settings_of("trainer=ddp")), **QUIET)
    assert (trainer.num_devices, trainer.world_size) == (2, 2)
    assert type(trainer.strategy).__name__ == "DDPStrategy"


def test_default_configuration_is_the_report_s() -> None:
    """The report's MLP with its likelihood, optimizer and length."""
    found = dict(leaves(settings_of().plain))
    report = {
        "latent_dim": 4, "dropout": 0.3, "seed": 0,
        "model.encoder.hidden": [200, 200, 200], "model.encoder.activation": "relu", "model.encoder.dropout": 0.3,
        "model.decoder.hidden": [200, 200, 200], "model.decoder.activation": "relu", "model.decoder.dropout": 0,
        "likelihood._target_": "vae.likelihoods.SquaredErrorHead", "likelihood.reconstruct": "sample",
        "objective._target_": "vae.objectives.ELBO", "objective.samples": 1, "objective.free_bits": 0,
        "objective.beta._target_": "vae.schedules.constant", "objective.beta.value": 1,
        "data._target_": "vae.data.MNIST", "data.batch_size": 100, "data.split": "last", "data.binarize": "none",
        "optimizer._target_": "torch.optim.Adam", "optimizer.lr": 1e-3, "optimizer.weight_decay": 1e-5,
        "scheduler._target_": None, "trainer.max_epochs": 70, "trainer.gradient_clip_val": None,
    }  # fmt: skip
    assert {key: found[key] for key in report} == report


def test_recipes_are_differences_from_the_report_s_model() -> None:
    default = settings_of().plain
    conv, both = (settings_of(f"experiment={name}").plain for name in ("report_conv", "report_conv_decoder"))
    assert settings_of("experiment=report_mlp").plain | {"run_dir": ""} == default | {"run_dir": ""}
    mean = settings_of("experiment=report_mlp_mean").plain["likelihood"]
    assert mean == default["likelihood"] | {"reconstruct": "mean"}
    assert conv["model"]["encoder"]["_target_"] == both["model"]["encoder"]["_target_"] == "vae.networks.ConvEncoder"
    assert conv["model"]["decoder"] == default["model"]["decoder"]
    assert both["model"]["decoder"]["_target_"] == "vae.networks.ConvDecoder"


def test_a_key_on_the_command_line_wins_over_a_recipe() -> None:
    assert (
        settings_of("experiment=report_mlp_mean", "likelihood.reconstruct=sample").plain["likelihood"]
        == (settings_of().plain["likelihood"])
    )


# --- every key --------------------------------------------------------------------------------------------------------


def weights(s: Settings) -> str:
    """All that two steps make of a model, names and shapes included."""
    lit, _ = fitted(s, limit_val_batches=0)
    digest = hashlib.sha256()
    for name, value in lit.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return digest.hexdigest()


def rates(s: Settings) -> list[float]:
    """The learning rate of eight epochs whose dev loss never falls."""
    lit = build(s)[0]
    found = lit.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]
    seen = []
    for _ in range(8):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step(*([1.0] if "monitor" in schedule else []))
    return seen


def cycled(s: Settings) -> tuple[float, Any]:
    """The learning rate and the betas in the midst of a cycle that goes by steps."""
    _, trainer = fitted(s, limit_val_batches=0)
    group = trainer.optimizers[0].param_groups[0]
    return group["lr"], group["betas"]


def optimizer_of(s: Settings) -> Any:
    return build(s)[0].configure_optimizers().defaults


def devices(s: Settings) -> tuple[Any, ...]:
    trainer = Trainer(**trainer_options(s), **QUIET)
    return type(trainer.strategy.launcher), trainer.num_devices, trainer.num_nodes


def determinism(s: Settings) -> bool:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        Trainer(**trainer_options(s), **QUIET)
        return torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


def watchers(s: Settings) -> list[tuple[Any, ...]]:
    """Of the trainer's callbacks, what they watch and how patiently."""
    run = Run(Path("nowhere"), s)
    last = SaveLast("nowhere", 1)
    trainer = build_trainer(
        run,
        build(s)[0],
        History(),
        Dashboard(History(), 0, 0, "", dict, {}, Sheet({}, {})),
        GracefulStop(last.save),
        last,
    )
    return [
        (type(c), getattr(c, "monitor", None), getattr(c, "mode", None), getattr(c, "patience", None))
        for c in trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
    ]


class Case(NamedTuple):
    """A key's other value, the configuration in which it matters, and where its effect is seen."""

    value: Any
    given: tuple[str, ...] = SHORT
    sees: Callable[[Settings], Any] = weights


TWO = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "evaluation=none")
CONV = (*CONVOLUTIONS, *TWO)
GAUSSIAN = (*SHORT, "likelihood=gaussian")
LINEAR = (*SHORT, "objective/beta=linear", "objective.beta.steps=4")
CYCLIC = (*SHORT, "objective/beta=cyclic", "objective.beta.period=4")
SGD = (*SHORT, "optimizer=sgd")
RMSPROP = (*SHORT, "optimizer=rmsprop")
PLATEAU = (*SHORT, "scheduler=plateau", "scheduler.patience=1", "scheduler.factor=0.01")
WARMUP = (*SMALL, "scheduler=warmup_cosine", "trainer.max_epochs=20")
COSINE = (*SMALL, "scheduler=cosine")
ONE_CYCLE = (*SMALL, "scheduler=one_cycle", "trainer.max_epochs=3", "scheduler.epochs=5")
VAMP = (*SHORT, "prior=vamp", "prior.inputs=3")
FLOW = (*SHORT, "prior=flow", "prior.hidden=3", "prior.layers=1")
IAF = (*SHORT, "posterior=iaf", "posterior.hidden=3", "posterior.layers=1")
SPRITES = (*(given for given in SHORT if given != "data=digits"), "data=sprites", "data.size=9", "data.count=300")
STEP = (*SHORT, "scheduler=step", "scheduler.step_size=3")


def halves(key: str, value: Any, given: tuple[str, ...]) -> dict[str, Case]:
    return {f"model.{half}.{key}": Case(value, given) for half in ("encoder", "decoder")}


CASES: dict[str, Case] = {
    "latent_dim": Case(3),
    "model.conditional": Case(True),
    "dropout": Case(0.0),
    "seed": Case(1),
    **halves("hidden", [6, 5], SHORT),
    **halves("activation", "tanh", SHORT),
    **halves("dropout", 0.5, SHORT),
    **halves("channels", [2, 3, 4], CONV),
    **halves("kernel_size", 4, CONV),
    **halves("stride", 1, CONV),
    **halves("padding", 0, CONV),
    **halves("pool", "max", CONV),
    **halves("norm", "batch", CONV),
    "model.decoder.init_bias": Case("data"),
    "prior.components": Case(2, (*SHORT, "prior=mixture")),
    "prior.inputs": Case(2, VAMP),
    "prior.layers": Case(2, FLOW),
    "prior.hidden": Case(4, FLOW),
    "posterior.layers": Case(2, IAF),
    "posterior.hidden": Case(4, IAF),
    "likelihood.reconstruct": Case("mean"),
    "likelihood.mean": Case("sigmoid", (*SHORT, "likelihood.mean=linear")),
    "likelihood.sigma": Case("shared", GAUSSIAN),
    "likelihood.min_sigma": Case(0.5, (*GAUSSIAN, "likelihood.sigma=pixel")),
    "likelihood.min_scale": Case(0.5, (*SHORT, "likelihood=discretized_logistic")),
    "objective.samples": Case(3),
    "objective.free_bits": Case(5.0),
    "objective.gradient": Case("dreg", (*SHORT, "likelihood=gaussian", "objective=iwae", "objective.samples=3")),
    "objective.alpha": Case(1.0, (*SHORT, "objective=mmd")),
    "objective.mmd": Case(0.0, (*SHORT, "objective=mmd")),
    "objective.beta": Case(7),
    "objective.beta.value": Case(7.0),
    "objective.beta.start": Case(0.5, LINEAR),
    "objective.beta.end": Case(0.5, LINEAR),
    "objective.beta.steps": Case(3, LINEAR),
    "objective.beta.period": Case(2, CYCLIC),
    "objective.beta.ramp": Case(1.0, CYCLIC),
    "data.size": Case([9, 8], SPRITES),
    "data.grid": Case([2, 6, 40, 32, 32], SPRITES),
    "data.count": Case(290, SPRITES),
    "data.test_size": Case(9, SPRITES),
    "data.batch_size": Case(50),
    "data.dev_size": Case(200),
    "data.split": Case("random"),
    "data.split_seed": Case(1, (*SHORT, "data.split=random")),
    "data.binarize": Case("threshold"),
    "data.repeat": Case(2),
    "data.seed": Case(1),
    "optimizer.lr": Case(0.01),
    "optimizer.weight_decay": Case(0.5),
    "optimizer.betas": Case([0.5, 0.9]),
    "optimizer.eps": Case(0.1),
    "optimizer.fused": Case(False, SHORT, optimizer_of),
    "optimizer.alpha": Case(0.1, RMSPROP),
    "optimizer.momentum": Case(0.5, SGD),
    "optimizer.nesterov": Case(False, SGD),
    "optimizer.lr_decay": Case(0.5, (*SHORT, "optimizer=adagrad")),
    "scheduler.T_max": Case(10, COSINE, rates),
    "scheduler.eta_min": Case(1e-4, COSINE, rates),
    "scheduler.warmup": Case(3, WARMUP, rates),
    "scheduler.epochs": Case(10, WARMUP, rates),
    "scheduler.start_factor": Case(0.5, WARMUP, rates),
    "scheduler.step_size": Case(2, STEP, rates),
    "scheduler.gamma": Case(0.5, STEP, rates),
    "scheduler.milestones": Case([2], (*SHORT, "scheduler=multistep"), rates),
    "scheduler.factor": Case(0.1, PLATEAU, rates),
    "scheduler.patience": Case(2, PLATEAU, rates),
    "scheduler.min_lr": Case(1e-4, PLATEAU, rates),
    "scheduler.max_lr": Case(0.1, ONE_CYCLE, cycled),
    "scheduler.pct_start": Case(0.5, ONE_CYCLE, cycled),
    "scheduler.div_factor": Case(2.0, ONE_CYCLE, cycled),
    "scheduler.final_div_factor": Case(2.0, ONE_CYCLE, cycled),
    "scheduler.cycle_momentum": Case(True, ONE_CYCLE, cycled),
    "trainer.max_epochs": Case(2),
    "trainer.devices": Case(2, (*SHORT, "trainer=ddp", "trainer.devices=1"), devices),
    "trainer.strategy": Case("ddp_fork", (*SHORT, "trainer=ddp"), devices),
    "trainer.num_nodes": Case(2, (*SHORT, "trainer=ddp"), devices),
    "trainer.precision": Case("bf16-mixed"),
    "trainer.gradient_clip_val": Case(1.0, SGD),
    "trainer.accumulate_grad_batches": Case(2),
    "trainer.deterministic": Case(True, SHORT, determinism),
    "trainer.limit_train_batches": Case(1),
    "callbacks.monitor": Case("dev/kl", SHORT, watchers),
    "callbacks.early_stopping": Case(3, SHORT, watchers),
}
FIGURES = (
    "evaluation.samples", "evaluation.features", "evaluation.generated", "evaluation.probes",
    "evaluation.annealing", "evaluation.annealed",
)  # fmt: skip
# Values that may differ between two sittings: the same weights come out. `compile` is in a test of its own.
ANOTHER = {
    "run_dir": "elsewhere", "threads": 2, "checkpoint": "best", "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": False, "data.num_workers": 1, "data.eval_batch_size": 70,
    "callbacks.checkpoint_minutes": 0.5,
    "callbacks.figures_every": 3, "evaluation.cache_dir": "elsewhere", "evaluation.figures": True,
    "evaluation.formats": ["svg"], "evaluation.dpi": 200,
    "data.resident": True,
}  # fmt: skip
FETCHING = {
    "data.cache_dir": "elsewhere",
    "data.root": "elsewhere",
    "data.mirrors": ["https://example.org/"],
    "data.timeout": 1.5,
}  # not of digits


def changed(given: tuple[str, ...], key: str, value: Any) -> Settings:
    """One key set, before the others that are taken from it are filled in."""
    cfg: DictConfig = composed(*given)
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return settings.check(cfg)


@functools.cache
def unchanged(given: tuple[str, ...], sees: Callable[[Settings], Any]) -> Any:
    return sees(settings_of(*given))


@pytest.mark.parametrize("key", CASES)
def test_key_changes_the_run(key: str) -> None:
    case = CASES[key]
    before = unchanged(case.given, case.sees)
    assert case.sees(changed(case.given, key, case.value)) != before


@pytest.mark.parametrize("key", ANOTHER)
def test_free_key_changes_no_weight(key: str) -> None:
    s = changed(SHORT, key, ANOTHER[key])
    assert dict(leaves(s.plain))[key] != dict(leaves(settings_of(*SHORT).plain))[key]
    assert weights(s) == unchanged(SHORT, weights)


@pytest.mark.slow
def test_compiled_networks_train_alike() -> None:
    """To rounding: fused operations add up in another order."""
    plain = fitted(settings_of(*SHORT), limit_val_batches=0)[0]
    compiled = fitted(changed(SHORT, "compile", "default"), limit_val_batches=0)[0]
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_every_key_has_a_test() -> None:
    """A new key without a line in one of the tables above fails here."""
    elsewhere = {"compile", "data.path", "data.mode", "callbacks.extra", "logger"}
    assert set(CASES) | set(ANOTHER) | set(FIGURES) | set(FETCHING) | elsewhere == set(known_keys())
    assert set(ANOTHER) | set(FETCHING) | {"compile"} == set(NOT_IDENTITY)
    assert not set(CASES) & set(ANOTHER)


def test_every_value_of_the_tables_can_be_given_on_the_command_line() -> None:
    for given in {case.given for case in CASES.values()}:
        keys = {k: c.value for k, c in CASES.items() if c.given == given and k != "objective.beta"}
        written = [f"{key}={str(value).replace(' ', '')}" for key, value in (keys | ANOTHER).items()]
        found = dict(leaves(settings_of(*given, *[w.replace("None", "null") for w in written]).plain))
        assert {key: found[key] for key in keys} == keys


def test_an_interpolated_key_follows_until_it_is_set() -> None:
    s = settings_of("dropout=0.1", "seed=5", "trainer.max_epochs=9", "scheduler=cosine", "model=conv")
    assert s.plain["model"]["encoder"]["dropout"] == 0.1
    assert s.plain["model"]["decoder"]["dropout"] == 0
    assert s.plain["data"]["seed"] == 5
    assert s.plain["scheduler"]["T_max"] == 9
    assert settings_of("dropout=0.1", "model.encoder.dropout=0.2").plain["model"]["encoder"]["dropout"] == 0.2


def test_beta_is_a_number_or_a_schedule() -> None:
    def betas(*overrides: str) -> list[float]:
        objective: Any = build_objective(settings_of(*overrides))
        return [objective.beta(step) for step in range(6)]

    assert betas("objective.beta=0.25") == betas("objective.beta.value=0.25") == [0.25] * 6
    assert betas("objective/beta=linear", "objective.beta.steps=4") == [0, 0.25, 0.5, 0.75, 1, 1]


@pytest.fixture(scope="module")
def five_by_seven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """MNIST's files with images of 5x7 pixels, on which a classifier is trained in no time."""
    root, contents = tmp_path_factory.mktemp("data"), small_set(70, 20)
    put(root, contents)
    with pytest.MonkeyPatch.context() as patch:
        publish(patch, contents)
        base = [given for given in SHORT if given not in ("data=digits", "evaluation=none")]
        data = ("data=mnist", f"data.root={root}", "data.dev_size=20", f"evaluation.cache_dir={root}/cache")
        yield (*base, *data, "likelihood=gaussian", "evaluation.samples=2", "evaluation.generated=12")


def evaluated(s: Settings) -> dict[str, float]:
    lit, data = build(s)
    return results.evaluate(lit.eval(), data, s, 0)[0]


def test_evaluation_keys_change_the_figures(five_by_seven: tuple[str, ...], tmp_path: Path) -> None:
    base = evaluated(settings_of(*five_by_seven))
    assert base["test/nll_samples"] == 2
    assert any(name.startswith("samples/frechet_convnet-") for name in base)
    assert "test/knn_accuracy" in base
    assert evaluated(changed(five_by_seven, "evaluation.cache_dir", str(tmp_path))) == base

    more = evaluated(changed(five_by_seven, "evaluation.samples", 3))
    assert {name for name in base if more[name] != base[name]} >= {"test/nll", "test/nll_samples"}
    assert more["test/loss"] == base["test/loss"]
    assert not [n for n in evaluated(changed(five_by_seven, "evaluation.samples", 0)) if "nll" in n]

    more = evaluated(changed((*five_by_seven, "evaluation.annealing=4"), "evaluation.annealed", 7))
    assert more["annealing/images"] == 7
    assert more["annealing/steps"] == 4
    assert {name: more[name] for name in base} == base

    more = evaluated(changed(five_by_seven, "evaluation.generated", 15))
    assert all((more[n] != base[n]) == n.startswith("samples/frechet") for n in base if "precision" not in n
               and "recall" not in n and "entropy" not in n)  # fmt: skip

    without = evaluated(changed(five_by_seven, "evaluation.features", False))
    assert {n for n in base if n not in without} == {n for n in base if n.startswith("samples/")}
    without = evaluated(changed(five_by_seven, "evaluation.probes", False))
    assert set(base) - set(without) == {"test/knn_accuracy", "test/linear_probe_accuracy"}


def test_where_the_data_come_from_changes_no_weight(five_by_seven: tuple[str, ...]) -> None:
    assert set(FETCHING) <= set(NOT_IDENTITY)
    elsewhere = settings_of(*five_by_seven, "data.mirrors=[https://example.org/]", "data.timeout=1.5")
    assert weights(elsewhere) == weights(settings_of(*five_by_seven))


def test_the_data_set_changes_the_run(five_by_seven: tuple[str, ...]) -> None:
    s = settings_of(*five_by_seven)
    digits = copy.deepcopy(s.plain)
    digits["data"]["_target_"] = "vae.data.Digits"
    for key in ("root", "mirrors", "timeout"):
        del digits["data"][key]
    assert weights(settings.verify(digits)) != weights(s)


def test_every_key_of_conf_has_a_rule_and_every_rule_a_key() -> None:
    found: set[str] = set()
    for option in options():
        overrides = (option, *NEEDS.get(option, ())) if option in ELSEWHERE else small_with(option)
        found |= {key for key, _ in leaves(settings_of(*overrides).plain)}
    names = {key for key in found if key.rpartition(".")[2] not in ("_target_", "_partial_")}
    assert {name for name in names if not name.startswith("logger.")} == set(known_keys()) - {
        "callbacks.extra",
        "logger",
    }


def test_every_key_accepts_its_default_and_says_what_it_means_and_may_be() -> None:
    for name, key in known_keys().items():
        if isinstance(key.default, int | float | str | tuple):
            assert key.accepts(key.default), name
        assert key.allowed.count("\n") == 0 < len(key.allowed), name
        assert key.meaning, name


# --- what is refused --------------------------------------------------------------------------------------------------

NUMBER, WHOLE = "a number", "an integer"
REFUSED = {  # arguments: the key and value that the line names, and what it says of the allowed
    "latent_dim=0": ("latent_dim=0", ">= 1"),
    "latent_dim=-1": ("latent_dim=-1", WHOLE),
    "latent_dim=abc": ("latent_dim=abc", WHOLE),
    "latent_dim=true": ("latent_dim=true", WHOLE),
    "latent_dim=4.0": ("latent_dim=4.0", WHOLE),
    "latent_dim=null": ("latent_dim=null", WHOLE),
    "latent_dim='4'": ("latent_dim=4", WHOLE),
    "latent_dim=[4]": ("latent_dim=[4]", WHOLE),
    "optimizer.lr=fast": ("optimizer.lr=fast", NUMBER),
    "optimizer.lr=nan": ("optimizer.lr=nan", NUMBER),
    "optimizer.lr=inf": ("optimizer.lr=inf", NUMBER),
    "optimizer.lr=-inf": ("optimizer.lr=-inf", NUMBER),
    "optimizer.lr=0": ("optimizer.lr=0", "> 0"),
    "optimizer.betas=[0.9]": ("optimizer.betas=[0.9]", "a list of 2"),
    "optimizer.betas=[0.9,1]": ("optimizer.betas=[0.9,1]", "< 1"),
    "dropout=1": ("dropout=1", "< 1"),
    "data=folder": ("data.path", "a folder of PNG or JPEG images, for example data.path=mine"),
    "data=folder data.path=x data.mode=grey": ("data.mode=grey", "one of L, RGB, or null"),
    "data=folder data.path=x data.size=0": ("data.size=0", ">= 1"),
    "data=sprites data.grid=[3,2]": ("data.grid=[3,2]", "a list of 5"),
    "data.batch_size=0": ("data.batch_size=0", ">= 1"),
    "data.dev_size=0": ("data.dev_size=0", "null"),
    "data.split=first": ("data.split=first", "last, random"),
    "seed=-1": ("seed=-1", ">= 0"),
    "seed=9223372036854775808": ("seed=9223372036854775808", "< 2^63"),
    "run_dir=": ("run_dir=", "not empty"),
    "trainer.max_epochs=0": ("trainer.max_epochs=0", ">= 1"),
    "trainer.precision=16": ("trainer.precision=16", "bf16-mixed"),
    "model.encoder.hidden=200": ("model.encoder.hidden=200", "a list"),
    "model.encoder.hidden=[200,0]": ("model.encoder.hidden=[200,0]", ">= 1"),
    "model.encoder.activation=ReLU": ("model.encoder.activation=ReLU", "relu"),
    "model=convv": ("model=convv", "conv, mlp"),
    "experiment=report": ("experiment=report", "report_mlp"),
    "latent_dimm=4": ("latent_dimm=4", "did you mean latent_dim?"),
    "+latent_dimm=4": ("latent_dimm=4", "did you mean latent_dim?"),
    "++model.encoder.activatoin=elu": ("model.encoder.activatoin=elu", "did you mean model.encoder.activation?"),
    "lr=0.1": ("lr=0.1", "did you mean optimizer.lr?"),
    "optimzer=sgd": ("optimzer=sgd", "did you mean optimizer?"),
    "objective.beta=-1": ("objective.beta=-1", ">= 0"),
    "likelihood=bernoulli": ("likelihood=bernoulli", "data.binarize=dynamic"),
    "objective=iwae": ("objective=iwae", "likelihood=gaussian"),
    "evaluation.annealing=10": ("evaluation.annealing=10", "SquaredErrorHead has no NLL"),
    "prior=flow latent_dim=1": ("latent_dim=1", "latent_dim=2"),
    "posterior=iaf latent_dim=1": ("latent_dim=1", "latent_dim=2"),
    "posterior=full latent_dim=1000": ("latent_dim=1000", "posterior=diagonal"),
    "prior=vamp posterior=iaf": ("posterior=iaf", "posterior=diagonal or full"),
    "prior=vamp model=conv model.encoder.norm=batch": ("model.encoder.norm=batch", "group or layer"),
    "prior=mixture prior.components=0": ("prior.components=0", ">= 1"),
    "prior=vamp prior.inputs=many": ("prior.inputs=many", WHOLE),
    "prior=vampp": ("prior=vampp", "mixture, own, standard, vamp"),
    "posterior=full objective=tc": ("posterior=full", "objective=tc"),
    "posterior=iaf likelihood=gaussian objective=iwae objective.gradient=dreg": ("objective.gradient=dreg", "plain"),
    "prior=mixture objective.free_bits=0.1": ("objective.free_bits=0.1", "prior=standard"),
    "objective=mmd objective.alpha=2": ("objective.alpha=2", "<= 1"),
    "hydra.run.dir=x": ("hydra.run.dir=x", "run_dir=..."),
    "-m hydra.sweep.dir=x latent_dim=2,3": ("hydra.sweep.dir=x", "run_dir=..."),
    "--config-name nope": ("--config-name=nope", "--config-dir"),
    "--config-dir /nonexistent": ("--config-dir=/nonexistent", "holds YAML files"),
    "--config-path /nonexistent": ("--config-path=/nonexistent", "--config-dir"),
    "likelihood=gaussian likelihood.sigma=0": ("likelihood.sigma=0", "shared, pixel, optimal"),
    "callbacks.monitor=dev/elbo": ("callbacks.monitor=dev/elbo", "likelihood=gaussian"),
    "optimizer=sgd optimizer.momentum=0": ("optimizer.nesterov=true", "optimizer.momentum=0.9"),
    "trainer.precision=16-mixed trainer.gradient_clip_val=1": ("trainer.gradient_clip_val=1", "optimizer.fused=false"),
    "evaluation.generated=3": ("evaluation.generated=3", "at least 10"),
    "model=conv model.encoder.channels=[]": ("model.encoder.channels=[]", "not empty"),
    "-m latent_dim=2,0,3": ("latent_dim=0", ">= 1"),
    "-m latent_dim=2,3 optimizer.lr=0.1,fast": ("optimizer.lr=fast", NUMBER),
    "-m model=mlp,convv": ("model=convv", "conv, mlp"),
    "-m latent_dim=range(0,3)": ("latent_dim=0", ">= 1"),
}


def refusal(*arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        command.check(list(arguments))
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("arguments", REFUSED)
def test_bad_value_is_answered_in_one_line(arguments: str) -> None:
    named, allowed = REFUSED[arguments]
    line = refusal(*arguments.split())
    assert line.startswith(f"{named}: ")
    assert allowed in line


@pytest.mark.parametrize("path", ["model.encoder._target_=os.getcwd", "optimizer._target_=torch.optim.Nothing"])
def test_only_the_project_s_own_parts_can_be_built(path: str) -> None:
    assert path in refusal(path)


@pytest.mark.parametrize("key", ["model.encoder.kernel_size=99", "likelihood.sigma=0.1", "scheduler.gamma=0.5"])
def test_key_of_another_option_is_not_proposed_for_itself(key: str) -> None:
    """It exists, but not for the choice that was made."""
    line = refusal(key)
    assert line.startswith(f"{key}: ")
    assert f"did you mean {key.partition('=')[0]}?" not in line


@pytest.mark.parametrize("gone", ["latent_dim", "likelihood", "scheduler", "optimizer.lr", "trainer", "data"])
def test_nothing_can_be_removed(gone: str) -> None:
    assert gone in refusal(f"~{gone}")


def test_what_is_fine_passes() -> None:
    command.check(["latent_dim=2"])
    command.check(["-m", "latent_dim=range(1,4)", "model=mlp,conv", "run_dir=outputs/multirun/mine"])
    command.check(["--cfg", "job"])
    command.check(["--hydra-help", "latent_dim=0"])


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_kernel_beyond_the_image_is_refused_with_the_arithmetic(half: str) -> None:
    s = settings_of("data=digits", "model=conv", f"model.{half}.kernel_size=99")
    with pytest.raises(InputError) as caught:
        build(s)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"model.{half}.kernel_size=99: ")
    assert "(28 + 2*1 - 99)" in line


def test_settings_are_plain_and_resolved() -> None:
    """What goes into checkpoints, and names a run: no interpolation, no container of OmegaConf's."""
    for key, value in leaves(settings_of("objective/beta=cyclic", "data.mirrors=[https://example.org/]").plain):
        assert type(value) in (int, float, str, bool, list, type(None)), key
        assert "${" not in str(value), key
