"""Looks for shapes in the syntax tree of a file, without running it: each look gives a line, or None."""

import ast
from collections.abc import Callable, Iterator

Look = Callable[[ast.Module], int | None]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def scope_of(tree: ast.Module, path: str) -> ast.AST | None:
    """A class or function by its dotted path in a file, "" for the file itself; None: there is none."""
    found: ast.AST | None = tree
    for name in path.split(".") if path else ():
        found = next((node for node in _definitions(found) if node.name == name), None)
        if found is None:
            return None
    return found


def _definitions(scope: ast.AST) -> Iterator[ast.ClassDef | Function]:
    """Classes and functions right inside a scope, those under `if` and `try` too."""
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions(node)


def arguments_of(function: Function) -> list[str]:
    """The names of a function's arguments in order, without `self`."""
    given = function.args
    names = [argument.arg for argument in [*given.posonlyargs, *given.args]]
    return names[1:] if names[:1] == ["self"] else names


def class_named(name: str, *bases: str) -> Look:
    """A class with these among its bases, whatever they are reached by."""

    def look(tree: ast.Module) -> int | None:
        found = scope_of(tree, name)
        if not isinstance(found, ast.ClassDef):
            return None
        have = {ast.unparse(base).split(".")[-1] for base in found.bases}
        return found.lineno if have.issuperset(bases) else None

    return look


def function(path: str, *arguments: str, decorated: str | None = None) -> Look:
    """A function whose arguments begin with these.

    Args:
        decorated: the name of a decorator that it has.
    """

    def look(tree: ast.Module) -> int | None:
        found = scope_of(tree, path)
        if not isinstance(found, Function) or tuple(arguments_of(found)[: len(arguments)]) != arguments:
            return None
        have = [ast.unparse(decorator) for decorator in found.decorator_list]
        return found.lineno if decorated is None or decorated in have else None

    return look


def accepts(path: str, *arguments: str) -> Look:
    """A function that takes these arguments by name, in any order."""

    def look(tree: ast.Module) -> int | None:
        found = scope_of(tree, path)
        if not isinstance(found, Function):
            return None
        return (
            found.lineno if set(arguments) <= {*arguments_of(found), *(a.arg for a in found.args.kwonlyargs)} else None
        )

    return look


def _first(tree: ast.Module, path: str, fits: Callable[[ast.AST], bool]) -> int | None:
    scope = scope_of(tree, path)
    lines = [node.lineno for node in ast.walk(scope) if fits(node)] if scope is not None else []
    return min(lines, default=None)


def sets(path: str, target: str) -> Look:
    """An assignment to `target`, or a declaration of it, in a class, function or file."""

    def fits(node: ast.AST) -> bool:
        if isinstance(node, ast.Assign):
            targets = [part for whole in node.targets for part in getattr(whole, "elts", [whole])]
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            return False
        return any(ast.unparse(part) == target for part in targets)

    return lambda tree: _first(tree, path, fits)


def sets_ending(path: str, target: str, end: str) -> Look:
    """An assignment to `target` of something that is made with a text that ends with `end`."""

    def fits(node: ast.AST) -> bool:
        if not isinstance(node, ast.Assign) or ast.unparse(node.targets[0]) != target:
            return False
        texts = [part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
        return any(isinstance(text, str) and text.endswith(end) for text in texts)

    return lambda tree: _first(tree, path, fits)


def calls(path: str, function: str, positional: int | None = None, keyword: str | None = None) -> Look:
    """A call whose function reads as `function` or ends with it after a dot.

    Args:
        positional: how many arguments are given by place, None: any number.
        keyword: an argument that is given by name.
    """

    def fits(node: ast.AST) -> bool:
        if not isinstance(node, ast.Call):
            return False
        text = ast.unparse(node.func)
        if text != function and not text.endswith(f".{function}"):
            return False
        by_name = {argument.arg for argument in node.keywords}
        return (positional is None or len(node.args) == positional) and (keyword is None or keyword in by_name)

    return lambda tree: _first(tree, path, fits)


def reads(path: str, expression: str) -> Look:
    """A place that reads a name or an attribute, as `config.peft_type`; also the class that an `isinstance` names."""

    def fits(node: ast.AST) -> bool:
        return isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) == expression

    return lambda tree: _first(tree, path, fits)


def says(path: str, text: str) -> Look:
    """A text that stands in the code, as the key of a dictionary does."""
    return lambda tree: _first(tree, path, lambda node: isinstance(node, ast.Constant) and node.value == text)


def says_with(path: str, text: str) -> Look:
    """A text that has this in it, and stands in the code."""

    def fits(node: ast.AST) -> bool:
        return isinstance(node, ast.Constant) and isinstance(node.value, str) and text in node.value

    return lambda tree: _first(tree, path, fits)


def imports(name: str, module: str) -> Look:
    """An import of a name from a module, anywhere in a file."""

    def fits(node: ast.AST) -> bool:
        return isinstance(node, ast.ImportFrom) and node.module == module and any(a.name == name for a in node.names)

    return lambda tree: _first(tree, "", fits)


def every(*looks: Look) -> Look:
    """All of these; the line is that of the first."""

    def look(tree: ast.Module) -> int | None:
        lines = [one(tree) for one in looks]
        return None if None in lines else lines[0]

    return look


def either(*looks: Look) -> Look:
    """One of these."""
    return lambda tree: next((line for one in looks if (line := one(tree)) is not None), None)
