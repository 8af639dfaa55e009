"""Programs in processes that are forked from one that has imported what they need: most take longer to import it."""

import multiprocessing
import os
import runpy
import sys

import pytest


def start(program, *words, imports, log, env=None):
    """Starts `python program words...` and does not wait for it; what it prints is added to the file `log`.

    Args:
        imports: modules that the process from which all are forked imports before the first; of these nothing may run.

    Returns:
        A process of `multiprocessing`.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(list(imports))
    process = forks.Process(target=_run, args=(str(program), [*map(str, words)], str(log), env or {}), daemon=True)
    with pytest.MonkeyPatch.context() as patch:  # as `start_process` in helpers.py
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        patch.delenv("TF_USE_LEGACY_KERAS", raising=False)
        process.start()
    return process


def _run(program, words, log, env):
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
    sys.argv = [program, *words]
    runpy.run_path(program, run_name="__main__")
