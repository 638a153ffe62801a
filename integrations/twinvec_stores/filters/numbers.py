"""Numbers in filters: integers exactly, floats to 15 digits, and the requests for engines that compare in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

WIDE = 2**53  # from here on floats cannot represent every integer
_LEAST, _MOST = -(2**63), 2**63 - 1
_MAX_FLOAT = 1.79769313486231e308  # the largest with 15 digits


def comparable(number: float) -> float:
    """Return the number used in comparisons: engines keep 15 significant digits of a float; integers are exact."""
    if isinstance(number, int):
        return number
    rounded = max(
        -_MAX_FLOAT, min(float(f"{number:.15g}"), _MAX_FLOAT)
    )  # the largest float would be rounded to infinity
    return int(rounded) if WIDE <= abs(rounded) <= 2**63 else rounded


@dataclass(frozen=True)
class Interval:
    """Numbers between two ends.

    Attributes:
        low, high: the ends; None: unbounded.
        above, below: whether the ends themselves are excluded.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False

    @classmethod
    def of(cls, numbers: Mapping[str, float]) -> Interval:
        """Return the interval of gt, gte, lt and lte; if two are given for one side, both apply."""
        low = max(((numbers[name], name == "gt") for name in ("gt", "gte") if name in numbers), default=(None, False))
        high = min(((numbers[name], name == "lte") for name in ("lt", "lte") if name in numbers), default=(None, True))
        return cls(low[0], high[0], low[1], not high[1])

    def __contains__(self, number: float) -> bool:
        enough = self.low is None or number > self.low or (number == self.low and not self.above)
        return enough and (self.high is None or number < self.high or (number == self.high and not self.below))

    def whole(self) -> Interval | None:
        """Return the 64-bit integers within it, as a closed interval; None if there are none."""
        low = _LEAST if self.low is None else math.floor(self.low) + 1 if self.above else math.ceil(self.low)
        high = _MOST if self.high is None else math.ceil(self.high) - 1 if self.below else math.floor(self.high)
        low, high = max(low, _LEAST), min(high, _MOST)
        return Interval(low, high) if low <= high else None

    def split(self) -> Split:
        """Return the interval in the form for an engine that compares in float64."""
        bounds: dict[str, float] = {}
        bands: list[range] = []
        if self.low is not None and WIDE <= abs(self.low) <= 2**63:
            first = int(self.low) + self.above
            bounds["gte"] = _next(_next(float(first), math.inf), math.inf)
            bands.append(range(max(first, _LEAST), min(int(bounds["gte"]), _MOST + 1)))
        elif self.low is not None:
            bounds["gt" if self.above else "gte"] = self.low
        if self.high is not None and WIDE <= abs(self.high) <= 2**63:
            last = int(self.high) - self.below
            bounds["lte"] = _next(_next(float(last), -math.inf), -math.inf)
            bands.append(range(max(int(bounds["lte"]) + 1, _LEAST), min(last, _MOST) + 1))
        elif self.high is not None:
            bounds["lt" if self.below else "lte"] = self.high
        low, high = bounds.get("gte", bounds.get("gt")), bounds.get("lte", bounds.get("lt"))
        return Split(
            bounds if low is None or high is None or low <= high else None,
            sorted({n for band in bands for n in band if n in self}),
            [f for f in sorted({f for band in bands for f in _floats(band)}) if int(f) in self],
        )

    def rounded_to(self, number: float) -> list[int]:
        """Return the integers outside the interval that float64 cannot tell from one inside."""
        low, high = int(_next(number, -math.inf)), int(_next(number, math.inf))
        near = range(max(low, _LEAST), min(high, _MOST) + 1)
        return [n for n in near if float(n) == number and n not in self]


@dataclass(frozen=True)
class Split:
    """An interval for an engine.

    Attributes:
        bounds: gt, gte, lt and lte as far as float64 can tell; None: nothing.
        whole: additional integers, close to the ends.
        floats: additional floats.
    """

    bounds: Mapping[str, float] | None
    whole: list[int]
    floats: list[float]


def _next(number: float, towards: float) -> float:
    return math.nextafter(number, towards)


def _floats(band: range) -> Iterator[float]:
    if band:
        number, end = _next(float(band[0]), -math.inf), float(band[-1])
        while number <= end:
            yield number
            number = _next(number, math.inf)
