"""Every registered format keeps the contract of `avfuse.formats` and survives nasty text."""

import csv
import io
import json
import math
import re
from typing import Any

import pytest

from avfuse import registry
from avfuse.formats import latex, markdown
from avfuse.schema import ReportTable

NASTY = "a|b & 50 % _x_ recursive_joint #1 $y$ {z} ~ ^ \\ <i> *em* `code` [l](u) \"q\" 'r', ±\N{EN DASH}é"
TABLE = ReportTable(
    title=f"Title {NASTY}",
    columns=("head", "options", "CCC valence"),
    rows=(("concat", NASTY, "0.512 ± 0.013"), ("[x]", "*", "\N{EN DASH}"), ("two\nlines", "", "0.1")),
    records=(
        {"head": "concat", "options": NASTY, "ccc": 0.1 + 0.2, "sd": None, "seeds": 2, "runs": ["/a/seed-0", "/a/b"]},
        {"head": "two\nlines\r\n", "options": "", "ccc": math.nan, "sd": math.inf, "seeds": 1, "runs": []},
    ),
    notes=("First note.", NASTY),
)
EMPTY = ReportTable(title="", columns=("head",), rows=(), records=())
every_format = pytest.mark.parametrize("name", list(registry.FORMATS))


def render(name: str, table: ReportTable = TABLE) -> str:
    text = registry.load("format", name)(table)
    assert isinstance(text, str)
    return text


@every_format
def test_contract(name: str) -> None:
    for table in (TABLE, EMPTY):
        text = render(name, table)
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
        assert text == render(name, table)
    assert "concat" in render(name)


def test_csv_reads_back_equal() -> None:
    text = render("csv")
    assert text.startswith("head,options,ccc,sd,seeds,runs\n")
    first, second = csv.DictReader(io.StringIO(text, newline=""))
    expected = {"head": "concat", "options": NASTY, "ccc": "0.30000000000000004", "sd": "", "seeds": "2"}
    assert first == {**expected, "runs": "/a/seed-0;/a/b"}
    expected = {"head": "two\nlines\r\n", "options": "", "ccc": "nan", "sd": "inf", "seeds": "1"}
    assert second == {**expected, "runs": ""}
    assert float(first["ccc"]) == TABLE.records[0]["ccc"]


def refuse_constant(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


def test_json_reads_back_equal() -> None:
    document = json.loads(render("json"), parse_constant=refuse_constant)
    assert list(document) == ["title", "rows", "notes"]
    assert document["title"] == TABLE.title
    assert document["notes"] == list(TABLE.notes)
    assert document["rows"][0] == TABLE.records[0]
    assert document["rows"][1] == {**TABLE.records[1], "ccc": None, "sd": None}


def test_markdown_cells_hold_their_text() -> None:
    lines = render("markdown").splitlines()
    start = lines.index("| --- | --- | --- |") - 1
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in (lines[start], *lines[start + 2 : start + 5])]
    shown = [[re.sub(r"\\([^\w\s])|\\(_)", r"\1\2", cell.strip()) for cell in row] for row in cells]
    expected = [[" ".join(cell.split()) for cell in row] for row in (TABLE.columns, *TABLE.rows)]
    assert shown == expected
    assert lines[start + 5] == ""
    assert lines[-2] == "- First note."


def test_markdown_leaves_names_readable() -> None:
    table = ReportTable(
        "Validation CCC", ("head", "options"), (("recursive_joint_attention", "joint_blstm=false"),), ()
    )
    assert markdown.render(table) == (
        "## Validation CCC\n\n| head | options |\n| --- | --- |\n| recursive_joint_attention | joint_blstm=false |\n"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("&%_#${}", r"\&\%\_\#\$\{\}"),
        ("~^\\", r"\textasciitilde{}\textasciicircum{}\textbackslash{}"),
        ("0.1 ± 0.2", r"0.1 $\pm$ 0.2"),
        ("[a]*", "{[}a{]}{*}"),
        ("\N{EN DASH}", "--"),
    ],
)
def test_latex_escapes(text: str, expected: str) -> None:
    rendered = latex.render(ReportTable(text, (text, text), ((text, text),), (), (text,)))
    assert rf"\caption{{{expected}}}" in rendered
    assert rendered.count(rf"{expected} & {expected} \\") == 2
    assert rf"\par\footnotesize {expected}" in rendered


def test_latex_is_balanced_and_uses_booktabs() -> None:
    text = render("latex")
    commands = text.replace(r"\{", "").replace(r"\}", "")
    assert commands.count("{") == commands.count("}")
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert body.count(r"\\") == len(TABLE.rows)
    for row in body.strip().splitlines():
        assert len(re.findall(r"(?<!\\)&", row)) == len(TABLE.columns) - 1
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rf"\{rule}") == 1
    assert r"\begin{tabular}{lll}" in text
