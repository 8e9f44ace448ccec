"""Several runs, one after another, in each of the processes that torchrun starts: importing torch takes longer than a
tiny run.

    torchrun … -m tests.many runs.json        a list of [recipe, override, …]; an override --resume goes on with a run
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    from tests.runs import run_here

    for recipe, *arguments in json.loads(Path(sys.argv[1]).read_text()):
        overrides = [each for each in arguments if each != "--resume"]
        run_here(Path(recipe), *overrides, resume="--resume" in arguments)


if __name__ == "__main__":
    main()
