import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from avfuse import arrays
from avfuse.arrays import PICKLE_SUFFIXES, Location, MissingArrayError, list_arrays, open_array
from avfuse.schema import UsageError

VALUES = np.arange(12.0).reshape(4, 3)


def write_npy(path: Path, values: Any) -> tuple[Path, str]:
    np.save(path / "a.npy", values)
    return path / "a.npy", ""


def write_npz(path: Path, values: Any) -> tuple[Path, str]:
    np.savez(path / "a.npz", key=values, other=np.zeros(1))
    return path / "a.npz", "key"


def write_npz_compressed(path: Path, values: Any) -> tuple[Path, str]:
    np.savez_compressed(path / "a.npz", key=values)
    return path / "a.npz", "key"


def write_hdf5(path: Path, values: Any) -> tuple[Path, str]:
    with h5py.File(path / "a.h5", "w") as file:
        file["group/key"] = values
    return path / "a.h5", "/group/key"


def write_hdf5_compressed(path: Path, values: Any) -> tuple[Path, str]:
    with h5py.File(path / "a.hdf5", "w") as file:
        file.create_dataset("key", data=values, compression="gzip" if values.size else None)
    return path / "a.hdf5", "key"


NUMPY = (write_npy, write_npz, write_npz_compressed)
every_file = pytest.mark.parametrize("write", [*NUMPY, write_hdf5, write_hdf5_compressed])


def read(path: Path, inside: str) -> np.ndarray:
    with open_array(path, inside) as opened:
        return opened.rows(0, opened.shape[0])


@every_file
@pytest.mark.parametrize(
    "values",
    [VALUES, VALUES.astype(">f4"), np.asfortranarray(VALUES).astype(np.float16), np.arange(5), np.array([True, False])],
)
def test_numbers_are_read_by_rows(tmp_path: Path, write: Callable[..., tuple[Path, str]], values: np.ndarray) -> None:
    with open_array(*write(tmp_path, values)) as opened:
        assert opened.shape == values.shape
        np.testing.assert_array_equal(opened.rows(0, len(values)), values)
        np.testing.assert_array_equal(opened.rows(1, 2), values[1:2])


@every_file
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((0, 3)), r"shape \(0, 3\); at least one row of numbers"),
        (np.zeros((3, 0)), r"shape \(3, 0\); at least one row of numbers"),
        (np.array(1j * VALUES), "it holds complex128; numbers are expected"),
        (np.zeros(3, [("x", "f4"), ("y", "f4")]), "it holds .*; numbers are expected"),
        (np.array([b"text", b"more"]), r"it holds \|S4; numbers are expected"),
    ],
)
def test_other_than_numbers_is_refused(
    tmp_path: Path, write: Callable[..., tuple[Path, str]], values: np.ndarray, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read(*write(tmp_path, values))


class Spy:
    """An object that shows whether it was unpickled."""

    num_unpickled = 0

    def __reduce__(self) -> tuple[Callable[[], int], tuple[()]]:
        return _spied, ()


def _spied() -> int:
    Spy.num_unpickled += 1
    return 0


@pytest.mark.parametrize("write", NUMPY)
def test_pickled_objects_are_refused_unread(tmp_path: Path, write: Callable[..., tuple[Path, str]]) -> None:
    place = write(tmp_path, np.array([Spy(), Spy()], dtype=object))
    with pytest.raises(UsageError, match=r"pickled Python objects run what the file says .*features-of-others\.md"):
        read(*place)
    plain = tmp_path / "pickle.npy"
    plain.write_bytes(pickle.dumps({"vision": Spy()}))
    with pytest.raises(UsageError, match="pickled Python objects run what the file says"):
        read(plain, "")
    assert Spy.num_unpickled == 0


def test_text_in_hdf5_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["names"] = ["anna", "ben"]
        file["nothing"] = h5py.Empty("f4")
    with pytest.raises(UsageError, match="it holds object; numbers are expected"):
        read(tmp_path / "a.h5", "names")
    with pytest.raises(UsageError, match=r"it has shape \(\); at least one row"):
        read(tmp_path / "a.h5", "nothing")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingArrayError, match="there is no such file"):
        read(tmp_path / "a.npy", "")
    with pytest.raises(UsageError, match="there is no such file"):
        list_arrays(tmp_path / "a.h5")
    write_npz(tmp_path, VALUES)
    with pytest.raises(MissingArrayError, match=r"it has no array 'nobody'; it has: key, other$"):
        read(tmp_path / "a.npz", "nobody")
    write_hdf5(tmp_path, VALUES)
    for inside in ("nobody", "group"):
        with pytest.raises(MissingArrayError, match=f"it has no data set '{inside}'; it has: group/key$"):
            read(tmp_path / "a.h5", inside)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        for number in range(6):
            file[f"more/{number}"] = [1]
    with pytest.raises(MissingArrayError, match=r"it has: group/key, more/0, more/1, more/2, more/3 and 2 more$"):
        read(tmp_path / "a.h5", "nobody")


@every_file
def test_damaged_files_are_refused(tmp_path: Path, write: Callable[..., tuple[Path, str]]) -> None:
    path, inside = write(tmp_path, np.random.default_rng(0).normal(size=(400, 3)))
    content = path.read_bytes()
    for damaged in (b"", content[:40], content[: len(content) // 2], b"nothing " * 500):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="it cannot be read"):
            read(path, inside)


def test_a_damaged_array_in_an_archive_is_refused(tmp_path: Path) -> None:
    path, inside = write_npz(tmp_path, VALUES)
    content = bytearray(path.read_bytes())
    content[content.index(VALUES.tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"it cannot be read \(BadZipFile: Bad CRC-32"):
        read(path, inside)


def test_links_out_of_an_hdf5_file_are_refused(tmp_path: Path) -> None:
    write_hdf5(tmp_path, VALUES)
    layout = h5py.VirtualLayout(shape=(4, 3), dtype="f8")
    layout[:] = h5py.VirtualSource(tmp_path / "a.h5", "group/key", shape=(4, 3))
    (tmp_path / "raw").write_bytes(VALUES.tobytes())
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["external"] = h5py.ExternalLink(str(tmp_path / "a.h5"), "group/key")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", (4, 3), "f8", external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])
        file["own"] = VALUES
        file["soft"] = h5py.SoftLink("/own")
    for inside in ("external", "virtual", "raw"):
        with pytest.raises(UsageError, match=f"its '{inside}' lies in another file"):
            read(tmp_path / "links.h5", inside)
    np.testing.assert_array_equal(read(tmp_path / "links.h5", "soft"), VALUES)
    assert list_arrays(tmp_path / "links.h5") == ["own", "raw", "soft", "virtual"]


def test_links_within_an_hdf5_file_are_listed_and_others_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hdf5(tmp_path, VALUES)
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["data/a"] = VALUES
        file["by/hard"] = file["data/a"]
        file["by/soft"] = h5py.SoftLink("/data/a")
        file["group"] = h5py.SoftLink("data")
        file["same"] = file["data"]
    expected = ["by/hard", "by/soft", "data/a", "group/a", "same/a"]
    assert list_arrays(tmp_path / "links.h5") == expected
    assert not caplog.records
    for inside in expected:
        np.testing.assert_array_equal(read(tmp_path / "links.h5", inside), VALUES)
    with h5py.File(tmp_path / "links.h5", "a") as file:
        file["data/back"] = file["/"]
        file["out"] = h5py.ExternalLink("a.h5", "/")
        file["through"] = h5py.SoftLink("/out/group")
        file["wrong"] = h5py.SoftLink("/nothing")
    assert list_arrays(tmp_path / "links.h5") == expected
    named = "data/back, group/back, out, same/back, through and 1 more"
    assert re.search(rf"links\.h5: 6 links lead to another file, .* not followed: {named}$", caplog.messages[0])
    monkeypatch.setattr(arrays, "_MAX_LINKS", 14)
    with pytest.raises(UsageError, match="it has more than 14 paths; list the recordings"):
        list_arrays(tmp_path / "links.h5")
    monkeypatch.setattr(arrays, "_MAX_LINKS", 15)
    assert list_arrays(tmp_path / "links.h5") == expected


def test_arrays_are_listed(tmp_path: Path) -> None:
    assert list_arrays(write_npz(tmp_path, VALUES)[0]) == ["key", "other"]
    assert list_arrays(write_hdf5(tmp_path, VALUES)[0]) == ["group/key"]
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(UsageError, match="it cannot be read"):
        list_arrays(tmp_path / "a.npz")


def test_a_version_of_the_format_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("key.npy", b"\x93NUMPY\x03\x00" + bytes(100))
    with pytest.raises(UsageError, match="its version of numpy's format is not one of plain numbers"):
        read(tmp_path / "a.npz", "key")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b.npy", Location("a/b.npy")),
        ("a: b.npy", Location("a: b.npy")),
        ("a.npz:x", Location("a.npz", "x")),
        ("dir.h5/a.h5:/x/y", Location("dir.h5/a.h5", "/x/y")),
        ("a.hdf5:/x.npz:y", Location("a.hdf5", "/x.npz:y")),
    ],
)
def test_locations_are_read(text: str, expected: Location) -> None:
    assert Location.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.csv", "expected a file that ends in .npy, .npz, .h5, .hdf5"),
        ("", "expected a file that ends in"),
        ("a.npz", "say which array of the file is meant, as a.npz:KEY"),
        ("a.h5", "say which array of the file is meant, as a.h5:/PATH"),
        *((f"a{suffix}", "pickled Python objects run what the file says") for suffix in PICKLE_SUFFIXES),
    ],
)
def test_other_locations_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Location.parse(text)
