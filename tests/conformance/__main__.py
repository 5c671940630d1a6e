"""``python -m tests.conformance``: run the drivers' own tests with our pools; see README.md."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conformance import sessions
from tests.conformance.fetch import NoSuite, fetch, installed
from tests.conformance.registry import SUITES
from tests.conformance.report import compare, reason_for, show_baseline, show_verdict
from tests.conformance.sessions import Outcome, Session
from tests.conformance.suite import Suite, private_tests

ROLES = ("sync", "async", "null-sync", "null-async", "pool-sync", "pool-async")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    add = parser.add_argument
    add("--suite", action="append", choices=[s.name for s in SUITES], help="only this one; may be repeated")
    add("--quick", action="store_true", help="a part of each suite, for work in progress")
    add("--baseline-only", action="store_true", help="the driver's own classes alone")
    add("--source", action="append", default=[], metavar="SUITE=DIR", help="a directory that holds the tests")
    add("--cache", type=Path, default=Path(".conformance"), help="for downloads and logs (%(default)s)")
    add("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="sessions at once (%(default)s)")
    add("--retries", type=int, default=1, help="runs again of a test that is lost (%(default)s)")
    add("-k", dest="expression", default="", help="pytest's -k, for work in progress")
    add("--verbose", action="store_true", help="name also the tests that fail in the baseline too")
    for role in ROLES:
        add(f"--{role}", metavar="MODULE:CLASS", help=f"class for the role {role}; needs one --suite")
    options = parser.parse_args(argv)
    options.chosen = {role: value for role in ROLES if (value := getattr(options, role.replace("-", "_")))}
    if options.chosen and len(options.suite or []) != 1:
        parser.error("--sync and its like need exactly one --suite")
    options.sources = dict(item.partition("=")[::2] for item in options.source)
    return options


class Run:
    """One suite: sessions with the driver's own classes, then with ours, then what is lost once more."""

    def __init__(self, suite: Suite, options: argparse.Namespace) -> None:
        self.suite = suite
        self.options = options
        chosen = {suite.aliases.get(role, role): cls for role, cls in options.chosen.items()}
        unknown = sorted(chosen.keys() - suite.classes.keys())
        if unknown:
            raise NoSuite(f"no class stands for {', '.join(unknown)} here")
        self.roles = chosen or dict(suite.available())
        self.lists: dict[str, dict[str, str]] = {}
        self.directory = options.cache.resolve() / "runs" / suite.name

    def run(self) -> bool:
        """Run and report; return whether nothing is lost."""
        suite, options = self.suite, self.options
        for need in suite.needs:
            if installed(need) is None:
                raise NoSuite(f"{need} is not installed")
        source = options.sources.get(suite.name)
        root = fetch(suite.distribution, suite.tests, options.cache.resolve(), Path(source) if source else None)
        print(f"\n== {suite.name}: {suite.distribution} {installed(suite.distribution)}")
        for role, cls in self.roles.items() if not options.baseline_only else ():
            print(f"  {role}: {cls}")
        with contextlib.ExitStack() as stack:
            todo = [s for s in suite.sessions(root, options.quick, stack) if self.wanted(s)]
            if options.baseline_only:
                todo = _without_repeats(todo)
                show_baseline(suite.name, self.several("baseline", todo, {}), self.private)
                return True
            before = self.several("baseline", todo, {})
            after = self.several("ours", todo, self.roles)
            flaky = self.again(before, after)
        pairs = list(zip(before, after, strict=True))
        if options.expression:  # it may match nothing in a session, which is no fault then
            pairs = [(base, ours) for base, ours in pairs if base.results or ours.results]
        verdict = compare(suite.name, pairs, self.private, self.roles, flaky, self.apart)
        show_verdict(verdict, pairs, options.verbose)
        return verdict.good

    def apart(self, test: str) -> str | None:
        """Return what a test that is not judged is counted under."""
        return self.suite.apart(test, self.roles)

    def wanted(self, session: Session) -> bool:
        """Tell whether a session has anything to judge."""
        return self.options.baseline_only or session.roles is None or not self.roles.keys().isdisjoint(session.roles)

    def private(self, session: str, test: str) -> str | None:
        """Return why a test is private in a session."""
        name = self.suite.private_list(session)
        if name not in self.lists:
            self.lists[name] = private_tests(name)
        return reason_for(test, self.lists[name])

    def same_id(self, test: str) -> str:
        """Return a test's name as the baseline spells it."""
        return self.suite.same_id(test, self.roles)

    def several(self, label: str, todo: list[Session], classes: Mapping[str, str]) -> list[Outcome]:
        """Run sessions, ``--jobs`` at a time."""

        def one(session: Session) -> Outcome:
            roles = {role: cls for role, cls in classes.items() if session.roles is None or role in session.roles}
            where = self.directory / label / session.name
            return sessions.run(session, roles, where, extra=self.options.expression, same_id=self.same_id)

        with ThreadPoolExecutor(max_workers=1 if self.suite.serial else max(1, self.options.jobs)) as pool:
            return list(pool.map(one, todo))

    def again(self, before: list[Outcome], after: list[Outcome]) -> set[tuple[str, str]]:
        """Run lost tests once more, alone: on a busy machine a test about time may fail for no reason of ours."""
        recovered: set[tuple[str, str]] = set()
        for _ in range(self.options.retries):
            for base, ours in zip(before, after, strict=True):
                name = ours.session.name
                lost = {
                    test: row["id"]
                    for test, row in ours.results.items()
                    if row["outcome"] == "failed"
                    and base.outcome(test) == "passed"
                    and (name, test) not in recovered
                    and self.private(name, test) is None
                    and self.apart(test) is None
                }
                if not lost or len(lost) > 40:  # so many are no accident
                    continue
                roles = {r: c for r, c in self.roles.items() if ours.session.roles is None or r in ours.session.roles}
                where = self.directory / "again" / name
                retried = sessions.run(ours.session, roles, where, only=list(lost.values()), same_id=self.same_id)
                recovered.update((name, test) for test in lost if retried.outcome(test) == "passed")
        return recovered


def _without_repeats(todo: list[Session]) -> list[Session]:
    """Drop sessions that differ in the classes put in place alone: their baselines are the same."""
    seen: dict[tuple[str, ...], Session] = {}
    for session in todo:
        seen.setdefault((str(session.root), *session.files, *session.arguments), session)
    return list(seen.values())


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for; return 0 if nothing outside the private lists is lost."""
    options = arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.cache.mkdir(parents=True, exist_ok=True)
    (options.cache / ".gitignore").write_text("*\n")  # none of what lies here is ours
    good, missing = True, []
    try:
        for suite in SUITES:
            if options.suite and suite.name not in options.suite:
                continue
            try:
                good &= Run(suite, options).run()
            except NoSuite as error:
                print(f"{suite.name}: NOT RUN: {error}")
                missing.append(suite.name)
            sys.stdout.flush()
    finally:
        sessions.stop_all()
    if options.suite and missing:  # what was asked for by name must run
        return 2
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
