from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from modules.util.texts import tr, tr_n
from modules.util.UserError import UserError
from modules.viewModel.caption_edits import Action, Edit
from modules.viewModel.CaptionText import CaptionChanged, CaptionText
from modules.viewModel.PictureSet import PictureSet
from modules.viewModel.read_pictures import Picture, written_by_model
from modules.viewModel.set_aside import Move, move_files, moves_aside

# what can be undone; each holds the captions before and after it
MOST_UNDONE = 50
EXAMPLES = 30
# characters of a caption in a question
MOST_SHOWN = 300


@dataclass(frozen=True)
class Plan:
    """What an edit would do to many captions.

    Attributes:
        edit: itself.
        changes: (caption as it is, its text after it) of each that changes.
        count: of captions that were looked at.
        fixed: how many of these can't be edited here.
    """

    edit: Edit
    changes: list[tuple[CaptionText, str]] = field(default_factory=list)
    count: int = 0
    fixed: int = 0

    @property
    def heading(self) -> str:
        """How many change, for people."""
        if not self.edit.text.strip():
            return tr("Type a text first.")
        new = sum(one.data is None for one, _ in self.changes)
        text = tr_n(
            "{changed} of {n} caption changes.", "{changed} of {n} captions change.", self.count,
            changed=len(self.changes),
        )  # fmt: skip
        if new:
            text += " " + tr_n("{n} of them has no file yet.", "{n} of them have no file yet.", new)
        if self.fixed:
            text += " " + tr_n("{n} can't be edited here.", "{n} can't be edited here.", self.fixed)
        return text

    @property
    def lines(self) -> list[str]:
        """The first changes, before and after."""
        lines = []
        for one, text in self.changes[:EXAMPLES]:
            lines += [f"{one.path.name}", f"  − {_flat(one.text)}", f"  + {_flat(text)}", ""]
        if len(self.changes) > EXAMPLES:
            lines.append(tr("and {count} more", count=len(self.changes) - EXAMPLES))
        return lines


@dataclass(frozen=True)
class Done:
    """What was done and can be undone.

    Attributes:
        title: for people.
        captions: (before, after) of each caption file that was written.
        moves: (from, to) of each file that was moved.
    """

    title: str
    captions: list[tuple[CaptionText, CaptionText]] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What came of work on files.

    Attributes:
        done: what was changed.
        told: for people: what was left as it is and why, empty if nothing.
        seen: captions that another program had changed, as they are now.
        undone: whether `done` took something back.
        left: what could not be taken back yet.
    """

    done: Done
    told: str = ""
    seen: list[CaptionText] = field(default_factory=list)
    undone: bool = False
    left: Done | None = None

    @property
    def summary(self) -> str:
        """What was done, for people."""
        if self.done.moves:
            return tr("Taken back: {what}.", what=self.done.title)
        count = len(self.done.captions)
        if self.undone:
            return tr_n("{n} caption is as it was.", "{n} captions are as they were.", count)
        return tr_n("{n} caption written.", "{n} captions written.", count)


class PictureEditor:
    """Edits the captions of a set of pictures, one at a time or many at once, and takes that back.

    Args:
        pictures: whose captions are edited.

    Attributes:
        chosen: the picture that is looked at, None for none.
        text: what stands in the box of its caption; the window keeps it so.
        done: what can be undone, the newest last.
        progress: how many files of a large action are done, and how many there are.
    """

    def __init__(self, pictures: PictureSet) -> None:
        self.pictures = pictures
        self.chosen: Picture | None = None
        self.text = ""
        self.done: list[Done] = []
        self.progress = (0, 0)

    @property
    def is_edited(self) -> bool:
        """Whether the box holds something that its file does not."""
        return self.chosen is not None and self._can_edit and self.text.rstrip() != self.pictures.text(self.chosen)

    @property
    def said(self) -> str:
        """What there is to say of the chosen picture and its caption."""
        if self.chosen is None:
            return ""
        pictures = self.pictures
        typed = self.text.rstrip() if self.is_edited else None
        lines = [pictures.why_fixed(self.chosen), *pictures.explain(self.chosen, typed)]
        if others := pictures.sharing(self.chosen):
            lines.insert(0, tr("This is the caption of {names}, too.", names=", ".join(others)))
        if self.is_edited:
            lines.insert(0, tr("Not saved yet."))
        return "\n".join(line for line in lines if line)

    @property
    def length_text(self) -> str:
        """How many tokens the caption in the box has, and how many are read; empty if that is not known."""
        return self.pictures.length_text(self.text.rstrip()) if self.chosen is not None else ""

    @property
    def undo_help(self) -> str:
        """What undoing would do."""
        return tr("Takes back: {what}.", what=self.done[-1].title) if self.done else tr("Nothing yet.")

    @property
    def _can_edit(self) -> bool:
        return self.chosen is not None and not self.pictures.why_fixed(self.chosen)

    def choose(self, picture: Picture | None) -> None:
        """Looks at another picture. What stands in its file now is read anew."""
        assert not self.is_edited
        self.chosen = picture
        self.reread()

    def leave(self) -> None:
        """Looks at no picture, as all are about to be read anew; what is edited has been saved or given up."""
        self.chosen, self.text = None, ""

    def reread(self) -> None:
        """Shows the caption as its file has it now; what was typed is lost."""
        if self.chosen is not None and self.chosen.caption is not None:
            found = CaptionText.read(self.chosen.caption)
            if found.data != self.pictures.captions[found.path].data:
                self._keep([found])
        self.text = self.pictures.text(self.chosen) if self.chosen is not None else ""

    def conflict(self) -> str:
        """What is asked where another program has changed the caption that is edited."""
        assert self.chosen is not None and self.chosen.caption is not None
        found = CaptionText.read(self.chosen.caption)
        theirs = found.trouble or found.text or tr("nothing")
        lines = [
            tr("The caption of {name} was changed by another program meanwhile.", name=self.chosen.name),
            tr("There: {caption}", caption=_short(theirs)),
            tr("Here: {caption}", caption=_short(self.text)),
        ]
        return "\n\n".join(lines)

    def save(self, over: bool = False) -> None:
        """Writes the caption of the chosen picture, if it was edited.

        Args:
            over: what another program has written meanwhile is replaced; a person was asked. Undoing brings it back.

        Raises:
            CaptionChanged: another program has changed it meanwhile.
            UserError: it can't be written.
        """
        if not self.is_edited:
            return
        assert self.chosen is not None and self.chosen.caption is not None
        path = self.chosen.caption
        before = CaptionText.read(path) if over else self.pictures.captions[path]
        after = before.put(before.with_text(self.text))
        title = tr("the caption of {name}", name=self.chosen.name)
        self._take(Done(title, [(before, after)]))
        self.text = after.text

    def plan(self, edit: Edit, everywhere: bool) -> Plan:
        """What an edit would change: in all captions, or in those of the pictures that are shown."""
        pictures = self.pictures.pictures if everywhere else self.pictures.shown
        files = dict.fromkeys(one.caption for one in pictures if one.caption is not None)
        captions = [self.pictures.captions[file] for file in files]
        fixed = sum(one.caption is None for one in pictures) + sum(bool(one.trouble) for one in captions)
        changes = []
        for one in captions:
            text = one.text if one.trouble else edit.apply(one.text, self.pictures.form).rstrip()
            if text != one.text:
                changes.append((one, text))
        return Plan(edit, changes, len(captions) + sum(one.caption is None for one in pictures), fixed)

    def apply(self, plan: Plan) -> Callable[[], Outcome]:
        """What writes the captions of a plan, on a worker's thread. One that was changed meanwhile is left as it is."""
        works = [(one, one.with_text(text)) for one, text in plan.changes]
        return lambda: self._write(title_of(plan.edit), works)

    def undo(self) -> Callable[[], Outcome]:
        """What takes back the newest action, on a worker's thread. Captions that were changed since stay."""
        last = self.done[-1]

        def work() -> Outcome:
            if last.moves:
                move_files([(to, one) for one, to in reversed(last.moves)])
            found = self._write(last.title, [(after, before.data) for before, after in last.captions])
            tried = len(found.done.captions) + len(found.seen)
            left = Done(last.title, last.captions[tried:]) if tried < len(last.captions) else None
            done = Done(last.title, found.done.captions, last.moves)
            return replace(found, done=done, undone=True, left=left)

        return work

    def take(self, outcome: Outcome) -> None:
        """Keeps what was done or undone. Where files were moved, the folder is to be read anew."""
        if outcome.undone:
            self.done[-1:] = [outcome.left] if outcome.left is not None else []
            self._keep([after for _, after in outcome.done.captions])
        elif outcome.done.captions:
            self._take(outcome.done)
        self._keep(outcome.seen)
        if self.chosen is not None and not outcome.done.moves:
            self.text = self.pictures.text(self.chosen)

    def moves(self) -> list[Move]:
        """Where the chosen picture and what belongs to it would be moved.

        Raises:
            UserError: its folder can't be listed.
        """
        assert self.chosen is not None
        return moves_aside(self.pictures.concept.path, self.chosen.path)

    def move_question(self, moves: Sequence[Move]) -> str:
        """What is asked before these moves."""
        assert self.chosen is not None
        question = tr("Move {name} to {folder}? Nothing is deleted.", name=self.chosen.name, folder=moves[0][1].parent)
        others = ", ".join(one.name for one, _ in moves[1:])
        return question + ("\n" + tr("These go with it: {names}.", names=others) if others else "")

    def set_aside(self, moves: Sequence[Move]) -> None:
        """Moves the chosen picture and what belongs to it out of the concept. None is chosen then.

        Raises:
            UserError: that can't be done; nothing was moved.
        """
        assert self.chosen is not None and not self.is_edited
        move_files(list(moves))
        picture, self.chosen, self.text = self.chosen, None, ""
        self.pictures.forget(picture)
        self._take(Done(tr("setting {name} aside", name=picture.name), moves=list(moves)))

    def _write(self, title: str, works: Sequence[tuple[CaptionText, bytes | None]]) -> Outcome:
        written: list[tuple[CaptionText, CaptionText]] = []
        seen: list[CaptionText] = []
        told = ""
        for place, (known, data) in enumerate(works):
            self.progress = (place, len(works))
            try:
                written.append((known, known.put(data)))
            except CaptionChanged:
                seen.append(CaptionText.read(known.path))
            except UserError as error:
                left = len(works) - place
                told = f"{error} " + tr_n("{n} caption is not written.", "{n} captions are not written.", left)
                break
        if seen:
            names = ", ".join(one.path.name for one in seen[:5]) + (" …" if len(seen) > 5 else "")
            told += " " + tr_n(
                "{n} caption was changed by another program meanwhile and is left as it is: {names}.",
                "{n} captions were changed by another program meanwhile and are left as they are: {names}.",
                len(seen), names=names,
            )  # fmt: skip
        return Outcome(Done(title, written), told.strip(), seen)

    def _take(self, done: Done) -> None:
        self._keep([after for _, after in done.captions])
        self.done = [*self.done, done][-MOST_UNDONE:]

    def _keep(self, captions: list[CaptionText]) -> None:
        """A caption that is as a model wrote it again counts as the model's again."""
        self.pictures.changed(captions)
        self.pictures.by_model -= {one.path for one in captions}
        self.pictures.by_model |= written_by_model(captions)


def title_of(edit: Edit) -> str:
    """What an edit does, for people."""
    if edit.action == Action.REPLACE:
        return tr("replacing “{old}” by “{new}”", old=edit.text, new=edit.by)
    if edit.action == Action.REMOVE:
        return tr("removing “{what}”", what=edit.text)
    return tr("adding “{what}”", what=edit.text)


def _short(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN].rstrip()} …"


def _flat(text: str) -> str:
    return " ⏎ ".join(text.split("\n"))
