"""Build the pictures: sources/NAME.svg, with the labels of labels.csv and style.css, becomes NAME.svg and NAME.zh.svg.

A source is a small SVG by hand (`ring.py` writes its own). Its texts are keys in braces, `<text x="90" y="40">{replica_0}</text>`,
and labels.csv holds the words of both languages. `|` in a label begins a new line. The y of a text is the middle of its lines.
Words that are the same in both languages, such as file names, stand in the source, in a text of class "code".

Example:
    $ python tutorial/pictures/build.py            # write all products
    $ python tutorial/pictures/build.py --check    # write nothing; name the products that are out of date
"""

from __future__ import annotations

import csv
import html
import json
import re
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "sources"
LANGUAGES = {"en": "", "zh": ".zh"}  # what stands before the suffix of a product
TEXT = re.compile(r'<text([^>]*?\bx="([\d.]+)"[^>]*)>([^<]*)</text>')
LINE = 1.25  # em, from line to line
MIDDLE = 0.35  # em, from the middle of a capital letter to its baseline


def labels() -> dict[str, dict[str, str]]:
    """Return the words of each language: {language: {key: label}}."""
    with open(HERE / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {language: {row["key"]: row[language] for row in rows} for language in LANGUAGES}


def source(path: Path) -> str:
    """Return the text of a source; one in Python computes it."""
    return runpy.run_path(str(path))["svg"]() if path.suffix == ".py" else path.read_text(encoding="utf-8")


def products() -> dict[Path, str]:
    """Return the text of every product by its path."""
    words, style = labels(), (HERE / "style.css").read_text(encoding="utf-8")
    built = {}
    for path in sorted([*SOURCES.glob("*.svg"), *SOURCES.glob("*.py")]):
        for language, suffix in LANGUAGES.items():
            built[HERE / f"{path.stem}{suffix}.svg"] = picture(source(path), words[language], style, language)
    page = (SOURCES / "shards.html").read_text(encoding="utf-8")
    own = {language: {k: v for k, v in each.items() if k.startswith("try_")} for language, each in words.items()}
    page = page.replace("/* style.css */", style).replace("/* labels.csv */ {}", json.dumps(own, ensure_ascii=False))
    return built | {HERE / "shards.html": page}


def picture(text: str, words: dict[str, str], style: str, language: str) -> str:
    """Return a source as an SVG with its words, the stylesheet, a background and the tip of its arrows."""

    def word(key: str) -> str:
        return html.escape(re.sub(r"\{(\w+)\}", lambda match: words[match[1]].replace("|", "\n"), key), quote=False)

    def lines(match: re.Match) -> str:
        attributes, x, key = match.groups()
        parts = word(html.unescape(key)).split("\n")
        first = MIDDLE - LINE * (len(parts) - 1) / 2
        if len(parts) == 1:
            return f'<text{attributes} dy="{first}em">{parts[0]}</text>'
        spans = (f'<tspan x="{x}" dy="{LINE if i else first:g}em">{part}</tspan>' for i, part in enumerate(parts))
        return f"<text{attributes}>{''.join(spans)}</text>"

    width, height = re.search(r'viewBox="0 0 (\d+) (\d+)"', text).groups()
    text = TEXT.sub(lines, text)
    text = re.sub(r"<title>(.*?)</title>", lambda match: f"<title>{word(match[1])}</title>", text)
    begin = f"""<style>
{style}</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto-start-reverse">\
<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>
<rect class="paper" width="{width}" height="{height}" rx="10"/>"""
    text = text.replace("<svg ", f'<svg width="{width}" height="{height}" xml:lang="{language}" role="img" ', 1)
    return text.replace("</title>\n", f"</title>\n{begin}\n", 1)


def main(arguments: list[str]) -> int:
    """Write or check all products; return the exit status."""
    old = {path: text for path, text in products().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in old.items():
        print(f"{path.name}: {'out of date' if '--check' in arguments else 'written'}")
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
    return int(bool(old) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
