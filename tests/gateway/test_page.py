"""The page as it is served: its files, its headers, and that nothing in it needs another machine."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from gateway import page

WEB = Path(page.__file__).parent / "web"
FILES = sorted(path.name for path in WEB.iterdir())


def test_the_page_is_served_with_a_strict_policy(gateway_url: str) -> None:
    answer = httpx.get(f"{gateway_url}/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "microphone=(self)" in answer.headers["permissions-policy"]


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_served_with_its_type(gateway_url: str, name: str) -> None:
    answer = httpx.get(f"{gateway_url}/web/{name}")
    assert answer.status_code == 200
    assert answer.content == (WEB / name).read_bytes()
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert answer.headers["content-type"].startswith(kind[name.rsplit(".", 1)[1]])
    assert "content-security-policy" in answer.headers


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2Fpage.py", "%2e%2e/page.py", "..%5cpage.py", "x" * 5000, "%00", ""]
)
def test_nothing_else_is_served(gateway_url: str, name: str) -> None:
    answer = httpx.get(f"{gateway_url}/web/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_the_page_is_complete_and_has_nothing_from_elsewhere() -> None:
    """Every file that is named is there; no address of another machine, no script or style in the page."""
    html = (WEB / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="web/([^"]+)"', html)) == {"icon.svg", "styles.css", "main.js"}
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]* src=)", html)
    for name in FILES:
        text = (WEB / name).read_text(encoding="utf-8")
        assert "//www" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://", text.replace("http://www.w3.org/2000/svg", "")), name
        named = re.findall(r'from "\./([^"]+)"|new URL\("([\w.-]+\.js)"', text)
        assert {first or second for first, second in named} <= set(FILES), name
    ids = set(re.findall(r'id="([\w-]+)"', html))
    assert set(re.findall(r'element\("([\w-]+)"\)', (WEB / "main.js").read_text(encoding="utf-8"))) <= ids
