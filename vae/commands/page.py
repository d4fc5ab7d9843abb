"""Pages that need neither server nor network: templates, filled and escaped by Jinja2."""

from pathlib import Path
from typing import Any

from vae.errors import InputError
from vae.files import replace

TEMPLATES = Path(__file__).parent / "templates"


def write_page(output: Path, template: str, **values: Any) -> None:
    """The page at `output`; raises InputError where Jinja2 is absent or the file cannot be written."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise InputError("a page needs Jinja2; pip install 'vae-lightning[report]'") from error

    def source(name: str) -> Markup:
        return Markup((TEMPLATES / name).read_text())

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["source"] = source
    text = templates.get_template(template).render(**values)
    try:
        replace(output, text.encode())
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror}); name another file with -o") from error


def check_output(output: Path) -> None:
    """Raises InputError, before any work, for a path that no page can be written to."""
    if output.suffix not in (".html", ".htm"):
        raise InputError(f"-o {output}: a page ends in .html; for example -o page.html")
    if output.is_dir():
        raise InputError(f"-o {output}: is a folder; name a file in it, such as -o {output / 'page.html'}")
