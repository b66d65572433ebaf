"""Formats: a `ReportTable` as text.

Contract
--------
``render(table: ReportTable) -> str`` returns the whole document, ending with a newline. Formats that machines read
(csv, json) write ``table.records``; formats that people read (markdown, latex) write ``table.rows`` under
``table.columns`` and the notes below, escaped as the format demands. A line feed in a heading or a cell is a good place
to break it, no more: these formats write a space.
"""
