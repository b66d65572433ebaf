from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from avfuse.mapped import ClipMaps


@pytest.mark.parametrize("chunk_clips", [1, 4, 7, 30])
@pytest.mark.parametrize(("start", "step"), [(0, 1), (3, 4), (2, 9), (29, 1)])
def test_clips_at_a_distance_are_those_that_zarr_reads(tmp_path: Path, chunk_clips: int, start: int, step: int) -> None:
    values = np.random.default_rng(0).normal(size=(30, 5, 2, 2)).astype(np.float16)
    array = zarr.create_array(
        tmp_path / "video",
        shape=values.shape,
        chunks=(chunk_clips, 5, 2, 2),
        dtype=values.dtype,
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
    )
    array[...] = values
    maps = ClipMaps(tmp_path / "video")
    assert (len(maps), maps.shape, maps.dtype) == (30, values.shape, np.dtype("<f2"))
    expected = values[start::step]
    got = np.full_like(expected, np.nan)
    for at, run in maps.strided(start, step, len(expected)):
        assert isinstance(run, np.memmap)  # seen, not copied
        got[at : at + len(run)] = run
    np.testing.assert_array_equal(got, expected)
