"""What the window calls the ways to search and edit captions."""

from modules.util.texts import tr
from modules.viewModel.caption_edits import Action, Within


def within_name(within: Within) -> str:
    """What a text is looked for as."""
    names = {
        Within.ANYWHERE: tr("anywhere"), Within.WORDS: tr("as whole words"), Within.TAGS: tr("as a whole tag")
    }  # fmt: skip
    return names[within]


def action_name(action: Action) -> str:
    """What is done to captions."""
    names = {
        Action.REPLACE: tr("Replace"), Action.FRONT: tr("Add at the front"), Action.END: tr("Add at the end"),
        Action.REMOVE: tr("Remove"),
    }  # fmt: skip
    return names[action]


def field_name(action: Action) -> str:
    """What the first field holds."""
    return tr("Add") if action in (Action.FRONT, Action.END) else tr("Find")


def help_of(action: Action) -> str:
    """What an action does besides."""
    texts = {
        Action.REPLACE: tr("A tag that a caption has then twice is left out once."),
        Action.FRONT: tr("A tag gets a delimiter behind it. Captions that have it stay as they are."),
        Action.END: tr("A tag gets a delimiter before it. Captions that have it stay as they are."),
        Action.REMOVE: tr("A tag goes with its delimiter, a word with the space behind it."),
    }  # fmt: skip
    return texts[action]


def offered(action: Action) -> tuple[Within, ...]:
    """What a text can be for an action, the usual one first."""
    if action in (Action.FRONT, Action.END):
        return Within.TAGS, Within.WORDS
    if action == Action.REMOVE:
        return Within.TAGS, Within.WORDS, Within.ANYWHERE
    return tuple(Within)


def scope_name(everywhere: bool) -> str:
    """Which captions are changed."""
    return tr("in all captions of the folder") if everywhere else tr("in captions of the pictures shown")
