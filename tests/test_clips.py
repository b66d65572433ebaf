"""Arrays over clips: chunk by chunk they give what zarr gives, mapped or decoded."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import zarr

from avfuse.clips import digest_of
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
            assert isinstance(run, np.memmap) == (compress == "none") == clips.is_mapped  # seen, not copied
            got[at : at + len(run)] = run
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.concatenate(list(clips.chunks())), values)
    assert digest_of(values) == hashlib.sha256(values.tobytes()).hexdigest()
