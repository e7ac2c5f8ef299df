"""The page of recommended settings has the numbers that the window names."""

from pathlib import Path

from modules.viewModel.recommended import RATES, TINY_RATES

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recommended.md").read_text(encoding="utf-8")
TABLES = dict(zip(("tiny", "other"), PAGE.split("\n## ")[1:3], strict=True))


@pytest.mark.parametrize(("name", "rates"), [("tiny", TINY_RATES), ("other", RATES)])
def test_each_rate_stands_on_the_page_with_its_source(name, rates):
    rows = [line for line in TABLES[name].splitlines() if line.startswith("|")][2:]
    assert rows == [f"| {what} | {kind} | {rate.value:g} | {rate.source} |" for (what, kind), rate in rates.items()]
