"""The README and the pages of docs/: what they show runs, in one session and in the order of the site."""

import ast
import pathlib
import re

import keras
import pytest
from documented import Block, blocks
from helpers import new_process

ROOT = pathlib.Path(__file__).parent.parent
IN_ORDER = [
    "README.md",
    *(f"docs/{page}" for page in re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)),
]
DEFINES = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
PAGES = [page for page in IN_ORDER if (ROOT / page).exists()]  # the rest is made by docs/site.py


def test_every_page_with_code_is_in_the_order():
    shown = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if blocks(page)}
    assert len(shown) >= 8 and shown <= set(PAGES)


def test_all_blocks_run_in_one_session(tmp_path):
    # What the pages show has tests of its own on each backend; on JAX the first page stands for all of them.
    pages = PAGES if keras.backend.backend() == "tensorflow" else PAGES[:1]
    ran = new_process(ROOT / "tests" / "documented.py", *(ROOT / page for page in pages), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout.splitlines() == [f"{ROOT / page}: ran" for page in pages]


def test_a_block_that_prints_something_else_is_an_error_that_names_its_line(tmp_path):
    page = tmp_path / "page.md"
    shown, not_shown = (
        "```python\nprint(6 * 7)\n```\n\n```text\n4...\n```\n",
        "```python\nprint(1)\n```\n```text\n2\n```\n",
    )
    page.write_text(f"# Page\n\n{shown}\n{not_shown}")
    right, wrong = blocks(page)
    right.run({})
    assert (right.shown, wrong.line) == ("4...\n", 11)
    with pytest.raises(AssertionError, match=r"page.md, line 11: shown\n2\n\nbut printed\n1"):
        wrong.run({})
    with pytest.raises(ZeroDivisionError) as raised:
        Block(page, 40, "\n1 / 0\n", None).run({})
    assert raised.traceback[-1].lineno == 41  # counted from 0


def test_each_block_shows_that_it_did_what_it_says():
    """A block prints what the page shows, or asserts it; one that only defines is used by the next."""
    silent = [block for page in PAGES for block in blocks(ROOT / page) if block.shown is None]
    silent = [block for block in silent if "assert " not in block.code]
    defines = [all(isinstance(node, DEFINES) for node in ast.parse(block.code).body) for block in silent]
    assert all(defines), [(block.page.name, block.line) for block in silent]


def test_nothing_says_to_install_kprune_from_an_index():
    """It is on none yet."""
    files = [path for end in ("md", "ipynb", "py") for path in ROOT.rglob(f"*.{end}") if ".venv" not in str(path)]
    wrong = re.compile(r"pip install[^\n`]* kprune(?![-*.\w])(?!/)|pip install kprune")
    assert len(files) > 100 and not [
        (path.name, found[0])
        for path in files
        if path != pathlib.Path(__file__) and (found := wrong.search(path.read_text()))
    ]


def test_the_tests_that_the_troubles_name_exist():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs/troubles.md").read_text())
    defined = {file: (ROOT / "tests" / file).read_text() for file, _ in named}
    assert len(named) > 50 and not [pair for pair in named if f"def {pair[1]}(" not in defined[pair[0]]]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES[1:]])
def test_links_to_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    files = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert all((ROOT / page).parent.joinpath(file).is_file() for file in files if file), files
