"""The one console that progress bars and tables are written to."""

from __future__ import annotations

from rich.console import Console

CONSOLE = Console()
