"""`vae model`: the layers of the configured model, with shapes and numbers of parameters, as a table and a picture."""

from vae.commands.output import PICTURES, check_out, write
from vae.run.compose import compose
from vae.run.settings import caption


def main(overrides: list[str], output: str) -> None:
    """Prints the layers of the model that these overrides configure, and draws them into `output`."""
    place = check_out(output, force=True, kinds=PICTURES)
    assert place is not None
    settings = compose(overrides)
    from vae.evaluation.architecture import architecture, architecture_figure, by
    from vae.run.build import build_data, build_vae

    data = build_data(settings)
    vae = build_vae(settings, data.image_shape, data.classes)
    for title, (start, end, layers) in architecture(vae).items():
        print(f"{title}: {start} -> {end}")
        for layer in layers:
            print(f"  {', '.join(layer.names):<40} {by(layer.shape):>16} {layer.parameters:>12,}")
    print(f"{vae.parameter_count:,} parameters")
    write(place, lambda: architecture_figure(vae, caption(settings.plain, vae.image_shape[0])), {})
