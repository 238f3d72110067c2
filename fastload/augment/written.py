"""Transforms written as text, as they would stand in a Compose; only their constructors are called, with literals."""

from __future__ import annotations

import ast
import enum
from typing import Any

from torchvision import transforms
from torchvision.transforms import v2

from fastload.augment import own
from fastload.errors import TransformError, printable

EXAMPLE = '"RandomResizedCrop(96, scale=(0.5, 1)), RandomHorizontalFlip(), TrivialAugmentWide()"'


def read_written(text: str) -> list[Any]:
    """Return the transforms that `text` names, separated by commas: torchvision's v2, or fastload's own.

    Raises:
        TransformError: no such transform, anything but literals as its options, or options that it refuses.
    """
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
    except (SyntaxError, ValueError) as e:
        raise TransformError(
            f"{printable(repr(text))} cannot be read ({e.args[0]}); write it as in a Compose: {EXAMPLE}."
        ) from e
    nodes = tree.elts if isinstance(tree, ast.List) else [tree]
    for node in nodes:
        if not isinstance(node, ast.Call):
            raise TransformError(
                f"{printable(ast.unparse(node))} is no transform; write it as in a Compose: {EXAMPLE}."
            )
    return [_value(node) for node in nodes]


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.List | ast.Tuple):
        values = [_value(n) for n in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _made(node.func.id, [_value(a) for a in node.args], {str(k.arg): _value(k.value) for k in node.keywords})
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        kind = getattr(transforms, node.value.id, None)
        if isinstance(kind, enum.EnumMeta) and node.attr in kind.__members__:
            return kind[node.attr]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as e:
        raise TransformError(
            f"{printable(ast.unparse(node))} is neither a number, a text, a list of these, nor a transform; "
            f"write it as in a Compose: {EXAMPLE}."
        ) from e


def _made(name: str, args: list[Any], options: dict[str, Any]) -> Any:
    kind = own.__dict__.get(name) or v2.__dict__.get(name)
    if not isinstance(kind, type) or name.startswith("_"):
        raise TransformError(f"{printable(name)} is no transform of torchvision.transforms.v2 or fastload.augment.")
    try:
        return kind(*args, **options)
    except (TypeError, ValueError) as e:
        raise TransformError(f"{printable(name)} refuses its options ({printable(e)}); look at its arguments.") from e
