"""Arrays over clips: chunk by chunk they give what zarr gives, mapped or decoded."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from avfuse.clips import ChangedError, digest_of, map_file
from avfuse.encoding import codecs
from avfuse.stores.directory import DirectoryStore


@pytest.mark.parametrize("compress", ["none", "zstd"])
@pytest.mark.parametrize("chunk_clips", [1, 4, 7, 30])
def test_clips_at_a_distance_are_those_that_zarr_reads(tmp_path: Path, chunk_clips: int, compress: str) -> None:
    values = np.random.default_rng(0).normal(size=(30, 5, 2, 2)).astype(np.float16)
    array = zarr.create_array(
        tmp_path / "video", shape=values.shape, chunks=(chunk_clips, 5, 2, 2), dtype=values.dtype, **codecs(compress)
    )
    array[...] = values
    clips = DirectoryStore(tmp_path).clips("video")
    assert (len(clips), clips.shape, clips.dtype, clips.num_bytes) == (30, values.shape, np.dtype("<f2"), values.nbytes)
    for start, step in ((0, 1), (3, 4), (2, 9), (29, 1)):
        expected = values[start::step]
        got = np.full_like(expected, np.nan)
        for at, run in clips.strided(start, step, len(expected)):
            assert (not run.flags.writeable) == (compress == "none") == clips.is_mapped  # seen, not copied
            got[at : at + len(run)] = run
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.concatenate(list(clips.chunks())), values)
    assert digest_of(values) == hashlib.sha256(values.tobytes()).hexdigest()


def test_a_mapped_file_is_its_memory_and_is_not_kept_open(tmp_path: Path) -> None:
    def list_open() -> list[Path]:
        return [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.exists()]

    file = tmp_path / "chunk"
    file.write_bytes(bytes(range(200)))
    values = map_file(file, 100)
    part = values[10:].view(np.uint16)
    assert values.tobytes() == bytes(range(100))
    assert file not in list_open()
    del values
    assert str(file) in Path("/proc/self/maps").read_text()
    assert part.tobytes() == bytes(range(10, 100))
    with pytest.raises(ValueError, match="read-only"):
        part[0] = 0
    del part
    assert str(file) not in Path("/proc/self/maps").read_text()
    with pytest.raises(ValueError, match="chunk has fewer than 201 bytes"):
        map_file(file, 201)
    with pytest.raises(FileNotFoundError, match="nothing"):
        map_file(tmp_path / "nothing", 1)


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_a_chunk_that_becomes_another_is_not_read_again(tmp_path: Path, compress: str) -> None:
    values = np.random.default_rng(0).normal(size=(8, 5, 2, 2)).astype(np.float16)

    def write(name: str, values: np.ndarray) -> None:
        array = zarr.create_array(
            tmp_path / name, shape=values.shape, chunks=(4, 5, 2, 2), dtype=values.dtype, **codecs(compress)
        )
        array[...] = values

    write("video", values)
    clips = DirectoryStore(tmp_path).clips("video")
    before = np.array(clips.chunk(0))
    np.testing.assert_array_equal(clips.chunk(0), before)
    (tmp_path / "video").rename(tmp_path / "moved")
    with pytest.raises(ChangedError, match=r"video/c/0/0/0/0 was changed while it was being used; run the same"):
        clips.chunk(0)
    write("video", -values)
    os.utime(tmp_path / "video" / "c" / "0" / "0" / "0" / "0", ns=(0, 0))
    with pytest.raises(ChangedError, match=r"video/c/0/0/0/0"):
        clips.chunk(0)
    shutil.rmtree(tmp_path / "video")
    with pytest.raises(FileNotFoundError):  # what was never read, and never as zeros
        clips.chunk(1)
