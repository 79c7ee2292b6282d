"""Write docs/errors.md from the catalogue that `llmos explain` shows.

python docs/make_errors.py            write it
python docs/make_errors.py --check    exit 1 if it is not what the catalogue says
"""

import sys
from pathlib import Path

from userland.catalogue import ENTRIES, EXITS, meaning, number_of
from userland.exits import code_of

PAGE = Path(__file__).resolve().parent / "errors.md"
INTRO = """\
# Errors and exit codes

Made of `userland/catalogue.py` by `docs/make_errors.py`; `llmos explain CODE` shows the same.
With `--json` an error goes to stderr as `{"error": {"code", "message", "hint", "details"}}`.
"""


def page() -> str:
    """Return the page."""
    lines = [INTRO, "## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {text} |" for code, text in EXITS.items()]
    lines += ["| 128+N | ended by signal N |", "", "## Errors", ""]
    for name, entry in ENTRIES.items():
        lines += [f"### {name}", "", f"errno {number_of(name)}, exit code {code_of(name)}. "
                  f"{meaning(name)}", ""]  # fmt: skip
        lines += [f"- why: {cause}" for cause in entry.causes]
        lines += [f"- try: {step}" for step in entry.steps] + [""]
    return "\n".join(lines)


def main() -> None:
    """Write the page, or compare it."""
    if "--check" in sys.argv[1:]:
        there = PAGE.read_text() if PAGE.exists() else ""
        sys.exit(0 if there == page() else "docs/errors.md is stale; python docs/make_errors.py")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
