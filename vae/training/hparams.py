"""A run's row in TensorBoard's HPARAMS.

TensorBoard takes the columns of all runs from one of them. So each writes the same dozen keys and the same six metrics,
whether it has them or not, and before them the keys that were given on the command line: those vary in a sweep.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FIXED = (
    "latent_dim", "dropout", "seed", "model.encoder", "model.decoder", "prior", "posterior", "likelihood", "objective",
    "objective.beta", "optimizer", "optimizer.lr", "data", "data.batch_size", "trainer.max_epochs",
)  # fmt: skip

METRICS = {  # column -> how the name of the metric in it begins
    "final/dev_loss": "dev/loss",
    "final/test_loss": "test/loss",
    "final/test_nll": "test/nll",
    "final/test_active_units": "test/active_units",
    "final/frechet": "samples/frechet_",
    "final/seconds": "seconds",
}


def lookup(settings: Mapping[str, Any], key: str) -> Any:
    node: Any = settings
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def cell(settings: Mapping[str, Any], key: str, given: str = "") -> str | float | bool:
    """A key's value: a part as it was given, else its name or class; a list as text; "" where there is no such key."""
    node = lookup(settings, key)
    if isinstance(node, Mapping):
        return given or node.get("value") or str(node.get("_target_", "")).rpartition(".")[2]
    return node if isinstance(node, (bool, int, float, str)) else "" if node is None else str(node)


@dataclass
class Sheet:
    """What a run writes of itself; `given` are the keys of its command line with their values.

    `name` is its folder's: in a sweep it says which of them vary, as in latent_dim=4,model=conv.
    """

    settings: Mapping[str, Any]
    given: Mapping[str, str]
    name: str = ""

    def cells(self) -> dict[str, str | float | bool]:
        """Given keys first."""
        keys = [*self.given, *(key for key in FIXED if key not in self.given)]
        found = {key: cell(self.settings, key, self.given.get(key, "")) for key in keys}
        return {key: value for key, value in found.items() if value != ""}

    def varies(self, key: str) -> bool:
        """Whether the folder's name holds the key; where it holds none, whether it was given."""
        named = {part.partition("=")[0] for part in self.name.split(",") if "=" in part}
        return key in (named or self.given)

    def begin(self, writer: "SummaryWriter") -> None:
        from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

        experiment, start = api_pb2.Experiment(), plugin_data_pb2.SessionStartInfo()
        for key, value in self.cells().items():
            # true: TensorBoard puts such columns first, and ticks the first five
            column = experiment.hparam_infos.add(name=key, differs=self.varies(key))
            if isinstance(value, str):
                column.type, start.hparams[key].string_value = api_pb2.DATA_TYPE_STRING, value
            elif isinstance(value, bool):
                column.type, start.hparams[key].bool_value = api_pb2.DATA_TYPE_BOOL, value
            else:
                column.type, start.hparams[key].number_value = api_pb2.DATA_TYPE_FLOAT64, value
        for tag in METRICS:
            experiment.metric_infos.add(name=api_pb2.MetricName(tag=tag), display_name=tag.removeprefix("final/"))
        _write(writer, "_hparams_/experiment", experiment=experiment)
        _write(writer, "_hparams_/session_start_info", session_start_info=start)

    def end(self, writer: "SummaryWriter", metrics: Mapping[str, Any], failed: bool = False) -> None:
        """The row's metrics, each a scalar of one point, and how the run ended."""
        from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

        for tag, begins in METRICS.items():
            for name in [name for name in metrics if name.startswith(begins)][:1]:
                writer.add_scalar(tag, metrics[name], int(metrics["steps"]))
        status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
        _write(writer, "_hparams_/session_end_info", session_end_info=plugin_data_pb2.SessionEndInfo(status=status))


def write_failed_row(directory: Path, sheet: Sheet, suffix: str) -> None:
    """The row of a run that failed, in an event file of its own: TensorBoard keeps the first status that it meets.

    So the file is removed when the run goes on.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(directory, filename_suffix=suffix) as writer:
        sheet.begin(writer)
        sheet.end(writer, {}, failed=True)


def _write(writer: "SummaryWriter", tag: str, **content: Any) -> None:
    """Into the run's own event file; SummaryWriter.add_hparams would open a second folder."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    data = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString())
    value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))
    writer._get_file_writer().add_summary(Summary(value=[value]))  # opened anew where training has closed it
