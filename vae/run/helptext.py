"""What `python train.py --help` prints. Options of the groups come from `conf/`, defaults from its files."""

from pathlib import Path

from vae.run.settings import CONF

KEYS = """\
latent_dim                      size of z
dropout                         of the encoder's hidden layers (model.decoder.dropout for the decoder's)
seed                            of weights, noise and the order of the images: the same command gives the same numbers
run_dir                         where the run goes; the same command again continues it
model.encoder.hidden            [200,200,200] any depth, also []; .activation, .dropout; for model.decoder too
model.encoder.channels          of convolutions: [16,32]; .kernel_size .stride .padding .pool .norm
model.decoder.init_bias         data: start at the mean image
likelihood.reconstruct          sample or mean: the report's decoder sampling on or off (squared_error)
likelihood.sigma                a number, shared, pixel or optimal (gaussian)
objective.samples               draws of z for each image; .free_bits, .gradient=dreg
objective.beta.value            weight of the KL; objective/beta=linear or cyclic for schedules of the step
data.root                       where the files are, or are downloaded to; data.batch_size, .binarize, .num_workers
optimizer.lr                    learning rate; .weight_decay
trainer.max_epochs              may grow later; .precision, .gradient_clip_val, .devices
callbacks.early_stopping        epochs of patience; .monitor, .figures_every, .checkpoint_minutes
evaluation.samples              importance samples of the NLL; .features, .probes
threads, compile, checkpoint    CPU threads; torch.compile; last or best: where an unfinished run goes on"""

EXAMPLES = """\
python train.py data=digits                                   a first result without a download
python train.py model=conv latent_dim=8                       convolutions in both halves
python train.py model/encoder=conv model/decoder=mlp          or in one
python train.py experiment=report_mlp_mean                    a recipe; conf/experiment/ says what each one reaches
python train.py -m latent_dim=2,4,8 likelihood.reconstruct=sample,mean run_dir=outputs/multirun/mine
python train.py run_dir=outputs/mine                          begins it, continues it, or shows its result"""


def groups() -> list[str]:
    """`group=option|option`, read off the folders of `conf/`."""
    folders = sorted(p for p in Path(CONF).glob("**/*") if p.is_dir())
    lines = []
    for folder in folders:
        options = sorted(p.stem for p in folder.glob("*.yaml") if p.stem != "base")
        lines.append(f"{folder.relative_to(CONF)!s:<16} {', '.join(options)}")
    return lines


def text() -> str:
    parts = {
        "Choices, as group=option": "\n".join(groups()),
        "Keys, as key=value (all of them with values: python train.py --cfg job)": KEYS,
        "Examples": EXAMPLES,
    }
    sections = [f"{title}\n" + "\n".join(f"  {line}" for line in body.splitlines()) for title, body in parts.items()]
    head = (
        "Trains a variational auto-encoder; -m sweeps over values given with commas, --cfg job shows the configuration."
    )
    return "\n\n".join([head, *sections])
