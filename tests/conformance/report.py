"""Compare a run with the class under test with the baseline of the same session, and print it."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tests.conformance.sessions import Outcome

STOCK, OURS = "stock ", "ours "  # as in inside/conf_swap.py

__all__ = ("Verdict", "compare", "show_baseline", "show_verdict")


@dataclass
class Verdict:
    """What a run of one suite came to."""

    suite: str
    baseline: Counter[str] = field(default_factory=Counter)
    candidate: Counter[str] = field(default_factory=Counter)
    private: Counter[str] = field(default_factory=Counter)
    private_failures: list[tuple[str, str]] = field(default_factory=list)
    apart: dict[str, Counter[str]] = field(default_factory=dict)  # tests that no class under test is meant by
    lost: list[tuple[str, str]] = field(default_factory=list)  # passes in the baseline, not here: (test, why)
    both: list[tuple[str, str]] = field(default_factory=list)  # fails in both
    recovered: list[str] = field(default_factory=list)
    flaky: list[str] = field(default_factory=list)
    touched: int = 0
    counts: dict[str, list[int]] = field(default_factory=dict)
    unproven: list[str] = field(default_factory=list)  # why the run says less than it seems to

    @property
    def good(self) -> bool:
        """Nothing lost, the swap proven, and something was judged at all."""
        return not self.lost and not self.unproven and self.baseline["passed"] > 0


def reason_for(test: str, private: Mapping[str, str]) -> str | None:
    """Return why a test is private: its own line, or one of its function, or a pattern with ``*``."""
    for name in (test, test.split("[")[0]):
        if name in private:
            return private[name]
    for pattern, reason in private.items():
        # Brackets are parameters here, not fnmatch's character classes.
        if "*" in pattern and fnmatch.fnmatchcase(test, pattern.replace("[", "[[]")):
            return reason
    return None


def compare(
    suite: str,
    pairs: Iterable[tuple[Outcome, Outcome]],
    private: Callable[[str, str], str | None],
    roles: Mapping[str, str],
    flaky: Collection[tuple[str, str]],
    apart: Callable[[str], str | None] = lambda test: None,
) -> Verdict:
    """Judge every test of the baseline; one that is missing in the candidate's run is lost.

    Args:
        suite: name to report under.
        pairs: baseline and candidate of each session.
        private: tells why a test is private in a session (session, test).
        roles: the classes under test by role, for the proof of the swap.
        flaky: (session, test) that failed and passed when run again alone.
        apart: names what a test is counted under when it is not judged.
    """
    verdict = Verdict(suite)
    for baseline, candidate in pairs:
        label = f"{candidate.session.name}: "
        if not any(row["outcome"] == "passed" for row in baseline.results.values()):
            verdict.unproven.append(f"session {candidate.session.name}: nothing passed in the baseline; {baseline.log}")
        for test in {**baseline.results, **candidate.results}:
            before, after = baseline.outcome(test), candidate.outcome(test)
            why = str(candidate.results.get(test, {}).get("why") or "did not run")
            if (candidate.session.name, test) in flaky and after != "passed":
                verdict.flaky.append(f"{label}{test}  {why}")
                after = "passed"
            elsewhere = apart(test)
            if elsewhere is not None:
                verdict.apart.setdefault(elsewhere, Counter())[after] += 1
                continue
            verdict.touched += bool(candidate.results.get(test, {}).get("used"))
            reason = private(candidate.session.name, test)
            if reason is not None:
                verdict.private[after] += 1
                if after != "passed" and before == "passed":
                    verdict.private_failures.append((f"{label}{test}", reason))
                continue
            verdict.baseline[before] += 1
            verdict.candidate[after] += 1
            if before == "passed" and after != "passed":
                verdict.lost.append((f"{label}{test}", why if after != "skipped" else f"skipped: {why}"))
            elif after == "failed":
                verdict.both.append((f"{label}{test}", why))
            elif before == "failed" and after == "passed":
                verdict.recovered.append(f"{label}{test}")
        for name, (made, used) in candidate.counts.items():
            total = verdict.counts.setdefault(name, [0, 0])
            total[0] += made
            total[1] += used
    _prove(verdict, roles)
    return verdict


def _prove(verdict: Verdict, roles: Mapping[str, str]) -> None:
    for name, (made, used) in verdict.counts.items():
        if name.startswith(STOCK) and (made or used):
            verdict.unproven.append(f"{name}: {made} made, used {used} times, though swapped")
    for role in roles:
        own = [pair for name, pair in verdict.counts.items() if name.startswith(f"{OURS}{role}: ")]
        if not any(made for made, _ in own):
            verdict.unproven.append(f"no instance of the {role} class was made")


def _line(name: str, counts: Counter[str]) -> str:
    known = ("passed", "failed", "skipped", "xfailed", "absent")
    parts = [f"{counts[key]} {key}" for key in known if counts[key] or key in known[:3]]
    return f"  {name:10} {', '.join(parts)}"


def show_baseline(suite: str, outcomes: Iterable[Outcome], private: Callable[[str, str], str | None]) -> None:
    """Print a run with the driver's own classes alone."""
    total: Counter[str] = Counter()
    apart: Counter[str] = Counter()
    failures: list[str] = []
    for outcome in outcomes:
        print(f"  session {outcome.session.name}: {outcome.seconds:.0f} s, log {outcome.log}")
        for note in outcome.notes:
            print(f"    {note}")
        for test, row in outcome.results.items():
            (apart if private(outcome.session.name, test) is not None else total)[row["outcome"]] += 1
            if row["outcome"] == "failed":
                failures.append(f"{outcome.session.name}: {test}  {row['why'][:200]}")
        for name, (made, used) in sorted(outcome.counts.items()):
            print(f"    {name}: {made} made, used {used} times")
    for failure in failures:
        print(f"  FAILED {failure}")
    print(_line("private", apart))
    print(_line("baseline", total))
    print(f"{suite}: baseline {total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")


def show_verdict(verdict: Verdict, pairs: Iterable[tuple[Outcome, Outcome]], verbose: bool = False) -> None:
    """Print a comparison; its last line is the summary."""
    for baseline, outcome in pairs:
        name = outcome.session.name
        print(f"  session {name}: {outcome.seconds:.0f} s (baseline {baseline.seconds:.0f} s), log {outcome.log}")
        for note in outcome.notes:
            print(f"    {note}")
        for note in baseline.notes:
            print(f"    baseline: {note}")
    for name, (made, used) in sorted(verdict.counts.items()):
        print(f"  {name}: {made} made, used {used} times")
    print(f"  {verdict.touched} tests made or used a pool")
    for test, why in verdict.lost:
        print(f"  LOST {test}  {why[:220]}")
    for test, why in verdict.both if verbose else ():
        print(f"  fails in the baseline too: {test}  {why[:160]}")
    if verdict.both and not verbose:
        print(f"  {len(verdict.both)} tests fail in the baseline too (--verbose names them)")
    for test in verdict.recovered:
        print(f"  MENDED {test}  (fails in the baseline)")
    for test in verdict.flaky:
        print(f"  FLAKY {test[:220]}  (passed when run again)")
    for test, reason in verdict.private_failures:
        print(f"  private {test}  ({reason})")
    for why in verdict.unproven:
        print(f"  NOT PROVEN: {why}")
    for name, counts in verdict.apart.items():
        print(_line(name, counts))
    print(_line("private", verdict.private))
    print(_line("baseline", verdict.baseline))
    print(_line("ours", verdict.candidate))
    now, before = verdict.candidate, verdict.baseline
    print(
        f"{verdict.suite}: {now['passed']} passed, {now['failed']} failed, {now['skipped']} skipped"
        f" (baseline {before['passed']} passed, {before['failed']} failed, {before['skipped']} skipped)"
        f" · lost {len(verdict.lost)} · private {verdict.private['passed']} of {verdict.private.total()} passed"
        f" · {'OK' if verdict.good else 'NOT CONFORMANT'}"
    )
