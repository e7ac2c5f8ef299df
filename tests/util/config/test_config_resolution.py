"""The text form of resolutions."""

from modules.util.config.resolution import Resolution, parse_resolutions

import pytest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512", [Resolution(512, 512, False)]),
        ("512,768", [Resolution(512, 512, False), Resolution(768, 768, False)]),
        (" 512x768 ", [Resolution(512, 768, True)]),
        ("64, 96X128", [Resolution(64, 64, False), Resolution(96, 128, True)]),
    ],
)
def test_reads(text, expected):
    assert list(parse_resolutions(text)) == expected


@pytest.mark.parametrize(
    "text", ["", ",", "512,", "x", "512x", "x512", "7", "70000", "512x7", "-512", "512.0", "1e3", "512x5x5"]
)
def test_refuses(text):
    with pytest.raises(ValueError):
        parse_resolutions(text)
