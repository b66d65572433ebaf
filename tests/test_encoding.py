"""Maps as halves or bytes, whole or pooled, plain or compressed: what each costs of a value, and no more."""

import fractions
import json
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from avfuse.encoding import codecs, compression_of, decode, find_scale, from_bytes, pool, to_bytes
from avfuse.options import DTYPES
from avfuse.schema import UsageError
from avfuse.stores import open_array

NUM_CLIPS, MAP = 11, 3


def ranges(kind: str) -> npt.NDArray[np.float16]:
    """Return maps (N, C, H, W) of one kind, as halves."""
    rng = np.random.default_rng(len(kind))
    values = rng.normal(size=(NUM_CLIPS, 5, MAP, MAP)) * np.array([1e-4, 0.1, 1, 30, 6000])[:, None, None]
    made = {
        "mixed": values,
        "behind a ReLU": np.maximum(values, 0),
        "positive": np.abs(values) + 2,
        "negative": -np.abs(values) - 2,
        "constant": np.array([-3.7, -1e-7, 0, 1e-7, 3.7])[:, None, None] + np.zeros_like(values),
        "extreme": np.where(values > 0, 65504.0, -65504.0),
        "one clip": values[:1],
        "one value": values[:1, :, :1, :1],
    }
    return made[kind].astype(np.float16)


KINDS = ("mixed", "behind a ReLU", "positive", "negative", "constant", "extreme", "one clip", "one value")
every_kind = pytest.mark.parametrize("kind", KINDS)


def scale_of(half_NCHW: npt.NDArray[np.float16]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    values_NCHW = half_NCHW.astype(np.float32)
    return find_scale(values_NCHW.min(axis=(0, 2, 3)), values_NCHW.max(axis=(0, 2, 3)))


def packed(codec: dict[str, object], values: npt.NDArray[np.generic], place: Path) -> npt.NDArray[np.generic]:
    """Return what is read of an array that was written with a codec."""
    array = zarr.create_array(place, shape=values.shape, dtype=values.dtype, chunks=values.shape, **codec)
    array[...] = values
    return np.asarray(open_array(place, mode="r")[...])


@every_kind
def test_a_byte_is_half_a_scale_away_at_most(kind: str) -> None:
    half_NCHW = ranges(kind)
    scale_C, offset_C = scale_of(half_NCHW)
    assert (scale_C.dtype, offset_C.dtype) == (np.float32, np.float32)
    levels_NCHW = to_bytes(half_NCHW, scale_C, offset_C)
    assert levels_NCHW.dtype == np.uint8
    exact_NCHW = half_NCHW.astype(np.float64)
    span_C = exact_NCHW.max(axis=(0, 2, 3)) - exact_NCHW.min(axis=(0, 2, 3))
    np.testing.assert_allclose(scale_C, span_C / 255, rtol=1e-6)
    read_NCHW = offset_C[:, None, None] + scale_C[:, None, None].astype(np.float64) * levels_NCHW
    error_C = np.abs(read_NCHW - exact_NCHW).max(axis=(0, 2, 3))
    assert (
        error_C <= span_C / 510 + np.abs(exact_NCHW).max(axis=(0, 2, 3)) * 1e-6
    ).all()  # 32-bit numbers have 24 bits


@every_kind
def test_bytes_are_decoded_as_offset_and_scale_have_it(kind: str) -> None:
    half_NCHW = ranges(kind)
    scale_C, offset_C = scale_of(half_NCHW)
    levels_NCHW = to_bytes(half_NCHW, scale_C, offset_C)
    expected_NCHW = offset_C[:, None, None] + scale_C[:, None, None].astype(np.float64) * levels_NCHW
    read_NCHW = decode(levels_NCHW, (scale_C, offset_C))
    assert read_NCHW.dtype == torch.float32
    np.testing.assert_allclose(read_NCHW.numpy(), expected_NCHW, rtol=1e-6, atol=np.abs(offset_C).max() * 1e-7)
    windows = torch.from_numpy(levels_NCHW)[None].expand(2, *levels_NCHW.shape)
    scale_BTC, offset_BTC = (torch.from_numpy(values_C).expand(2, 1, -1) for values_C in (scale_C, offset_C))
    assert torch.equal(from_bytes(windows, scale_BTC, offset_BTC)[1], read_NCHW)


@pytest.mark.parametrize("kind", ["behind a ReLU", "positive", "constant"])
def test_zero_stays_zero_where_nothing_is_below_it(kind: str) -> None:
    half_NCHW = ranges(kind)
    half_NCHW[0] = np.where((half_NCHW < 0).any(axis=(0, 2, 3))[:, None, None], half_NCHW[0], 0)
    scale_C, offset_C = scale_of(half_NCHW)
    is_zero = half_NCHW == 0
    assert is_zero.any()
    assert (decode(to_bytes(half_NCHW, scale_C, offset_C), (scale_C, offset_C)).numpy()[is_zero] == 0).all()


def test_lowest_and_highest_are_the_ends_of_the_range() -> None:
    half_NCHW = ranges("mixed")
    levels_NCHW = to_bytes(half_NCHW, *scale_of(half_NCHW))
    assert levels_NCHW.min(axis=(0, 2, 3)).tolist() == [0] * 5
    assert levels_NCHW.max(axis=(0, 2, 3)).tolist() == [255] * 5
    outside = half_NCHW.astype(np.float32) * 2  # as a scale of other maps would meet them
    clipped_NCHW = to_bytes(outside, *scale_of(half_NCHW))
    assert (clipped_NCHW[outside > half_NCHW.max(axis=(0, 2, 3))[:, None, None]] == 255).all()


def test_a_channel_of_one_value_costs_nothing_of_it() -> None:
    half_NCHW = ranges("constant")
    scale_C, offset_C = scale_of(half_NCHW)
    assert not scale_C.any()
    read_NCHW = decode(to_bytes(half_NCHW, scale_C, offset_C), (scale_C, offset_C)).numpy()
    np.testing.assert_allclose(read_NCHW, half_NCHW, rtol=1e-6)
    assert (read_NCHW[:, :3] == half_NCHW[:, :3]).all()


def test_a_scale_has_no_negative_zero() -> None:
    """A negative zero is another sha256, and whether it is the lowest of zeros depends on their order."""
    zero_C = np.array([-0.0], np.float32)
    for values_C in find_scale(zero_C, zero_C):
        assert not np.signbit(values_C).any()


@every_kind
def test_pooling_is_the_mean(kind: str) -> None:
    half_NCHW = ranges(kind)
    pooled_NC11 = pool(half_NCHW)
    assert (pooled_NC11.shape, pooled_NC11.dtype) == ((*half_NCHW.shape[:2], 1, 1), np.float32)
    exact = [
        [float(sum(map(fractions.Fraction, map(float, cell.flat))) / cell.size) for cell in clip] for clip in half_NCHW
    ]
    np.testing.assert_array_equal(pooled_NC11[:, :, 0, 0], np.array(exact).astype(np.float32))


def test_the_mean_does_not_depend_on_how_maps_lie_in_memory() -> None:
    half_NCHW = np.random.default_rng(0).normal(size=(70, 16, 7, 7)).astype(np.float16)
    whole = pool(half_NCHW)
    np.testing.assert_array_equal(whole, np.concatenate([pool(half_NCHW[i : i + 1]) for i in range(70)]))
    np.testing.assert_array_equal(whole, pool(np.asfortranarray(half_NCHW)))
    np.testing.assert_array_equal(whole, pool(half_NCHW[:, :, ::-1, ::-1]))


@pytest.mark.parametrize(("compress", "dtype"), [*product(("none", "zstd"), DTYPES), ("pcodec", "float16")])
def test_compression_changes_no_bit(tmp_path: Path, compress: str, dtype: str) -> None:
    if compress == "pcodec":
        pytest.importorskip("pcodec", reason="the package pcodec is an extra")
    bits = np.random.default_rng(0).integers(0, 2**16, 4096, np.uint16)
    bits[:64] = [0x0000, 0x8000, 0x7BFF, 0xFBFF, 0x0001, 0x8001, 0x3C00, 0xBC00] * 8  # zeros of either sign, the ends
    values = bits.view(np.float16) if dtype == "float16" else bits.view(np.uint8)
    read = packed(codecs(compress, dtype), values, tmp_path / "random")
    np.testing.assert_array_equal(read.view(np.uint8), values.view(np.uint8))  # NaN and -0 as well
    zeros = np.zeros_like(values)
    np.testing.assert_array_equal(packed(codecs(compress, dtype), zeros, tmp_path / "zeros"), zeros)
    metadata = (tmp_path / "random" / "zarr.json").read_bytes()
    assert compression_of(metadata) == compress
    assert json.loads(metadata)["codecs"][-1]["name"] == "crc32c"


def test_a_compression_makes_what_repeats_smaller(tmp_path: Path) -> None:
    sizes = {}
    values = np.tile(np.maximum(np.random.default_rng(0).normal(size=512), 0), 64).astype(np.float16)
    for compress in ("none", "zstd"):
        packed(codecs(compress), values, tmp_path / compress)
        sizes[compress] = (tmp_path / compress / "c" / "0").stat().st_size
    assert sizes["none"] == values.nbytes + 4
    assert sizes["zstd"] < values.nbytes / 2


def test_another_codec_is_named(tmp_path: Path) -> None:
    codec = {"serializer": BytesCodec(endian="little"), "compressors": [zarr.codecs.GzipCodec(), Crc32cCodec()]}
    packed(codec, np.zeros(4, np.float16), tmp_path)
    assert compression_of((tmp_path / "zarr.json").read_bytes()) == "gzip"


def test_what_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown compression 'gzip'; known: none, zstd, pcodec"):
        codecs("gzip")
    with pytest.raises(UsageError, match="pcodec compresses float16, not uint8; compress bytes with zstd"):
        codecs("pcodec", "uint8")
    monkeypatch.setattr("avfuse.encoding.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs that package; install it with: pip install 'avfuse\[pcodec\]'"):
        codecs("pcodec")
