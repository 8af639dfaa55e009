"""What a user sees on the screen for each `verbose`."""

import pytest

from kprune.util.progress import progress


@pytest.mark.once
@pytest.mark.parametrize(
    "verbose, out, err", [(0, "", ""), (1, "", "rounds"), ("auto", "", "rounds"), (2, "rounds", "")]
)
def test_one_bar_or_one_line_or_nothing(verbose, out, err, capsys):
    with progress("rounds", 3, verbose) as bar:
        bar.update()
    shown = capsys.readouterr()
    assert out in shown.out and bool(out) == bool(shown.out)
    assert err in shown.err and bool(err) == bool(shown.err)
