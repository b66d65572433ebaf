"""A table as GitHub-flavoured Markdown."""

import re

from avfuse.schema import ReportTable

_SPECIAL = re.compile(r"[\\|*<`~&\[\]]|(?<!\w)_|_(?!\w)")


def render(table: ReportTable) -> str:
    """Return title, table and notes as Markdown; text is escaped, so that it shows as it is."""
    lines = [f"## {_escape(table.title)}", "", _row(table.columns), _row(("---",) * len(table.columns), escape=False)]
    lines += [_row(row) for row in table.rows]
    if table.notes:
        lines += ["", *(f"- {_escape(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...], *, escape: bool = True) -> str:
    return "| " + " | ".join(_escape(cell) if escape else cell for cell in cells) + " |"


def _escape(text: str) -> str:
    """Put a backslash before what Markdown would read; an underscore inside a word is left as it is."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))
