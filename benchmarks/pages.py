"""A report of sections with tables and pictures, as Markdown and as one page that loads nothing from elsewhere."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

#: A number with or without its spread, interval or unit, or the dash for none.
_NUMBER = re.compile(r"–|-?[\d,.]+([ –]|$)")
TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        columns: Their titles.
        rows: A text a column.
        own: The first so many rows are ours, beside others' work.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    own: int = 0

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers alone."""
        return [all(_NUMBER.match(row[index]) for row in self.rows) for index in range(len(self.columns))]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        caption: What it shows.
        svg: An ``<svg>`` element, or
        png: a PNG as base64.
    """

    caption: str
    svg: str = ""
    png: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: Its heading.
        level: 1 for the report, 2, or 3 within the section of level 2 before.
        paragraphs: Sentences.
        table: Below them.
        pictures: Below the table, on the page alone.
        items: A list.
    """

    title: str
    level: int = 2
    paragraphs: Sequence[str] = ()
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    items: Sequence[str] = ()


def as_markdown(sections: Iterable[Section]) -> str:
    """The report without its pictures."""
    parts = []
    for section in sections:
        parts.append(f"{'#' * section.level} {_escaped(section.title)}")
        parts += [_escaped(paragraph) for paragraph in section.paragraphs]
        if section.pictures:
            captions = "; ".join(_escaped(picture.caption) for picture in section.pictures)
            parts.append(f"On the page report.html: {captions}.")
        if section.items:
            parts.append("\n".join(f"- {_escaped(item)}" for item in section.items))
        if section.table:
            parts.append(_markdown_table(section.table))
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rule = ["--:" if numeric else "---" for numeric in table.numeric]
    rows = [[_escaped(cell) for cell in row] for row in table.rows]
    marked = [[f"**{row[0]}**", *row[1:]] if number < table.own else row for number, row in enumerate(rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [table.columns, rule, *marked])


def _escaped(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")


def as_html(sections: Sequence[Section]) -> str:
    """The report as one page that needs no other file.

    Raises:
        ImportError: Without the extra ``report``.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415  the extra "report"
    except ImportError as error:
        raise ImportError('the report needs jinja2: pip install "rl-ae[report]"') from error
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE.name).render(
        title=sections[0].title, sections=list(zip(_anchors(sections), sections, strict=True))
    )


def _anchors(sections: Iterable[Section]) -> list[str]:
    """A name for each section, that of a level 3 behind the name of its level 2."""
    anchors, parent = [], ""
    for section in sections:
        slug = re.sub(r"[^a-z0-9]+", "-", section.title.casefold()).strip("-")
        parent = slug if section.level < 3 else parent
        anchors.append(slug if section.level < 3 else f"{parent}-{slug}")
    return anchors
