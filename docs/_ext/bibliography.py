"""Sphinx extension: the bibliography of references.bib, and the links of `Reference: key` lines to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

Entry = dict[str, str]
_ENTRY = re.compile(r"@(\w+)\{([\w:-]+),\n(.*?)\n\}", re.DOTALL)
_FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*)\},?\s*$", re.MULTILINE)
_ACCENTS = {
    r"{\'e}": "é",
    r"{\'n}": "ń",
    r"{\'z}": "ź",
    r"{\"o}": "ö",
    r"{\"u}": "ü",
    r"{\"a}": "ä",
    "--": "–",
}
_REFERENCE = re.compile(r"\b(References?:[ ]+)([a-z]+\d{4}\w*(?:[,;] [a-z]+\d{4}\w*)*)")
_KEY = re.compile(r"[a-z]+\d{4}\w*")


def parse(text: str) -> dict[str, Entry]:
    """The entries of a BibTeX file by key, with braces and the accents in use turned into text."""
    for tex, letter in _ACCENTS.items():
        text = text.replace(tex, letter)
    return {
        key: {field: re.sub("[{}]", "", value) for field, value in _FIELD.findall(body)}
        for _, key, body in _ENTRY.findall(text)
    }


def cited(docstring: str) -> list[str]:
    """The keys that a docstring cites, in order."""
    return [key for _, keys in _REFERENCE.findall(docstring) for key in _KEY.findall(keys)]


def authors(entry: Entry) -> list[str]:
    """The family names of an entry's authors."""
    return [name.split(",")[0].strip() for name in entry["author"].split(" and ")]


def label(entry: Entry) -> str:
    """What a citation reads as: Huang (2025), Davis and Kahan (1970), Ben Arous et al. (2025)."""
    names = authors(entry)
    who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
    return f"{who} ({entry['year']})"


def _line(entry: Entry) -> list[nodes.Node]:
    """Authors (year). Names. Title. Venue volume(number), pages. arXiv link."""
    venue = next((entry[field] for field in ("journal", "booktitle", "publisher") if field in entry), "")
    volume = entry.get("volume", "") + (f"({entry['number']})" if "number" in entry else "")
    place = ", ".join(filter(None, (f"{venue} {volume}".strip(), entry.get("pages"), entry.get("note"))))
    names = "; ".join(entry["author"].split(" and "))
    line: list[nodes.Node] = [
        nodes.strong("", label(entry)),
        nodes.Text(f". {names}. "),
        nodes.emphasis("", entry["title"]),
        nodes.Text(f". {place}." if place else "."),
    ]
    if "eprint" in entry:
        url = f"https://arxiv.org/abs/{entry['eprint']}"
        line += [
            nodes.Text(" "),
            nodes.reference("", f"arXiv {entry['eprint']}", refuri=url),
            nodes.Text("."),
        ]
    return line


class Bibliography(SphinxDirective):
    """Lists every entry, each with a label `ref-<key>` that text and docstrings link to."""

    def run(self) -> list[nodes.Node]:
        """Make one paragraph an entry, in the order of authors and years."""
        domain = self.env.domains.standard_domain
        items = nodes.bullet_list()
        for key, entry in sorted(self.config.bibliography_entries.items(), key=lambda item: label(item[1])):
            paragraph = nodes.paragraph("", "", *_line(entry), ids=[f"ref-{key}"])
            domain.labels[f"ref-{key}"] = self.env.docname, f"ref-{key}", label(entry)
            domain.anonlabels[f"ref-{key}"] = self.env.docname, f"ref-{key}"
            items += nodes.list_item("", paragraph)
        return [items]


def _plain(line: str) -> str:
    """A line of prose in which no character is markup, code between backticks apart."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"([*|])", r"\\\1", re.sub(r"_(?=[^\w`]|$)", r"\\_", part)) for part in parts[::2]]
    return "`".join(parts)


def _link(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    entries: dict[str, Entry] = app.config.bibliography_entries

    def replace(match: re.Match[str]) -> str:
        links = []
        for key in _KEY.findall(match[2]):
            if key not in entries:
                logging.getLogger(__name__).warning("%s cites %s, which references.bib lacks", name, key)
                continue
            links.append(f":ref:`{label(entries[key])} <ref-{key}>`")
        return match[1] + ", ".join(links)

    lines[:] = [_REFERENCE.sub(replace, _plain(line)) for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive and the hook, which runs before napoleon's."""
    path = Path(app.confdir) / "references.bib"
    app.add_config_value("bibliography_entries", parse(path.read_text()), "env")
    app.add_directive("bibliography", Bibliography)
    app.connect("autodoc-process-docstring", _link, priority=400)
    return {"version": "1", "parallel_read_safe": True}
