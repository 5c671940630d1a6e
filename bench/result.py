"""The measurements of a run as plain data: a series of numbers for each subject, metric and set of conditions.

Everything that is shown (tables, plots, targets) is computed from this, and this is what the JSON file holds. The
numbers of a series are in the order of the repetitions, one for each, so that the series of two subjects under the
same conditions can be divided number by number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from poolkit.errors import ConfigError

__all__ = ("FORMAT", "Failure", "Param", "Result", "Series")

FORMAT = 1
"""Version of the JSON file's format; files of other versions are refused."""

Param = str | int | float


@dataclass
class Series:
    """One metric of one subject under the same conditions, repeated."""

    experiment: str
    subject: str
    metric: str
    unit: str
    params: dict[str, Param] = field(default_factory=dict)
    values: list[float] = field(default_factory=list)


@dataclass
class Failure:
    """A turn of a subject that failed, once or several times while the same was measured."""

    experiment: str
    subject: str
    """Empty: the experiment failed outside a turn."""
    during: str
    """What was measured, in the words of the progress messages."""
    error: str
    """The last one."""
    ours: bool
    """Whether it fails the run: poolkit's turns and failures outside a turn do, those of peers do not."""
    times: int = 1
    given_up: bool = False
    """Whether no try succeeded. Then the subject has no further numbers under the same conditions."""


@dataclass
class Result:
    """One run: facts of the machine, seconds that each experiment took, the series, and what failed.

    A run of some experiments can take those that it did not measure from an earlier run (:meth:`with_earlier`);
    ``earlier`` has the facts of that run for each of them.
    """

    facts: dict[str, str] = field(default_factory=dict)
    effort: str = "full"
    seconds: dict[str, float] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)
    earlier: dict[str, dict[str, str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def with_earlier(self, run: Result) -> Result:
        """Return this run, completed by the experiments of an earlier one that this run did not measure.

        Raises:
            ConfigError: one of them is a quick run and the other is not, so that their numbers differ in quality.
        """
        if run.effort != self.effort:
            raise ConfigError(
                f"--update: the earlier run is {run.effort}, this one is {self.effort}; repeat it with the same effort"
            )
        kept = [name for name in run.seconds if name not in self.seconds]
        return Result(
            facts=self.facts,
            effort=self.effort,
            seconds={name: run.seconds[name] for name in kept} | self.seconds,
            series=[one for one in run.series if one.experiment in kept] + self.series,
            earlier={name: run.earlier.get(name, run.facts) for name in kept},
            failures=[one for one in run.failures if one.experiment in kept] + self.failures,
        )

    def add(self, series: Series, value: float) -> None:
        """Append a number to the series like ``series``, which is added if it is new."""
        for known in self.where(series.experiment, series.subject, series.metric):
            if known.params == series.params:
                known.values.append(value)
                return
        series.values.append(value)
        self.series.append(series)

    def note(self, failure: Failure) -> Failure:
        """Add a failed turn to those of the same subject in the same measurement; return the failure of them all."""
        for known in self.failures:
            if (known.experiment, known.subject, known.during) == (failure.experiment, failure.subject, failure.during):
                known.times += 1
                known.error = failure.error
                return known
        self.failures.append(failure)
        return failure

    def where(
        self, experiment: str, subject: str | None = None, metric: str | None = None, **params: Param
    ) -> Iterator[Series]:
        """The series that agree with everything that is given."""
        for one in self.series:
            if (
                one.experiment == experiment
                and subject in (None, one.subject)
                and metric in (None, one.metric)
                and all(one.params.get(name) == value for name, value in params.items())
            ):
                yield one

    def values(self, experiment: str, subject: str, metric: str, **params: Param) -> list[float]:
        """The numbers of the only series under exactly these conditions; empty if it was not measured."""
        for one in self.where(experiment, subject, metric, **params):
            if one.params == params:
                return one.values
        return []

    def to_json(self) -> str:
        """Return the run as the text of a JSON file; numbers keep six digits."""
        data = {"format": FORMAT, **asdict(self)}
        for one in data["series"]:
            one["values"] = [float(f"{value:.6g}") for value in one["values"]]
        lines = ",\n".join(f"  {json.dumps(one)}" for one in data.pop("series"))
        head = json.dumps(data, indent=1).removesuffix("\n}")
        return f'{head},\n "series": [\n{lines}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: it is no JSON, or not of this format.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data.pop("format") != FORMAT:
                raise ConfigError(f"results: the format is not {FORMAT}; run the benchmarks again with --json")
            series = [Series(**one) for one in data.pop("series")]
            failures = [Failure(**one) for one in data.pop("failures", ())]
            return cls(series=series, failures=failures, **data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"results: not a file written by python -m bench --json: {error!r}") from None

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a file written before; :class:`ConfigError` names it if it cannot be used."""
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from None
