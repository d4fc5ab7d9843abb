"""Pages that need neither server nor network: templates, filled and escaped by Jinja2."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vae.errors import InputError
from vae.evaluation.colours import DARK, LIGHT
from vae.files import replace

TEMPLATES = Path(__file__).parent / "templates"


def check_output(output: Path, force: bool, *libraries: str) -> None:
    """Raises InputError, before any work, where no page can be written: its path, or a library that is absent."""
    if output.suffix not in (".html", ".htm"):
        raise InputError(f"-o {output}: a page ends in .html; for example -o page.html")
    if output.is_dir():
        raise InputError(f"-o {output}: is a folder; name a file in it, such as -o {output / 'page.html'}")
    if output.exists() and not force:
        raise InputError(f"-o {output}: is there already; give another name, or --force to replace it")
    absent = [name for name in ("jinja2", *libraries) if find_spec(name) is None]
    if absent:
        raise InputError(f"a page needs {' and '.join(absent)}: pip install 'vae-lightning[report]'")


def write_page(output: Path, template: str, **values: Any) -> None:
    """The page at `output`, and a line about it; raises InputError where the file cannot be written."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {"light": LIGHT, "dark": DARK}
    templates.globals["source"] = lambda name: Markup((TEMPLATES / name).read_text())
    content = templates.get_template(template).render(**values).encode()
    try:
        replace(output, content)
    except OSError as error:
        raise InputError(f"-o {output}: cannot be written ({error.strerror}); name another file") from error
    print(f"{output}: {len(content) / 1e6:.1f} MB, opens in any browser without a server")
