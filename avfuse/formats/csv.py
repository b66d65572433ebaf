"""The records of a table as comma-separated values."""

import csv
import io

from avfuse.schema import ReportTable


def render(table: ReportTable) -> str:
    """Return a header and one line per record, without title and notes.

    The columns are the records' keys in order of first appearance. None is an empty field and an undefined number is
    ``nan``; numbers are written in full. Lines end in LF.
    """
    columns = list(dict.fromkeys(key for record in table.records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.records)
    return text.getvalue()
