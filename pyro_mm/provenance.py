"""When and from which source code something was made."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["commit", "now"]


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> str | None:
    """The git commit of this library's own source, with `+changes` if files differ; None when it is no checkout.

    A library installed inside somebody's repository is none: git must know this very file.
    """
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.with_name("batch.py").name) is None:
        return None
    head = _git(here.parent, "rev-parse", "HEAD")
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no", "--", str(here.parent))
    return f"{head}+changes" if changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None when it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
