"""What all figures share."""

import pytest

from kprune.experiments.sweep import METHODS
from kprune.util.plotting import LINES, line_of, new_axes, percent, plain_axes


@pytest.mark.parametrize(
    ("ends", "shown"), [((0.25, 1), {"100%", "50%", "30%"}), ((0.001, 1), {"100%", "10%", "1%", "0.1%"})]
)
def test_ticks_of_a_logarithmic_axis_are_plain_percent(ends, shown):
    figure, axes = new_axes(9, 5)
    axes.plot(ends, [0, 1])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(percent())
    plain_axes(axes)
    figure.draw_without_rendering()
    labels = {label.get_text() for which in ("major", "minor") for label in axes.get_xticklabels(which=which)} - {""}
    assert shown <= labels and all(label.endswith("%") for label in labels), labels


def test_a_method_keeps_its_line():
    known = (*METHODS, *map(str, range(20)))
    assert [line_of(name, known)["color"] for name in METHODS] == list(LINES[:5])
    lines = [tuple(line_of(name, known).values()) for name in known]
    assert len(set(lines)) == len(known)
