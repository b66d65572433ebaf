"""The records of a table as JSON."""

import json

from avfuse.atomic import plain_values
from avfuse.schema import ReportTable


def render(table: ReportTable) -> str:
    """Return {"title", "rows", "notes"} with one row per record; a number that is not finite becomes null."""
    document = {
        "title": table.title,
        "rows": plain_values(table.records),
        "notes": list(table.notes),
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
