import tomllib
from pathlib import Path

import pytest

from avfuse.arrays import Location
from avfuse.declarations import Declarations
from avfuse.schema import UsageError


def read(text: str, folder: Path = Path("/nowhere")) -> Declarations:
    return Declarations(folder / "a.toml", tomllib.loads(text))


def test_values_are_read() -> None:
    given = read('name = "x"\nhop = 3\nfps = 25\nrate = 29.97\nranges = [[-1, 1], [0.5, 2.5]]\ntargets = ["a", "b"]')
    assert (given.text("name", "y"), given.text("other", "y")) == ("x", "y")
    assert (given.choice("name", "y", ("x", "y")), given.choice("other", "y", ("x", "y"))) == ("x", "y")
    assert (given.whole("hop", 1, minimum=1), given.whole("other", 1, minimum=1)) == (3, 1)
    assert (given.number("fps"), given.number("rate")) == (25.0, 29.97)
    assert given.targets() == ("a", "b")
    assert given.ranges(2) == ((-1.0, 1.0), (0.5, 2.5))
    assert (read("").targets(), read("").ranges(2)) == ((), (None, None))


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "true", '"3"', "[3]"])
def test_what_is_no_whole_number_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"^/nowhere/a\.toml: hop = .*: expected a whole number of at least 1$"):
        read(f"hop = {value}").whole("hop", 1, minimum=1)


@pytest.mark.parametrize("value", ["0", "-3.0", "nan", "inf", "true", '"3"', "[3]"])
def test_what_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"^/nowhere/a\.toml: fps = .*: expected a finite number above 0$"):
        read(f"fps = {value}").number("fps", minimum=0.0)


def test_a_number_must_be_there() -> None:
    with pytest.raises(UsageError, match="fps is missing: a number, such as fps = 25"):
        read("").number("fps")
    with pytest.raises(UsageError, match=r"unrated = nan: expected a finite number$"):
        read("unrated = nan").number("unrated")


@pytest.mark.parametrize("value", ["3", '""', '" "', "[]"])
def test_what_is_no_text_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"name = .*: expected a text that is not empty"):
        read(f"name = {value}").text("name", "x")


def test_what_is_no_choice_is_refused() -> None:
    with pytest.raises(UsageError, match="align = 'longest': expected 'exact' or 'shortest'"):
        read('align = "longest"').choice("align", "exact", ("exact", "shortest"))


@pytest.mark.parametrize("value", ['"valence"', '["a", "a"]', '["a", ""]', "[1]"])
def test_what_are_no_targets_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"targets = .*: expected a list of different names, such as \[\"valence"):
        read(f"targets = {value}").targets()


@pytest.mark.parametrize("value", ["[]", "[[-1, 1]]", "[[1, -1], [0, 1]]", "[[0, nan], [0, 1]]", "[[0], [1]]", "1"])
def test_what_are_no_ranges_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"ranges = .*: expected lowest and highest rating of each of the 2 targets"):
        read(f"ranges = {value}").ranges(2)


def test_keys_that_are_not_known_are_refused() -> None:
    given = read("hopp = 3")
    with pytest.raises(UsageError, match=r"a\.toml: unknown key 'hopp'; known: hop, fps$"):
        given.check_keys(given.table, ("hop", "fps"))
    with pytest.raises(UsageError, match=r"a\.toml: partitions: unknown key 'hopp'"):
        given.check_keys(given.table, ("hop",), "partitions: ")


def test_locations_lie_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "here" / "inner").symlink_to(tmp_path / "here")
    given = read("", tmp_path / "here")
    for text, file in (("a/b.npy", "a/b.npy"), ("{recording}.h5:/{subject}", "{recording}.h5"), ("inner/a.npy",) * 2):
        location = given.location("video", text)
        assert isinstance(location, Location)
        assert location.file == file
    for text in ("../a.npy", "a/../../b.npy", "link/a.npy", str(tmp_path / "here" / "a.npy"), "a\0.npy"):
        with pytest.raises(UsageError, match=r"video = .*: expected a path below .*here, the folder of the mapping"):
            given.location("video", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (3, "row 1: video = 3: expected a text such as 'features/{recording}.npy'"),
        (
            "{name}.npy",
            "row 1: video = '{name}.npy': expected no other placeholders than {recording}, {partition}, {sub",
        ),
        ("a.csv", r"row 1: video = 'a\.csv': expected a file that ends in"),
        ("a.pkl", r"row 1: video = 'a\.pkl': pickled Python objects run what the file says"),
    ],
)
def test_other_locations_are_refused(text: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read("").location("row 1: video", text)
