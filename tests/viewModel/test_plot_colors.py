"""Plots on white in the colours of a theme."""

import colorsys

from modules.viewModel.plot_colors import in_colors

import pytest
from PIL import Image, ImageColor

THEMES = {"light": ("#f8f9fa", "#1b1f24"), "dark": ("#2a2d31", "#e3e8ee")}


def pixel(color: str | tuple[int, int, int], paper: str, ink: str) -> tuple[int, ...]:
    return in_colors(Image.new("RGB", (1, 1), color), paper, ink).getpixel((0, 0))


@pytest.mark.parametrize("theme", THEMES)
def test_white_is_paper_and_black_is_ink(theme):
    paper, ink = THEMES[theme]
    for color, expected in (("white", paper), ("black", ink)):
        # rounded once
        assert pixel(color, paper, ink) == pytest.approx(ImageColor.getrgb(expected), abs=1)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("color", ["#4878a8", "#ee854a", "#6acc64", "#d65f5f", "#956cb4"])
def test_a_line_keeps_its_hue_and_can_be_seen(theme, color):
    paper, ink = THEMES[theme]
    before, after, ground = (
        colorsys.rgb_to_hls(*(channel / 255 for channel in rgb))
        for rgb in (ImageColor.getrgb(color), pixel(color, paper, ink), ImageColor.getrgb(paper))
    )
    turn = abs(before[0] - after[0])
    # papers are not quite grey, and neither are inks
    assert min(turn, 1 - turn) < 0.06
    assert abs(after[1] - ground[1]) > 0.2
