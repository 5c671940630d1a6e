"""Progress: a live view on a terminal, plain lines on other outputs."""

from __future__ import annotations

from collections import deque
from itertools import product
from types import TracebackType

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from poolkit.cli.demo.plan import MODES, POOLS, TITLES
from poolkit.cli.demo.record import Record
from poolkit.cli.demo.report import summary

__all__ = ("LiveView", "PlainView", "view_for")


class PlainView:
    """One line for each thing that happens, and one each second of a round."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def note(self, text: str) -> None:
        """Something happened. Thread-safe."""
        self._print(text)

    def begin(self, record: Record) -> None:
        """A round begins."""
        self._next = 1.0
        self._print(f"{record.mode}, {TITLES[record.pools]} pools: {record.plan.callers} callers start")

    def tick(self, record: Record) -> None:
        """Called several times a second during a round."""
        now = record.rounds[-1].now()
        if now >= self._next:
            self._next = now + 1.0
            self._print(f"  {now:.1f} s: {summary(record)}")
            for name, state in record.states:
                self._print(f"    {name}: {state}")

    def end(self, record: Record) -> None:
        """A round is over."""
        self._print(f"{record.mode}, {TITLES[record.pools]} pools: {summary(record)}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveView:
    """The same as one live view: all rounds, the pools of the current round, and the last events."""

    def __init__(self, console: Console) -> None:
        self._notes: deque[str] = deque(maxlen=6)
        self._records: dict[tuple[str, str], Record] = {}
        self._current: Record | None = None
        self._live = Live(self, console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """Something happened. Thread-safe."""
        self._notes.append(text)

    def begin(self, record: Record) -> None:
        """A round begins."""
        self._records[record.mode, record.pools] = self._current = record

    def tick(self, record: Record) -> None:
        """Nothing to do: the view refreshes by itself."""

    def end(self, record: Record) -> None:
        """A round is over."""
        self._current = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw everything as it stands now."""
        parts: list[object] = [self._runs()]
        current = self._current
        if current is not None:
            parts.append(self._pools(current))
        parts += [Text(f"  {text}", style="dim", overflow="ellipsis", no_wrap=True) for text in list(self._notes)]
        yield Group(*parts)  # type: ignore[arg-type]  # each is renderable; rich's union has no name for a list of it

    def _runs(self) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="one request handler on real servers", title_justify="left"
        )
        for name in ("", "pools", ""):
            table.add_column(name, no_wrap=True)
        for name in ("requests", "errors", "p50 ms", "p99 ms", "now ms"):
            table.add_column(name, justify="right", no_wrap=True)
        for mode, pools in product(MODES, POOLS):
            record = self._records.get((mode, pools))
            if record is None:
                table.add_row(mode, TITLES[pools], ProgressBar(total=1, completed=0, width=12), style="dim")
                continue
            errors = record.errors.total()
            table.add_row(
                mode,
                TITLES[pools],
                ProgressBar(total=1, completed=record.progress, width=12),
                str(len(record.samples)),
                Text(str(errors), style="bold red" if errors else ""),
                f"{record.latency(0.5) * 1000:.0f}",
                f"{record.latency(0.99) * 1000:.0f}",
                f"{record.latency(0.5, last=50) * 1000:.0f}" if record is self._current else "",
            )
        return table

    def _pools(self, record: Record) -> Table:
        table = Table(
            box=box.SIMPLE,
            show_header=False,
            title=f"{record.mode}, {TITLES[record.pools]} pools",
            title_justify="left",
        )
        table.add_column(no_wrap=True, style="bold")
        table.add_column()
        for name, state in list(record.states):
            table.add_row(name, escape(state))
        for kind, number in record.errors.most_common(4):
            table.add_row(Text(f"{number} x", style="red"), Text(f"{kind}: {record.examples.get(kind, '')}"))
        return table


def view_for(console: Console) -> PlainView | LiveView:
    """A live view if the output is a terminal, else plain lines."""
    return LiveView(console) if console.is_terminal and not console.is_dumb_terminal else PlainView(console)
