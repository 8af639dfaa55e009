"""The floors of docs/architecture.md: a module imports from its own floor and those below; there is no circle."""

import ast
import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# From the ground up. A floor's rooms may import from each other, as long as no circle comes of it.
FLOORS = (
    ("_version", "util", "models"),
    ("runtime",),
    ("masks",),
    ("channels", "data", "flops", "regularizers"),
    ("criteria", "patterns", "schedules", "scopes", "selection", "sparsities"),
    ("config", "cutting", "programs"),
    ("after_training", "growth", "pruning", "updates"),
    ("deploy", "report", "targets"),
    ("lottery",),
    ("callbacks",),
    ("analysis", "controls", "experiments", "tickets", "weight_agnostic"),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "kprune" else ("kprune", *parts)
    return ".".join(part for part in parts if part != "__init__")


FILES = {module_name(f): f for top in ("kprune", "callbacks", "models") for f in (ROOT / top).rglob("*.py")}
MODULES = {name: file for name, file in FILES.items() if name != "kprune"}  # the front door imports every room


def imports(name):
    """The modules of kprune that a module imports anywhere in its code: lazily and for type checkers too."""
    package = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            found = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in found:
            while target and target not in FILES:
                target = target.rpartition(".")[0]
            if target and target != name:
                yield target


IMPORTS = {name: sorted(set(imports(name))) for name in MODULES}


def room(name):
    return name.split(".")[1]


def test_every_room_has_a_floor():
    assert {room(name) for name in MODULES} == set(FLOOR)


def test_a_module_imports_from_its_own_floor_and_those_below():
    upward = [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        for target in targets
        if target == "kprune" or FLOOR[room(target)] > FLOOR[room(name)]
    ]
    assert not upward


def reachable(name):
    seen, ahead = set(), list(IMPORTS[name])
    while ahead:
        target = ahead.pop()
        if target not in seen:
            seen.add(target)
            ahead += IMPORTS[target]
    return seen


def test_no_module_reaches_itself():
    # A package's front (`__init__`) gathers its own modules; what these take from each other, they take directly.
    assert not [name for name in MODULES if name in reachable(name)]


# What is true of one library alone. All else asks `kprune.masks.library_of`.
TELL_APART = {
    "kprune.callbacks.backup_and_restore",  # tf_keras has its own, which is safe
    "kprune.channels.constants",  # of operations, which are no layers
    "kprune.deploy.saved_model",
    "kprune.experiments.lottery_network",
    "kprune.flops",  # how to run a model on shapes alone
    "kprune.masks.libraries",
}


def test_only_these_modules_tell_the_two_libraries_apart():
    asked = {name for name, file in MODULES.items() if re.search(r"(?<!def )is_tf_keras\(", file.read_text())}
    assert asked == TELL_APART


def test_the_page_on_the_architecture_names_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `([\w/.]+)`", page, re.MULTILINE)
    named = [(int(number), path.strip("/").removeprefix("kprune/").removesuffix(".py")) for number, path in rows]
    assert sorted(named) == sorted((number, name) for name, number in FLOOR.items() if name != "_version")


def test_a_module_under_kprune_is_not_hidden_by_a_function_of_its_name():
    import kprune

    tops = {name.split(".")[1] for name in MODULES if not name.split(".")[1].startswith("_")}
    assert not [name for name in tops if hasattr(kprune, name) and not hasattr(getattr(kprune, name), "__file__")]


def test_every_package_is_installed():
    read = configparser.ConfigParser()
    read.read(ROOT / "setup.cfg")
    listed = read["options"]["packages"].split()
    folders = [
        file.parent.relative_to(ROOT)
        for top in ("kprune", "callbacks", "models")
        for file in (ROOT / top).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(f"kprune.{'.'.join(f.parts)}".replace("kprune.kprune", "kprune") for f in folders)
