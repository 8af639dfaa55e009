"""What mkdocs.yml cannot say: pages made of other files, a reference made of public names, and what is checked.

- The home page is README.md, and CONTRIBUTING.md and CHANGELOG.md are pages, too, with their links turned to the site.
- A reference page per public module of kprune, a section per name of its `__all__`. Names, not files: a module that
  moves changes nothing here.
- `kprune.prune` in code style, in a page or a docstring, becomes a link to its section. It is an error if there is no
  such name, and if a public name is missing from the site that was built.
"""

from __future__ import annotations

import functools
import html
import pathlib
import pydoc
import re
import types
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPIED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
FENCE = re.compile(r"^( *)```.*?^\1```", flags=re.DOTALL | re.MULTILINE)
NAME = re.compile(r"(?<!\[)`(kprune(?:\.\w+)+)(\([^`]*\))?`(?!\])")
EXAMPLE = re.compile(r"^>>>.*?(?=^\s*$|\Z)", flags=re.DOTALL | re.MULTILINE)
ARGUMENTS = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {5,}.*)*)", flags=re.MULTILINE)


@functools.cache
def public_modules() -> dict[str, tuple[str, ...]]:
    """The name of each public module of kprune -> the public names that its page documents."""
    import kprune

    modules = {name: value for name in kprune.__all__ if isinstance(value := getattr(kprune, name), types.ModuleType)}
    pages = {"kprune": tuple(name for name in kprune.__all__ if name not in modules and name != "__version__")}
    for name, module in modules.items():
        if not hasattr(module, "__all__"):
            raise PluginError(f"kprune.{name} is public, so it must say by __all__ which of its names are.")
        pages[f"kprune.{name}"] = tuple(module.__all__)
    return pages


@functools.cache
def public_names() -> frozenset[str]:
    """All that the reference holds."""
    return frozenset(f"{module}.{name}" for module, names in public_modules().items() for name in names)


def linked(markdown: str, strict: bool) -> str:
    """The text with a link at each public name in code style, but for what stands in code blocks."""

    def link(found: re.Match[str]) -> str:
        name = found[1]
        if name in public_names() or name in public_modules():
            return f"[{found[0]}][{name}]"
        if strict and pydoc.locate(name) is None:
            raise PluginError(f"kprune has no such name: {found[0]}")
        return found[0]

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [NAME.sub(link, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, NAME.sub(link, markdown[end:])])


def names_of_registries(module: str, names: tuple[str, ...]) -> str:
    """A table of the names under which a module's functions are known, such as "magnitude"; empty without any."""
    import kprune

    functions = {id(pydoc.locate(f"{module}.{name}")): name for name in names}
    lines = []
    for registry in (
        found for name in names if isinstance(found := pydoc.locate(f"{module}.{name}"), type(kprune.scopes.SCOPES))
    ):
        for name in registry:
            function = functions.get(id(registry.get(name)))
            lines.append(f'| `"{name}"` | ' + (f"[`{function}`][{module}.{function}]" if function else "") + " |")
    return "\n".join(["", "| name | what it stands for |", "| --- | --- |", *lines, ""]) if lines else ""


class Docstrings(griffe.Extension):
    """Makes what Google style leaves open readable: examples that follow a blank line, arguments that share a line."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        text = ARGUMENTS.sub(
            lambda shared: "\n".join(f"    {name}: {shared[2]}" for name in shared[1].split(", ")), obj.docstring.value
        )
        text = EXAMPLE.sub(lambda example: f"```pycon\n{example[0].rstrip()}\n```\n", text)
        obj.docstring.value = linked(text, strict=False)


@event_priority(100)  # before mkdocstrings sets itself up
def on_config(config: Any) -> Any:
    import kprune

    # Where the wheel is installed: in a checkout kprune.callbacks is not where a reader of sources looks for it.
    packages = str(pathlib.Path(kprune.__file__).parent.parent)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [packages]
    pages = [{module: f"reference/{module}.md"} for module in public_modules()]
    config.nav.append({"API reference": pages})
    return config


def on_files(files: Any, config: Any) -> Any:
    for name, page in COPIED.items():
        text = (ROOT / name).read_text().replace("](docs/", "](")
        for other, its_page in COPIED.items():
            text = text.replace(f"]({other}", f"]({its_page}")
        files.append(File.generated(config, page, content=text))
    for module, names in public_modules().items():
        heading = f"# {module}\n\n::: {module}\n    options:\n      members: false\n      show_root_heading: false\n"
        heading += names_of_registries(module, names)
        sections = "".join(f"\n::: {module}.{name}\n" for name in names)
        files.append(File.generated(config, f"reference/{module}.md", content=heading + sections))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri.startswith("reference/"):
        return markdown
    return linked(markdown, strict=True)


def on_post_build(config: Any) -> None:
    for module, names in public_modules().items():
        built = pathlib.Path(config.site_dir, f"reference/{module}.html").read_text()
        for name in names:
            if f'id="{html.escape(f"{module}.{name}")}"' not in built:
                raise PluginError(f"{module}.{name} is public and missing from the reference.")
