"""Small damages to the code, and which test sees them: how strong the suite is, before and after it is changed.

    python tests/mutants.py draw --count 30 --seed 0 > tests/fixtures/mutations_30.json
    python tests/mutants.py run tests/fixtures/mutations_30.json out/mutations.jsonl
    python tests/mutants.py confirm out/mutations.jsonl

A mutation is one of: a simple statement becomes `pass`; a comparison, an arithmetic or a boolean sign is turned into
its opposite; a number grows by one. It is known by the function, the statement and what that becomes, not by file or
line, so that it is found again when files have moved; `run` says "gone" of one whose statement is not there any more.

Left out, as no test should care: `__repr__` and `__str__`, docstrings, imports, annotations, and what only words a
message (calls of `logging`, and whatever stands in an f-string or behind `raise`; that the `raise` is there at all does
count). Left out as any test would see it: the removal of a `return` or `yield` with a value, or of the assignment of a
name.

`run` damages a copy of the tree and runs there, until a test fails, the test files that have most to do with the
function (`ranked`): on TensorFlow, of tf_keras, and last on JAX; with `--all` then all other files. Each result is a
line of the output as soon as it is known, and what stands there already is not run again.
"""

import argparse
import ast
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

ROOT = pathlib.Path(__file__).parents[1]
CODE = ("kprune", "callbacks", "models")
LEFT_OUT = ("__repr__", "__str__", "_repr_html_")
OPPOSITE = {
    **{ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
SIMPLE = (ast.Expr, ast.Assign, ast.AugAssign, ast.Return, ast.Raise, ast.Delete, ast.Break, ast.Continue)
# A test file alone may take minutes where the machine is busy; a loop that never ends takes longer.
PATIENCE = 1500


@dataclass(frozen=True)
class Mutation:
    """What is damaged, by words that outlive a move.

    Attributes:
        function: last name of the module, classes and function, as "rewind.RewindPoint.in_epochs".
        statement: the statement as `ast.unparse` writes it; of a compound one the head.
        becomes: the same, damaged.
    """

    function: str
    statement: str
    becomes: str


@dataclass(frozen=True)
class Edit:
    """Where a mutation is found: the node whose text is replaced."""

    path: pathlib.Path
    node: ast.AST
    text: str

    def write(self, folder):
        """Damage the copy of the file in a folder."""
        file = folder / self.path
        lines = [line.encode() for line in file.read_text().splitlines(keepends=True)]
        first, last = self.node.lineno - 1, self.node.end_lineno - 1
        before, after = lines[first][: self.node.col_offset], lines[last][self.node.end_col_offset :]
        lines[first : last + 1] = [before + self.text.encode() + after]
        file.write_bytes(b"".join(lines))


def functions(tree, names=()):
    """(qualified name, node) of each function of a module that is not inside another."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name not in LEFT_OUT:
            yield ".".join([*names, node.name]), node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, (*names, node.name))


def statements(function):
    """The statements in it, those of functions inside it too; docstrings left out."""
    for node in ast.walk(function):
        for _, block in ast.iter_fields(node):
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                yield from (s for s in block if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)))


def head(statement):
    """Its text; of a compound statement only the first line."""
    text = ast.unparse(statement)
    return text.splitlines()[0] if hasattr(statement, "body") else text


def removable(statement):
    """Whether it is a simple one without which the code still runs."""
    if isinstance(statement, ast.Return):
        return statement.value is None
    if isinstance(statement, ast.Assign):
        return not any(isinstance(node, ast.Name | ast.Tuple) for node in statement.targets)
    yields = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Yield | ast.YieldFrom)
    return isinstance(statement, SIMPLE) and not yields


def words_only(statement):
    call = statement.value if isinstance(statement, ast.Expr) else None
    function = call.func if isinstance(call, ast.Call) else None
    return isinstance(function, ast.Attribute) and ast.unparse(function.value) == "logging"


def expressions(node):
    """All expressions that belong to a statement itself: no statement inside it, no f-string, no annotation."""
    for name, value in ast.iter_fields(node):
        if name in ("body", "orelse", "finalbody", "handlers", "decorator_list", "returns", "annotation", "args") and (
            isinstance(node, ast.stmt)
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.stmt | ast.JoinedStr):
                yield child
                yield from expressions(child)


@contextlib.contextmanager
def damaged(node):
    """Inside, the node is damaged; gives the text to replace the node by, None where there is nothing to damage."""
    operator = node.ops[0] if isinstance(node, ast.Compare) and len(node.ops) == 1 else getattr(node, "op", None)
    if type(operator) in OPPOSITE:
        new = OPPOSITE[type(operator)]()
        name, old, value = ("ops", [operator], [new]) if isinstance(node, ast.Compare) else ("op", operator, new)
    elif isinstance(node, ast.UnaryOp) and isinstance(operator, ast.Not | ast.USub):
        name, old, value = "op", operator, ast.UAdd()  # bool and number stay what they are
        if isinstance(operator, ast.Not):
            name, old, value = "operand", node.operand, ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        name, old, value = "value", node.value, node.value + 1
    else:
        yield None
        return
    setattr(node, name, value)
    try:
        yield ast.unparse(node)
    finally:
        setattr(node, name, old)


def mutations(path, source):
    """(Mutation, Edit) of all that can be damaged in a module."""
    for name, function in functions(ast.parse(source)):
        name = f"{path.stem}.{name}"
        for statement in statements(function):
            if words_only(statement):
                continue
            text = head(statement)
            if removable(statement):
                yield Mutation(name, text, "pass"), Edit(path, statement, "pass")
            if isinstance(statement, ast.Raise):
                continue
            for node in (statement, *expressions(statement)):
                with damaged(node) as replacement:
                    if replacement is not None:
                        yield Mutation(name, text, head(statement)), Edit(path, node, replacement)


def tree():
    """path -> source of the modules of the tree."""
    files = sorted(file for folder in CODE for file in (ROOT / folder).rglob("*.py"))
    return {file.relative_to(ROOT): file.read_text() for file in files}


def all_mutations():
    """Mutation -> Edit; of equal ones in a function the first."""
    found = {}
    for path, source in tree().items():
        for mutation, edit in mutations(path, source):
            found.setdefault(mutation, edit)
    return found


def kind(mutation):
    if mutation.becomes == "pass":
        return "removed"
    return "number" if re.sub(r"[\d.]+", "", mutation.statement) == re.sub(r"[\d.]+", "", mutation.becomes) else "sign"


def draw(count, seed):
    """A mutation in each of `count` functions: first the functions are drawn, then a kind, then one of that kind."""
    by_function = {}
    for mutation in all_mutations():
        by_function.setdefault(mutation.function, {}).setdefault(kind(mutation), []).append(mutation)
    rng = random.Random(seed)
    chosen = rng.sample(sorted(by_function), count)
    kinds = [by_function[name][rng.choice(sorted(by_function[name]))] for name in chosen]
    return [rng.choice(sorted(found, key=lambda m: (m.statement, m.becomes))) for found in kinds]


def find(mutation):
    """The mutation's Edit, in the module of its name or in the only other one that has it; None if it is gone."""
    found = all_mutations()
    if mutation in found:
        return found[mutation]
    _, _, name = mutation.function.partition(".")
    same = [
        edit
        for other, edit in found.items()
        if (other.function.partition(".")[2], other.statement, other.becomes)
        == (name, mutation.statement, mutation.becomes)
    ]
    return same[0] if len(same) == 1 else None


def library(file):
    """Which process a test file needs: "keras", "tf_keras", or "apart" for those with one of their own."""
    folders = file.relative_to(ROOT / "tests").parts[:-1]
    if "tf_keras" in folders:
        return "tf_keras"
    return "apart" if set(folders) & {"tf_distribute", "jax_distribution"} else "keras"


def public(source):
    """The names that a module defines for others."""
    return re.findall(r"^(?:class|def) ([A-Za-z]\w+)", source, re.MULTILINE)


def ranked(function, path):
    """The test files, those first that have most to do with a function; with how much, as points."""
    module, *names = (name.strip("_") for name in function.split("."))
    sought = path.stem if path.parent.name in (*CODE, "criteria") else f"(?:{path.stem}|{path.parent.name})"
    imports = re.compile(rf"^ *(?:from|import) .*\b{sought}\b|import \([^)]*\b{sought}\b", re.MULTILINE)
    importers = {other: source for other, source in tree().items() if imports.search(source)}
    near = [name for other, source in importers.items() if other.stem != "__init__" for name in public(source)]

    def about(name, title):
        return f"_{name}_" in f"_{title}_"

    points = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        if "tpu" in file.relative_to(ROOT).parts:
            continue
        text, words = file.read_text(), set(re.findall(r"\w+", file.read_text()))
        titled = 8 * about(module, file.stem) + 4 * any(about(other.stem.strip("_"), file.stem) for other in importers)
        named = 4 * (names[0] in words) + 2 * (names[-1] in words) if f".{names[0]}" in function else 0
        slow = not titled and re.search("new_process|start_process|nbclient", text)  # takes minutes
        points[file] = titled + named + 2 * bool(words & set(near)) + (module in words) - 4 * bool(slow)
    return dict(sorted(points.items(), key=lambda item: (-item[1], item[0].stat().st_size)))


def test_runs(function, path, everything):
    """(backend, files) of the processes in which the tests are to run, one after the other."""
    points = ranked(function, path)

    def best(of, most):
        files = [file for file in points if library(file) == of]
        near = [file for file in files if points[file] > 0][:most]
        return near, [file for file in files if file not in near]

    (near, far), (near_2, far_2) = best("keras", 10), best("tf_keras", 5)
    runs = [("tensorflow", near), ("tensorflow", near_2)]
    if near_2 and (not near or points[near_2[0]] > points[near[0]]):
        runs.reverse()
    runs.append(("jax", near[:4]))
    if everything:
        runs += [("tensorflow", far), ("tensorflow", far_2), ("jax", [*near[4:], *far])]
        for name, backend in (("jax_distribution", "jax"), ("tf_distribute", "tensorflow")):
            runs.append((backend, [file for file in points if name in file.parts]))
    return [(backend, files) for backend, files in runs if files]


def pytest(folder, backend, tests):
    """Runs tests in a copy of the tree until one fails: None, or the test that failed."""
    env = {**os.environ, "PYTHONPATH": str(folder), "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *tests], cwd=folder, env=env, timeout=PATIENCE, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return f"none: not at its end after {PATIENCE} s"
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return failed[1] if failed else f"none: pytest ends with {done.returncode}: {(done.stdout + done.stderr)[-300:]}"


@contextlib.contextmanager
def copied():
    """A copy of the tree, in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        ignore = shutil.ignore_patterns(".*", "__pycache__", "out", "build", "dist")
        yield shutil.copytree(ROOT, pathlib.Path(folder, "tree"), ignore=ignore)


def result_of(mutation, everything):
    """What became of it: "killed" and by which test, "survived" and which files, or "gone"."""
    edit, start = find(mutation), time.perf_counter()
    if edit is None:
        return {"outcome": "gone"}
    ran = []
    with copied() as folder:
        edit.write(folder)
        for backend, files in test_runs(mutation.function, edit.path, everything):
            names = [str(file.relative_to(ROOT)) for file in files]
            killer = pytest(folder, backend, names)
            if killer is not None:
                outcome = {"outcome": "killed", "by": killer, "backend": backend}
                return {**outcome, "seconds": round(time.perf_counter() - start)}
            ran.append({"backend": backend, "files": names})
    return {"outcome": "survived", "ran": ran, "seconds": round(time.perf_counter() - start)}


def run(drawn, output, everything):
    """Runs what the output does not hold yet, and with `everything` those that survived, too."""
    output.parent.mkdir(parents=True, exist_ok=True)
    known = read(output)
    for mutation in [Mutation(**item) for item in json.loads(drawn.read_text())]:
        done = known.get(mutation)
        if done and not (everything and done["outcome"] == "survived"):
            continue
        line = {**asdict(mutation), **result_of(mutation, everything)}
        with open(output, "a") as file:
            file.write(json.dumps(line) + "\n")
        print(line["outcome"], line.get("by", ""), mutation, flush=True)
    outcomes = [line["outcome"] for line in read(output).values()]
    print({outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))})


def read(output):
    """Mutation -> the last line of the output about it."""
    lines = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    return {Mutation(line["function"], line["statement"], line["becomes"]): line for line in lines}


def confirm(output):
    """The tests that killed pass in the tree as it is; exits with 1 if one does not."""
    killers = {}
    for line in read(output).values():
        if line["outcome"] == "killed" and not line["by"].startswith("none:"):
            file = ROOT / line["by"].partition("::")[0]
            killers.setdefault((line["backend"], library(file)), set()).add(line["by"])
    with copied() as folder:
        failed = [pytest(folder, backend, sorted(tests)) for (backend, _), tests in sorted(killers.items())]
    print(f"{sum(map(len, killers.values()))} tests", *(f"fails unharmed: {test}" for test in failed if test), sep="\n")
    return any(failed)


def main():
    os.nice(19)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("--count", type=int, default=30)
    drawing.add_argument("--seed", type=int, default=0)
    running = commands.add_parser("run")
    running.add_argument("drawn", type=pathlib.Path)
    running.add_argument("output", type=pathlib.Path)
    running.add_argument("--all", action="store_true", help="run all test files against what survives")
    confirming = commands.add_parser("confirm")
    confirming.add_argument("output", type=pathlib.Path)
    options = parser.parse_args()
    if options.command == "draw":
        print(json.dumps([asdict(mutation) for mutation in draw(options.count, options.seed)], indent=1))
    elif options.command == "run":
        run(options.drawn, options.output, options.all)
    else:
        sys.exit(confirm(options.output))


if __name__ == "__main__":
    main()
