"""The manual is in the house: every page, section and file that is named exists, and nothing points outside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {page.stem: page for page in DOCS.glob("*.md")}
#: Folders that are not the repository's: built, downloaded, or hidden.
NOT_OURS = {"engines", "out", "build", "dist", "node_modules"}
TEXT = {".py", ".md", ".pbtxt", ".yml", ".yaml", ".toml", ".cfg", ".sh", ".json", ".txt", ".log", ".csv", ""}

#: A page, and the sections named after it: `docs/audio.md 2.1-2.2`, `docs/audio.md 1, 4`, `docs/model.md, "Modes"`;
#: inside docs/ also `[audio.md](audio.md) 6` and `(audio.md 2.3)`.
NUMBERS = r"\d+(?:\.\d+)?"
CITATION = re.compile(
    rf"(?P<name>[a-z_]+)\.md[`)]*"
    rf"(?: (?P<numbers>{NUMBERS}(?:(?:, | and |-){NUMBERS})*)(?![\d.]*\d))?"
    r"(?:,? \(?\"(?P<heading>[^\"]+)\")?"
)


def repository_files() -> list[Path]:
    """Every text file of the checkout, but for what is built or hidden."""
    return [
        path
        for path in sorted(ROOT.rglob("*"))
        if path.is_file()
        and path.suffix in TEXT
        and not any(
            part in ("__pycache__",) or part.startswith(".") or part.endswith(".egg-info")
            for part in path.relative_to(ROOT).parts
        )
        and path.relative_to(ROOT).parts[0] not in NOT_OURS
    ]


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def citations(path: Path) -> list[re.Match[str]]:
    """Citations of pages in docs/: by that path anywhere, by name alone from one page to another."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return [
        match
        for match in CITATION.finditer(text)
        if text[: match.start()].endswith("docs/")
        or (path.parent == DOCS and text[match.start() - 1] in " [(`" and match["name"] in PAGES)
    ]


def test_pages_and_sections_that_are_named_exist() -> None:
    wrong, seen = [], 0
    for path in repository_files():
        for match in citations(path):
            seen += 1
            where = f"{path.relative_to(ROOT)}: {match[0]!r}"
            page = PAGES.get(match["name"])
            if page is None:
                wrong.append(f"{where}: there is no such page")
                continue
            titles = headings(page)
            for number in re.findall(NUMBERS, match["numbers"] or ""):
                if not any(re.match(rf"{re.escape(number)}\.? ", title) for title in titles):
                    wrong.append(f"{where}: {page.name} has no section {number}")
            named = match["heading"]
            if named and named not in titles and f"**{named}**" not in page.read_text(encoding="utf-8"):
                wrong.append(f"{where}: {page.name} has no heading {named!r}")
    assert wrong == []
    assert seen > 100  # the expression still finds them


@pytest.mark.parametrize(
    ("text", "numbers", "heading"),
    [
        ("audio.md 2.1-2.2).", "2.1-2.2", None),
        ("audio.md 1, 4).", "1, 4", None),
        ("audio.md 2 and 3).", "2 and 3", None),
        ("audio.md 7, trap 1).", "7", None),
        ('audio.md 1, "EMA").', "1", "EMA"),
        ('model.md) ("The fused cascade")', None, "The fused cascade"),
        ('model.md, "Modes")', None, "Modes"),
        ("audio.md) 6 and 7.", "6 and 7", None),
        ("tensorrt_llm.md 1.2.", "1.2", None),
        ("model.md).", None, None),
    ],
)
def test_what_a_citation_is(text: str, numbers: str | None, heading: str | None) -> None:
    match = CITATION.match(text)
    assert match is not None
    assert (match["numbers"], match["heading"]) == (numbers, heading)


def test_links_between_files_lead_somewhere() -> None:
    wrong = []
    for path in repository_files():
        if path.suffix == ".md":
            prose = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
            for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
                if "://" not in target and not (path.parent / target).exists():
                    wrong.append(f"{path.relative_to(ROOT)}: {target}")
    assert wrong == []


def test_nothing_points_outside_the_repository() -> None:
    """What the documents and tests were made from is in here: neither the old folder nor its notes are named."""
    outside = re.compile(r"\.\./shared|(?<![a-z])facts/")
    wrong = [
        str(path.relative_to(ROOT))
        for path in repository_files()
        if path != Path(__file__).resolve() and outside.search(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert wrong == []
