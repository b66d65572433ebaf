"""The records of a table as comma-separated values."""

import csv
import io
from typing import Any

from avfuse.schema import ReportTable


def render(table: ReportTable) -> str:
    """Return a header and one line per record, without title and notes.

    The columns are the records' keys in order of first appearance. None is an empty field and an undefined number is
    ``nan``; numbers are written in full, the items of a list with semicolons between. Lines end in LF.
    """
    columns = list(dict.fromkeys(key for record in table.records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _field(value) for key, value in record.items()} for record in table.records)
    return text.getvalue()


def _field(value: Any) -> Any:
    return ";".join(map(str, value)) if isinstance(value, list) else value
