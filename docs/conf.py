"""The site: `make docs` builds it from these pages and from the package's docstrings, without network.

Formulas become MathML, which browsers draw themselves. Every warning is an error: a link that leads nowhere, a page outside
the table of contents, a public name in the API pages without a docstring.
"""

import dataclasses
import inspect
import re
import textwrap
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

import piat_hub

HERE = Path(__file__).parent
LOG = logging.getLogger(__name__)
SECTION = "(Args|Returns|Raises|Yields)"

project = "piat_hub"
author = copyright = "the piat_hub authors"
release = version = piat_hub.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "results"]
smartquotes = False  # z' stays a prime, and "last" a string
nitpicky = True
nitpick_ignore_regex = [  # other projects' names are not looked up, as there is no network; type variables have no page
    ("py:.*", r"(?!piat_hub\.).*"),
    ("py:class", r"piat_hub\..*\.[A-Z]"),
]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a guide may begin a section at level three

autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"  # a docstring's `name` is code
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 110

html_theme = "furo"
html_title = "piat_hub"
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_dark_style = "monokai"
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = False


def mathml(visitor, node):
    """A formula as MathML, inline or as a block of its own."""
    block = isinstance(node, nodes.math_block)
    formula = convert(node.astext().strip(), display="block" if block else "inline")
    formula = formula.replace(
        "<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>'
    )  # only \left and \right stretch
    visitor.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def without_links_that_leave(app, name, source):
    """Links to folders and to files outside docs/, which a repository's page follows and this site cannot, become text."""
    page = HERE / name

    def link(match):
        text, target = match.groups()
        path = (page.parent / target.partition("#")[0]).resolve()
        leaves = path.is_dir() or (path.exists() and HERE not in path.parents)
        return text if leaves and "://" not in target else match[0]

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s#][^)\s]*)\)", link, source[0])


def prepared_docstring(app, what, name, obj, options, lines):
    """A docstring as Sphinx reads it; a public name without one is a warning, and so an error of the build."""
    if any(line.strip() for line in lines):
        lines[:] = [*sections("\n".join(map(escaped, lines))).split("\n"), "", *fields(obj)]
    elif name.rpartition(".")[2] != "forward" and str(home_of(obj, name)).startswith("piat_hub"):
        LOG.warning("%s %s has no docstring", what, name)


def home_of(obj, name):
    """The module that an object is from."""
    return getattr(getattr(obj, "fget", obj), "__module__", name)


def fields(obj):
    """What a configuration's fields say of themselves, with their units: the same words as `--help`."""
    known = dataclasses.fields(obj) if inspect.isclass(obj) and dataclasses.is_dataclass(obj) else ()
    about = {f.name: (f.metadata["doc"], f.metadata.get("unit")) for f in known if "doc" in f.metadata}
    lines = [f"    {name}: {escaped(doc)}{f' [{unit}]' if unit else ''}" for name, (doc, unit) in about.items()]
    return ["Attributes:", *lines, ""] if lines else []


def escaped(line):
    """The line with what reStructuredText would read as markup made plain, outside `code`."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(
        part if k % 2 else re.sub(r"([*|@\\]|(?<=\w)_(?!\w))", r"\\\1", part) for k, part in enumerate(parts)
    )


def sections(text):
    """The docstring with 'Returns: text' as a paragraph, where napoleon knows only headings, and examples as literal blocks."""
    done, inside = [], False
    for paragraph in re.sub(rf"\n+(?={SECTION}:)", "\n\n", text).split("\n\n"):
        inside = bool(re.match(r"\w+:\n", paragraph)) or (inside and paragraph.startswith(" "))
        if head := re.match(rf"{SECTION}: ", paragraph):
            paragraph = f"**{head[1]}** {paragraph[head.end() :]}"
        elif "\n    " in f"\n{paragraph}" and not inside:
            plain = re.sub(r"\\(.)", r"\1", paragraph)
            paragraph = f"::\n\n{textwrap.indent(textwrap.dedent(plain), '    ')}"
        done.append(paragraph)
    return "\n\n".join(done)


def without_values(app, what, name, obj, skip, options):
    """Constants and the fields of dataclasses have no docstring: a class says what its fields are, its signature their types."""
    return True if not (inspect.isroutine(obj) or inspect.isclass(obj) or hasattr(obj, "__get__")) else None


def setup(app):
    """Connect all this to Sphinx."""
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.connect("source-read", without_links_that_leave)
    app.connect("autodoc-process-docstring", prepared_docstring, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", without_values)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
