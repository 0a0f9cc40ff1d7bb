"""What the training scripts share: settings from the command line, then a run or its plan."""

from __future__ import annotations

import sys

from ...core.errors import RealignError
from ..settings.common import TrainingConfig
from ..settings.files import parse_command
from ..watch import trackers
from .plan import plan
from .run import Run

INTERRUPTED = 130
"""The exit status of a process that Ctrl-C ended at once."""


def main(run: type[Run], settings: type[TrainingConfig], name: str, description: str) -> None:
    """Parse the command line and train, or with `--dry-run` print the plan; errors become one line on stderr."""
    try:
        config, dry_run = parse_command(settings, description=description)
        trackers.check(config.watch.log_with)
        if dry_run:
            print(plan(config))
        else:
            run(config).train()
    except RealignError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        print(f"{name}: stopped at once; what was saved before is there.", file=sys.stderr)
        sys.exit(INTERRUPTED)
