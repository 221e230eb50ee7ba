"""`manage.py pillarbox_check`: can this application publish?"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, connections

from pillarbox.django.checks import Finding, Level, look

#: Exit codes, as those of the program ``pillarbox``.
_REFUSED = 3
_UNREACHABLE = 4


class Command(BaseCommand):
    """Looks at schema, rights, limits and the way to the server, and publishes one event in a
    transaction that is rolled back. Ends with 0, with 3 when something has to be mended, with 4
    when the server does not answer."""

    help = __doc__
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which database, and how to print."""
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="alias of the database")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints one line for each check, and below it what mends it."""
        findings = look(connections[options["database"]])
        if options["json"]:
            self.stdout.write(json.dumps([finding.as_json() for finding in findings]))
        else:
            for finding in findings:
                self._print(finding)
        problems = [finding for finding in findings if finding.level is Level.PROBLEM]
        if problems:
            code = _UNREACHABLE if all(one.is_away for one in problems) else _REFUSED
            raise CommandError(
                f"this application cannot publish: {problems[0].message}", returncode=code
            )

    def _print(self, finding: Finding) -> None:
        style = {
            Level.OK: self.style.SUCCESS,
            Level.SKIPPED: self.style.NOTICE,
            Level.WARNING: self.style.WARNING,
            Level.PROBLEM: self.style.ERROR,
        }[finding.level]
        self.stdout.write(f"{style(finding.level.value):8} {finding.check}: {finding.message}")
        if finding.remedy:
            self.stdout.write(f"         {finding.remedy}")
