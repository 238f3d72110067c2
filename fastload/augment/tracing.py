"""Draws as one Triton kernel: the arithmetic of geometry.py, colour.py and policies.py, traced once and written out.

The trace has one line per operation, in the order they were made. `compile_draws` keeps those that the plan
needs and gives them to Triton, so a batch's draws are one launch, however many transforms there are.
"""

from __future__ import annotations

import linecache
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastload.augment.arithmetic import Array
from fastload.augment.plan import Plan, rows_of

_TYPES = {"f": "tl.float64", "i": "tl.int64", "b": "tl.int1"}


class Symbol:
    """A number of each image that is not known yet: a line of the trace. `kind`: f(loat), i(nteger) or b(ool)."""

    def __init__(self, trace: Trace, name: str, kind: str) -> None:
        self.trace, self.name, self.kind = trace, name, kind

    def __add__(self, other: Array) -> Array:
        return self.trace.binary("+", self, other)

    def __radd__(self, other: Array) -> Array:
        return self.trace.binary("+", other, self)

    def __sub__(self, other: Array) -> Array:
        return self.trace.binary("-", self, other)

    def __rsub__(self, other: Array) -> Array:
        return self.trace.binary("-", other, self)

    def __mul__(self, other: Array) -> Array:
        return self.trace.binary("*", self, other)

    def __rmul__(self, other: Array) -> Array:
        return self.trace.binary("*", other, self)

    def __truediv__(self, other: Array) -> Array:
        return self.trace.binary("/", self, other)

    def __rtruediv__(self, other: Array) -> Array:
        return self.trace.binary("/", other, self)

    def __rshift__(self, other: int) -> Array:
        return self.trace.binary(">>", self, other)

    def __and__(self, other: Array) -> Array:
        if isinstance(other, bool | np.bool_):
            return self if other else False
        return self.trace.binary("&", self, other)

    __rand__ = __and__

    def __or__(self, other: Array) -> Array:
        if isinstance(other, bool | np.bool_):
            return True if other else self
        return self.trace.binary("|", self, other)

    __ror__ = __or__

    def __lt__(self, other: Array) -> Array:
        return self.trace.binary("<", self, other, kind="b")

    def __le__(self, other: Array) -> Array:
        return self.trace.binary("<=", self, other, kind="b")

    def __gt__(self, other: Array) -> Array:
        return self.trace.binary(">", self, other, kind="b")

    def __ge__(self, other: Array) -> Array:
        return self.trace.binary(">=", self, other, kind="b")

    def __eq__(self, other: object) -> Any:
        return self.trace.binary("==", self, other, kind="b")

    def __ne__(self, other: object) -> Any:
        return self.trace.binary("!=", self, other, kind="b")

    __hash__ = object.__hash__


class Trace:
    """Numbers (see arithmetic.py) that write down what is done to them."""

    def __init__(self) -> None:
        self._lines: list[tuple[tuple[str, ...], str, tuple[str, ...]]] = []  # names, expression, what it uses
        self._known: dict[str, Symbol] = {}
        self._drawn: dict[tuple[int, int, bool, bool], tuple[Symbol, ...]] = {}
        self.parity: Array = Symbol(self, "k4", "i")

    def words(
        self, transform: int, count: int, *, every_epoch: bool = True, per_batch: bool = False
    ) -> Sequence[Array]:
        """See Numbers."""
        found: list[Array] = []
        for block in range((count + 3) // 4):
            key = (transform, block, every_epoch, per_batch)
            if key not in self._drawn:
                names = tuple(f"w{len(self._drawn)}_{i}" for i in range(4))
                ids = "first_low, first_high" if per_batch else "low, high"
                keys = "k0, k1" if every_epoch else "k2, k3"
                # Typed zeros: the words are int64 whatever Triton thinks of the constants.
                self._lines.append((names, f"philox(zero + {block}, view + {transform}, {ids}, {keys})", ()))
                self._drawn[key] = tuple(Symbol(self, n, "i") for n in names)
            found += self._drawn[key]
        return found[:count]

    def binary(self, sign: str, a: Array, b: Array, kind: str = "") -> Array:
        """Return `a sign b`."""
        found = kind or (
            "f" if sign == "/" or "f" in (_kind(a), _kind(b)) else _kind(a if isinstance(a, Symbol) else b)
        )
        return self._line(f"{_text(a)} {sign} {_text(b)}", found, a, b)

    def where(self, condition: Array, yes: Array, no: Array) -> Array:
        """See Numbers."""
        if not isinstance(condition, Symbol):
            return yes if condition else no
        if yes is no or (not isinstance(yes, Symbol) and not isinstance(no, Symbol) and yes == no):
            return yes
        kind = "f" if "f" in (_kind(yes), _kind(no)) else "i" if "i" in (_kind(yes), _kind(no)) else "b"
        return self._line(
            f"tl.where({condition.name}, {_full(yes, kind)}, {_full(no, kind)})", kind, condition, yes, no
        )

    def floor(self, x: Array) -> Array:
        """See Numbers."""
        return self._call("tl.floor", math.floor, x)

    def sqrt(self, x: Array) -> Array:
        """See Numbers."""
        return self._call("tl.sqrt", math.sqrt, x)

    def exp(self, x: Array) -> Array:
        """See Numbers."""
        return self._call("tl.exp", math.exp, x)

    def log(self, x: Array) -> Array:
        """See Numbers."""
        return self._call("tl.log", math.log, x)

    def sin(self, x: Array) -> Array:
        """See Numbers."""
        return self._call("tl.sin", math.sin, x)

    def cos(self, x: Array) -> Array:
        """See Numbers."""
        return self._call("tl.cos", math.cos, x)

    def minimum(self, a: Array, b: Array) -> Array:
        """See Numbers."""
        return self._either("tl.minimum", min, a, b)

    def maximum(self, a: Array, b: Array) -> Array:
        """See Numbers."""
        return self._either("tl.maximum", max, a, b)

    def number(self, x: Array) -> Array:
        """See Numbers."""
        return self._line(f"{x.name}.to(tl.float64)", "f", x) if isinstance(x, Symbol) else float(x)

    def whole(self, x: Array) -> Array:
        """See Numbers."""
        return self._line(f"{x.name}.to(tl.int64)", "i", x) if isinstance(x, Symbol) else int(x)

    def source(self, outputs: Sequence[Array]) -> str:
        """Return the kernel that stores `outputs`, row by row."""
        needed = {o.name for o in outputs if isinstance(o, Symbol)}
        kept = []
        for names, expression, uses in reversed(self._lines):
            if needed.intersection(names):
                needed.update(uses)
                kept.append(f"    {', '.join(names)} = {expression}")
        stores = [
            f"    tl.store(out_ptr + {row} * n + at, (nothing + {_stored(o)}).to(tl.float32), mask=inside)"
            for row, o in enumerate(outputs)
        ]
        return "\n".join([_HEAD, *reversed(kept), *stores, ""])

    def _call(self, name: str, known: Callable[[float], float], x: Array) -> Array:
        return self._line(f"{name}({x.name})", "f", x) if isinstance(x, Symbol) else float(known(x))

    def _either(self, name: str, known: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
        if not isinstance(a, Symbol) and not isinstance(b, Symbol):
            return known(a, b)
        kind = "f" if "f" in (_kind(a), _kind(b)) else "i"
        return self._line(f"{name}({_full(a, kind)}, {_full(b, kind)})", kind, a, b)

    def _line(self, expression: str, kind: str, *uses: Array) -> Symbol:
        # The same expression again is the same number: branches of one pipeline share their arithmetic.
        if expression not in self._known:
            name = f"v{len(self._known)}"
            self._lines.append(((name,), expression, tuple(u.name for u in uses if isinstance(u, Symbol))))
            self._known[expression] = Symbol(self, name, kind)
        return self._known[expression]


_HEAD = """\
@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["ids_ptr"])
def draw(ids_ptr, keys_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    zero = tl.zeros([BLOCK], tl.int64)
    nothing = tl.zeros([BLOCK], tl.float64)
    ids = tl.load(ids_ptr + at, mask=inside, other=0)
    low, high = ids & 0xFFFFFFFF, ids >> 32
    first = tl.load(ids_ptr) + zero
    first_low, first_high = first & 0xFFFFFFFF, first >> 32
    k0, k1, k2, k3 = tl.load(keys_ptr), tl.load(keys_ptr + 1), tl.load(keys_ptr + 2), tl.load(keys_ptr + 3)
    k4 = tl.load(keys_ptr + 4)
    view = zero + tl.load(keys_ptr + 5)"""


def compile_draws(trace: Trace, plan: Plan) -> Any:
    """Return the Triton kernel that stores the plan's numbers, float32 [rows, N], in the order of `rows_of`."""
    import triton
    import triton.language as tl

    from fastload.augment.kernels import philox

    source = trace.source(rows_of(plan))
    name = f"<draws {hash(source):x}>"
    # Triton reads a kernel's source back through `inspect`, which finds it here.
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace = {"triton": triton, "tl": tl, "philox": philox, "__name__": __name__}
    exec(compile(source, name, "exec"), namespace)
    return namespace["draw"]


def _kind(x: Array) -> str:
    if isinstance(x, Symbol):
        return x.kind
    return "b" if isinstance(x, bool | np.bool_) else "i" if isinstance(x, int | np.integer) else "f"


def _text(x: Array) -> str:
    return x.name if isinstance(x, Symbol) else repr(int(x)) if _kind(x) in "ib" else repr(float(x))


def _full(x: Array, kind: str) -> str:
    """Return a constant with its type: next to another constant, Triton would take float32."""
    if isinstance(x, Symbol):
        return x.name if x.kind == kind else f"{x.name}.to({_TYPES[kind]})"
    value = repr(float(x)) if kind == "f" else repr(int(x))
    return f"tl.full([BLOCK], {value}, {_TYPES[kind]})"


def _stored(x: Array) -> str:
    return f"{x.name}.to(tl.float64)" if isinstance(x, Symbol) else repr(float(x))
