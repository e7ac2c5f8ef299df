"""Real text to classify: which library does the first paragraph of a docstring come from?

The texts are read from the packages that requirements.txt pins, so that everybody has the same ones and none has to be
shipped. Libraries' names and dotted names are taken out. A file's texts are all in one split, and a text that repeats
another's words is left out, wherever it stands, so that nothing that is trained on is asked for again.
"""

import ast
import hashlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modules.util.UserError import UserError

# label -> folder in the packages' folder
LIBRARIES: Mapping[str, str] = {
    name: name.replace(".", "/")
    for name in (
        "scipy.stats", "scipy.optimize", "numpy", "matplotlib", "torch.nn", "torch.distributed", "torch.fx", "pydantic",
        "peft", "diffusers",
    )
}  # fmt: skip
# what says the answer by itself
NAMES = re.compile(
    r"\b(scipy|numpy|np|matplotlib|mpl|pyplot|plt|(?:py)?torch|pydantic|peft|diffusers|hugging ?face)"
    r"(?:'s|es|s)?\b",
    re.IGNORECASE,
)
# copies of other projects, and code for tests, whose texts are no library's own
FOREIGN = {"tests", "test", "testing", "_testing", "_vendor", "externals", "extern", "src"}
WORDS = range(5, 41)
PER_FILE = 20
# share of a text's runs of three words that others may have used before it
KNOWN_SHARE = 0.5

Texts = list[tuple[str, int]]


@dataclass(frozen=True)
class TextSet:
    """Texts with the places of their labels, as many of each label in every split.

    Attributes:
        labels: names of the classes.
        train, tuning, validation: (text, place in `labels`). A learning rate is chosen by `tuning`, and what it comes
            to is measured on `validation`.
        files: split -> the files that its texts come from.
    """

    labels: tuple[str, ...]
    train: Texts
    tuning: Texts
    validation: Texts
    files: Mapping[str, frozenset[str]] = field(repr=False)

    @property
    def digest(self) -> str:
        """Of all texts; two results are comparable if it is the same."""
        content = repr((self.labels, self.train, self.tuning, self.validation))
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def text_set(
    train: int, tuning: int, validation: int, libraries: Mapping[str, str] = LIBRARIES, root: Path | None = None
) -> TextSet:
    """The same texts whenever it is called with the same numbers and versions of the packages.

    Args:
        train, tuning, validation: texts of each library, at least 1.
        libraries: label -> folder below `root`.
        root: holds the packages; None: where torch is installed.

    Raises:
        UserError: a library is missing or has too few texts.
    """
    root = root or packages_folder()
    wanted = {"validation": validation, "tuning": tuning, "train": train}
    splits: dict[str, Texts] = {name: [] for name in wanted}
    files: dict[str, set[str]] = {name: set() for name in wanted}
    known: set[tuple[str, ...]] = set()
    for label, folder in enumerate(libraries.values()):
        sources = _files(root, folder)
        for split, count in wanted.items():
            found: Texts = []
            while len(found) < count:
                path = next(sources, None)
                if path is None:
                    raise UserError(
                        f"{root / folder}: found {len(found)} texts for {split}, expected {count}. Install what "
                        "requirements-dev.txt names, in the versions that it names."
                    )
                fresh = [text for text in _texts(path) if _is_new(text, known)][: min(PER_FILE, count - len(found))]
                if fresh:
                    found += [(text, label) for text in fresh]
                    files[split].add(path.relative_to(root).as_posix())
            splits[split] += found
    return TextSet(tuple(libraries), **splits, files={name: frozenset(own) for name, own in files.items()})


def packages_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise UserError("torch is not installed; expected the packages of requirements.txt.")
    return Path(spec.origin).parents[1]


def clean(text: str) -> str:
    """A paragraph without markup, dotted names and libraries' names.

    >>> clean("Draw with :func:`~matplotlib.pyplot.plot`, as ``numpy`` does.")
    'Draw with plot, as library does.'
    """
    text = re.sub(r":[a-z:]+:(?=`)", "", text)
    text = re.sub(r"[`*~\\]+", "", text)
    text = re.sub(r"\b(?:[A-Za-z_]\w+\.)+([A-Za-z_]\w+)", r"\1", text)
    return " ".join(NAMES.sub("library", text).split())


def runs_of(text: str) -> set[tuple[str, ...]]:
    """Every run of three words, in lower case; of a text's own words."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return set(zip(words, words[1:], words[2:], strict=False))


def _is_new(text: str, known: set[tuple[str, ...]]) -> bool:
    """Whether most of a text has not been said; it counts as said then."""
    runs = runs_of(text)
    if not runs or len(runs & known) > KNOWN_SHARE * len(runs):
        return False
    known |= runs
    return True


def _files(root: Path, folder: str) -> Iterator[Path]:
    """Sources in an order that is mixed but always the same."""
    found = (path.relative_to(root) for path in (root / folder).rglob("*.py"))
    own = [path.as_posix() for path in found if not FOREIGN & set(path.parts)]
    for name in sorted(own, key=lambda name: hashlib.sha256(name.encode()).digest()):
        yield root / name


def _texts(path: Path) -> list[str]:
    """First paragraphs of a file's docstrings, cleaned, those of a fitting length."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # templates of code generators
        return []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    docstrings = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    texts = (clean(docstring.split("\n\n")[0]) for docstring in docstrings if docstring)
    return [text for text in texts if len(text.split()) in WORDS]
