"""`vae model`: the layers of the configured model, with shapes and numbers of parameters, as a table and a picture."""

from pathlib import Path

from hydra import initialize_config_dir

from vae.run import command, settings
from vae.run.keys import CONF


def main(overrides: list[str], output: str) -> None:
    """Prints the layers of the model that these overrides configure, and draws them into `output`."""
    command.check(overrides)
    with initialize_config_dir(CONF, version_base="1.3"):
        checked = settings.check(command.compose_settings(overrides))
    from vae.evaluation.architecture import architecture, architecture_figure, by
    from vae.evaluation.figures import write_figure
    from vae.run.build import build_data, build_vae

    data = build_data(checked)
    vae = build_vae(checked, data.image_shape, data.classes)
    for title, (start, end, layers) in architecture(vae).items():
        print(f"{title}: {start} -> {end}")
        for layer in layers:
            print(f"  {', '.join(layer.names):<40} {by(layer.shape):>16} {layer.parameters:>12,}")
    write_figure(architecture_figure(vae, settings.caption(checked.plain)), Path(output))
    print(f"{vae.parameter_count:,} parameters; picture: {output}")
