"""What the parts of `make gpu` run on, what a case found, and the error that means that a machine lacks something."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch  # `suite.py` also runs where there is none

PASS, FAIL, MEASURED, SKIPPED, ERROR = "pass", "fail", "measured", "skipped", "error"
BAD = (FAIL, ERROR)
"""A result of this status makes the command's exit status 1."""


class Options(NamedTuple):
    """What a part runs on, and at which size."""

    device: torch.device
    quick: bool = False
    """Miniature shapes, a few seconds on a CPU: shows that a part runs, and measures nothing."""


class Lacking(Exception):
    """The machine has not what a case needs; the text says what, and the case is skipped."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number, or the reason why there is none."""

    case: str
    """What was run, e.g. `SD1.5 512x512`."""
    quantity: str = ""
    """What the number says, e.g. `time`."""
    way: str = ""
    """Whose number it is, e.g. `ours`, beside `plain`."""
    value: float | None = None
    unit: str = ""
    limit: float | None = None
    """The largest value with which a parity holds."""
    ratio: float | None = None
    """The value over that of plain attention or of the published loop, or an error over plain attention's own."""
    status: str = MEASURED
    detail: str = ""
    dtype: str = ""
    part: str = ""
    device: str = ""
    torch: str = ""

    def line(self) -> str:
        """The result in one line of a terminal."""
        name = " ".join(x for x in (self.case, self.dtype) if x)
        value = f"{digits(self.value)} {self.unit}".strip()
        limit = "" if self.limit is None else f"(at most {self.limit:.2g})"
        ratio = "" if self.ratio is None else f"= {self.ratio:.3g} x"
        parts = (self.way, self.quantity, value, limit, ratio, self.detail and f"({self.detail})")
        return f"[{self.status}] {name}: {' '.join(x for x in parts if x)}"


Case = Callable[[], Iterable[Result]]


def parity(case: str, error: float, limit: float, **fields: Any) -> Result:
    """An error held against its limit; one that is not finite fails."""
    if not math.isfinite(error):
        fields["detail"] = "what was computed is not finite"
        return Result(case=case, limit=limit, status=FAIL, **fields)
    return Result(case=case, value=error, limit=limit, status=PASS if error <= limit else FAIL, **fields)


def digits(value: float | None) -> str:
    """Four of them, or all before the point; nothing for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
