"""Two runs side by side: `python -m loadtest.compare out/loadtest/a out/loadtest/b -o compared.html`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from loadtest.errors import LoadTestError
from loadtest.report.files import read_figures
from loadtest.report.page import page


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.compare", description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folders of finished runs; the first is what is compared with"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("out/loadtest/compared.html"))
    options = parser.parse_args(arguments)
    try:
        runs = [read_figures(folder) for folder in options.runs]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page(runs, [str(folder) for folder in options.runs]), encoding="utf-8")
    except (LoadTestError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
