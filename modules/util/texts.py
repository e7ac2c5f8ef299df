"""What the window says, in the language that was chosen: English texts are the keys of the catalogues."""


def tr(text: str, /, **values: object) -> str:
    """A text of the window in its language.

    Args:
        text: in English, a literal wherever this is called, as the catalogue is gathered from the calls. Names of
            `values` stand in braces: "{count} of {all} pictures".
        values: for the names in braces, after the translation. Without any, braces are plain characters.
    """
    return text.format(**values) if values else text


def tr_n(one: str, many: str, n: int, **values: object) -> str:
    """The same for a number of things, which is "{n}" in both texts.

    Args:
        one: for a single one.
        many: for any other number.
        n: the number.
        values: for other names in braces.
    """
    return (one if n == 1 else many).format(n=n, **values)
