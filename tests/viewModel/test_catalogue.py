"""The catalogues have every text of the code, and nothing else."""

import ast
import re
from pathlib import Path

from modules.util.texts import LANGUAGES, languages
from modules.viewModel import catalogue
from modules.viewModel.catalogue import TEMPLATE, faults, gather, template, update

import polib
import pytest

ROOT = Path(__file__).resolve().parents[2]
RENEW = "run scripts/create_train_files.py --update-docs"


@pytest.fixture(scope="module")
def texts():
    return gather(ROOT)


def test_the_template_is_that_of_the_code(texts):
    assert TEMPLATE.read_text(encoding="utf-8") == f"{str(template(texts)).rstrip()}\n", RENEW


@pytest.mark.parametrize("code", [code for code in languages() if code != "en"])
def test_a_language_has_every_text_and_no_other(texts, code):
    file = polib.pofile(str(LANGUAGES / f"{code}.po"), encoding="utf-8")
    known = {(entry.msgid, entry.msgid_plural or "") for entry in file}
    assert known == {(text.one, text.many) for text in texts} and len(known) == len(file), RENEW
    assert not file.obsolete_entries()
    assert faults(file) == []
    assert file.metadata["Language"] == code and file.metadata["X-Name"]
    # the window takes that word for an empty field
    assert [entry.msgid for entry in file if " null" in f" {entry.msgstr}"] == []


def test_texts_come_from_calls_and_from_declarations(tmp_path):
    place = tmp_path / "modules" / "a.py"
    place.parent.mkdir()
    place.write_text(
        'x = tr("One " "text", name=later("A name"))\ny = tr(x)\nTool(NAME, "Help", do="Do", size=3)\n'
        'z = tr_n("{n} thing", "{n} things", 2)\n'
    )
    found = gather(tmp_path)
    called = [(text.one, text.many) for text in found if text.place == "modules/a.py"]
    assert called == [("One text", ""), ("A name", ""), ("Help", ""), ("Do", ""), ("{n} thing", "{n} things")]
    declared = {text.one for text in found if text.place == catalogue.PLACE}
    # title, help and unit of options, of the engine's too; a group, a value, a tool's field
    assert {"Batch size", "Passes over all concepts.", "pixels", "Scaled steps", "Noise and timesteps"} <= declared
    assert {"Full fine-tuning", "Written file"} <= declared
    assert "sample_after_unit" not in declared and "" not in declared


def test_an_update_keeps_what_is_translated(tmp_path):
    path = tmp_path / "xx.po"
    old = polib.POFile()
    old.metadata, old.header = {"Language": "xx", "X-Name": "Xx", "Content-Type": "text/plain; charset=UTF-8"}, "words"
    old += [polib.POEntry(msgid="Kept", msgstr="K"), polib.POEntry(msgid="Stale", msgstr="S")]
    path.write_text(str(old), encoding="utf-8")
    texts = [catalogue.Text("New", "", "a.py"), catalogue.Text("Kept", "", "a.py")]
    assert update(path, template(texts)) and not update(path, template(texts))
    now = polib.pofile(str(path))
    assert [(entry.msgid, entry.msgstr) for entry in now] == [("New", ""), ("Kept", "K")]
    assert now.metadata["X-Name"] == "Xx" and now.header.strip() == "words"
    assert faults(now) == ["'New': not translated"]


def test_names_in_braces_must_be_the_same():
    file = polib.POFile()
    file += [
        polib.POEntry(msgid="{a} of {b:.2f}", msgstr="{b} von {a}"),
        polib.POEntry(msgid="{a}", msgstr="{b}"),
        polib.POEntry(msgid="{n} thing", msgid_plural="{n} things", msgstr_plural={0: "ein Ding", 1: "{n} Dinge"}),
        polib.POEntry(msgid="{n} x", msgid_plural="{n} xs", msgstr_plural={0: "{n} x", 1: ""}),
    ]
    assert faults(file) == ["'{a}': other names in braces: '{b}'", "'{n} x': not translated"]


SHOWN = {"text", "label", "title", "message"}
TRANSLATING = {"tr", "tr_n", "later"}
# asks questions that only a check of the window sees
NOT_SHOWN = {"window_scenes"}


def untranslated(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, text) of what a widget, a window's title, the line for news or a question is given without `tr`."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = [keyword.value for keyword in node.keywords if keyword.arg in SHOWN]
        given += node.args if name in ("title", "say", "attach", "AskWindow") else []
        # the first is the value
        given += node.args[1:] if name == "Choice" else []
        if name == "AskWindow":
            given += [one for arg in node.args if isinstance(arg, ast.Tuple) for one in arg.elts]
        found += [(node.lineno, text) for value in given for text in literals(value)]
    return found


def literals(node: ast.AST) -> list[str]:
    """The words that an expression brings itself."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and any(map(str.isalpha, node.value)) else []
    if isinstance(node, ast.IfExp):
        return literals(node.body) + literals(node.orelse)
    if isinstance(node, (ast.BoolOp, ast.JoinedStr)):
        return [text for value in node.values for text in literals(value)]
    if isinstance(node, ast.BinOp):
        return literals(node.left) + literals(node.right)
    if isinstance(node, ast.Lambda):
        return literals(node.body)
    return []


def test_views_show_no_text_past_the_catalogue():
    for path in (ROOT / "modules" / "ui").glob("*.py"):
        if path.stem in NOT_SHOWN:
            continue
        assert untranslated(ast.parse(path.read_text(encoding="utf-8"))) == [], f"{path}: tr() is missing"


def test_a_text_past_the_catalogue_is_found():
    code = (
        'ttk.Label(a, text="Words")\nLabel(text="x" if a else tr("Good"))\nsay(f"{a} is")\nLabel(text=f"{a} ↑")\n'
        'tip.attach(b, lambda: "Help")\nAskWindow(a, tr("T"), q, ("Yes", NO))\nself.title("Window")\ns.title()\n'
    )
    assert untranslated(ast.parse(code)) == [
        (1, "Words"), (2, "x"), (3, " is"), (5, "Help"), (6, "Yes"), (7, "Window"),
    ]  # fmt: skip


def test_texts_are_literals():
    """A text with a value in it would be a key of no catalogue."""
    for path in (ROOT / "modules").rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(code)) if re.search(r"\b(tr|tr_n|later)\(", code) else ():
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in TRANSLATING:
                made = [argument for argument in node.args[:2] if isinstance(argument, (ast.JoinedStr, ast.BinOp))]
                assert not made, f"{path}, line {node.lineno}"


# calls whose texts need none, as these are patterns, names of what is kept, or gathered where they are declared
KNOWN_CALLS = {*TRANSLATING, "option", "Tool", "compile", "search", "sub", "Panes", "setdefault", "get"}
# what is written into files or on a terminal, declared elsewhere, or for checks of the window
NOT_READ = {"run_page", "value_names", "catalogue", "window_scenes", "layout_faults", "window_keys", "ConsoleProgress"}
# a script's command line, which is put in other words, and what only a mistake of the program would show
NO_TEXTS = {
    "scripts/convert_adapter.py IN OUT --format KOHYA_LORA", "found , expected one of ", "expected texts, found ",
}  # fmt: skip
WORD = re.compile(r"[A-Za-z'’]+[.,:;!?]*")
LEAST_WORDS = 3


def sentences(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, text) of what reads like a sentence and is in no call that translates it."""
    found: list[tuple[int, str]] = []

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in KNOWN_CALLS:
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, (ast.JoinedStr, ast.Constant)):
            text = "".join(literals(node)) if isinstance(node, ast.JoinedStr) else node.value
            if isinstance(text, str) and text not in NO_TEXTS and _words(text) >= LEAST_WORDS:
                found.append((node.lineno, text))
            return
        # a key
        children = [node.value] if isinstance(node, ast.Subscript) else ast.iter_child_nodes(node)
        for child in children:
            look(child)

    look(tree)
    return found


def _words(text: str) -> int:
    return sum(WORD.fullmatch(word) is not None for word in text.split())


def test_models_and_views_have_no_sentence_past_the_catalogue():
    files = [path for room in ("ui", "viewModel", "run") for path in (ROOT / "modules" / room).rglob("*.py")]
    for path in files:
        if path.stem not in NOT_READ:
            assert sentences(ast.parse(path.read_text(encoding="utf-8"))) == [], f"{path}: tr() is missing"


def test_a_sentence_past_the_catalogue_is_found():
    code = "\n".join(
        [
            '"""A text about the file."""', """raise UserError(f"{path} can't be read: {why}")""",
            'say(tr("It is all right."))', 'reason = "It was not started."', 're.compile("a word or two")',
            'name = "two words"', 'f(x if a else "This is it.")', 'kept["a key of three"] = "lora_init_scale.a.b"',
        ]
    )  # fmt: skip
    assert sentences(ast.parse(code)) == [(2, " can't be read: "), (4, "It was not started."), (7, "This is it.")]
