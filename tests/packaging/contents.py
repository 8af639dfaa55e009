"""Checks what the sdist and the wheel of a folder hold: `python contents.py dist`. It needs nothing installed."""

import pathlib
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PACKAGES = {"kprune": "kprune", "callbacks": "kprune/callbacks", "models": "kprune/models"}

[wheel], [sdist] = (sorted(pathlib.Path(sys.argv[1]).glob(ending)) for ending in ("*.whl", "*.tar.gz"))

sources = {
    f"{installed}/{file.relative_to(ROOT / folder)}"
    for folder, installed in PACKAGES.items()
    for file in (ROOT / folder).rglob("*.py")
} | {"kprune/py.typed", "_kprune.py"}
with zipfile.ZipFile(wheel) as archive:
    held = set(archive.namelist())
modules = {name for name in held if ".dist-info/" not in name}
assert modules == sources, sorted(modules ^ sources)
assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held), sorted(held - modules)

with tarfile.open(sdist) as archive:
    paths = {name.partition("/")[2] for name in archive.getnames()}
needed = {"setup.cfg", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "kprune/py.typed", "_kprune.py"}
needed |= {str(file.relative_to(ROOT)) for folder in PACKAGES for file in (ROOT / folder).rglob("*.py")}
assert needed <= paths, sorted(needed - paths)
assert not any(path.startswith(("tests", "docs/", "build/")) for path in paths), sorted(paths)

print(f"{wheel.name}: {len(modules)} files in kprune/ and its program beside it; {sdist.name}: {len(paths)} entries")
