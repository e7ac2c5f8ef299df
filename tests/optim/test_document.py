from pathlib import Path

from modules.util.config.document import with_current_tables
from scaled_optim.document import rules_markdown
from scaled_optim.rules.registry import RULES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "optimizers.md"


def test_the_page_has_the_current_table():
    text = PAGE.read_text(encoding="utf-8")
    # mended by scripts/create_train_files.py --update-docs
    assert with_current_tables(text, str(PAGE), rules_markdown()) == text


def test_every_option_of_every_rule_has_a_cell():
    rows = {line.split("`")[1]: line.split("|")[2:-1] for line in rules_markdown().splitlines() if "`" in line}
    for column, rule in enumerate(RULES.values()):
        assert {name for name, cells in rows.items() if cells[column].strip()} == set(rule.defaults)
