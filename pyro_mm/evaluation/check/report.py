"""What `check_pair` found."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap

__all__ = ["Check", "CheckReport", "PairError"]

WIDTH = 118


@dataclass(frozen=True)
class Check:
    """One check: `status` is "pass", "fail" or "skipped"; `measured` what was seen, or why it was skipped."""

    name: str
    status: str
    measured: str
    fix: str = ""


@dataclass(frozen=True)
class CheckReport:
    """Every check in the order it ran; prints as a table.  `report["sites"]` is one of them."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Did nothing fail?"""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(c for c in self.checks if c.status == "fail")

    def __getitem__(self, name: str) -> Check:
        found = {c.name: c for c in self.checks}
        if name not in found:
            raise KeyError(f"no check '{name}'; there are {list(found)}")
        return found[name]

    def __repr__(self) -> str:
        count = {s: sum(c.status == s for c in self.checks) for s in ("pass", "fail", "skipped")}
        first = max(len(c.name) for c in self.checks)
        lines = [f"check_pair: {count['pass']} passed, {count['fail']} failed, {count['skipped']} skipped"]
        for c in self.checks:
            head = f"{c.name:<{first}}  {c.status:<7}  "
            text = wrap(c.measured, WIDTH - len(head)) or [""]
            text += wrap(f"fix: {c.fix}", WIDTH - len(head)) if c.fix else []
            lines += [head + text[0], *(" " * len(head) + line for line in text[1:])]
        return "\n".join(lines)


class PairError(ValueError):
    """A pair breaks the contract; the message lists what failed, what was measured and the fix.

    Attributes:
        report: all checks.
    """

    def __init__(self, report: CheckReport) -> None:
        self.report = report
        lines = [f"- {c.name}: {c.measured}" + (f"\n    fix: {c.fix}" if c.fix else "") for c in report.failures]
        super().__init__(f"{len(lines)} of {len(report.checks)} checks failed\n" + "\n".join(lines))
