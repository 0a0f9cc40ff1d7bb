"""What a case of `make gpu` found, and the errors that mean that a machine lacks something."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

PASS, FAIL, MEASURED, SKIPPED, ERROR = "pass", "fail", "measured", "skipped", "error"
BAD = (FAIL, ERROR)
"""A result of this status makes the command's exit status 1."""


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
    """Of a parity: the largest value with which it holds."""
    ratio: float | None = None
    """The value over that of plain attention or of the published loop, or an error over plain attention's own."""
    status: str = MEASURED
    detail: str = ""
    dtype: str = ""
    part: str = ""
    device: str = ""
    torch: str = ""

    def but(self, **changes: Any) -> Result:
        """The same with some fields changed."""
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    def line(self) -> str:
        """All that matters of it in one line of a terminal."""
        name = " ".join(x for x in (self.case, self.dtype) if x)
        value = f"{digits(self.value)} {self.unit}".strip() if self.value is not None else ""
        limit = "" if self.limit is None else f"(at most {self.limit:.2g})"
        ratio = "" if self.ratio is None else f"= {self.ratio:.3g} x"
        parts = (self.way, self.quantity, value, limit, ratio, self.detail and f"({self.detail})")
        return f"[{self.status}] {name}: {' '.join(x for x in parts if x)}"


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
