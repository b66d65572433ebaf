"""How feature maps are kept: as halves or as bytes, whole or pooled, plain or compressed.

Bytes keep ``round((value - offset) / scale)`` with one scale and one offset per channel and recording, so that the
lowest value of a channel is 0 and the highest is 255; their error is half a scale at most.

Everything begins with halves: what is pooled, and what becomes bytes, are the halves that would be kept. So a cache
that is made smaller later is, to the last bit, what extraction would have made.
"""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.codecs.numcodecs import PCodec
from zarr.errors import ZarrUserWarning

from avfuse.clips import PLAIN_CODECS
from avfuse.options import COMPRESSIONS
from avfuse.schema import UsageError

_MAX_BYTE = 255
_ZSTD_LEVEL, _PCODEC_LEVEL = 1, 8


def codecs(compress: str, dtype: str = "float16") -> dict[str, Any]:
    """Return the serializer and compressors that `zarr.Group.create_array` takes; a CRC-32C comes last.

    Raises
    ------
    UsageError
        If the compression is not known, is none of this type's, or its package is not installed.
    """
    if compress == "none":
        return {"serializer": BytesCodec(endian="little"), "compressors": [Crc32cCodec()]}
    if compress == "zstd":
        return {"serializer": BytesCodec(endian="little"), "compressors": [ZstdCodec(level=_ZSTD_LEVEL), Crc32cCodec()]}
    if compress == "pcodec":
        return {"serializer": _pcodec(dtype), "compressors": [Crc32cCodec()]}
    raise UsageError(f"unknown compression '{compress}'; known: {', '.join(COMPRESSIONS)}")


def _pcodec(dtype: str) -> Any:
    if dtype == "uint8":
        raise UsageError("pcodec compresses float16, not uint8; compress bytes with zstd, or not at all")
    if find_spec("pcodec") is None:
        raise UsageError("compression by pcodec needs that package; install it with: pip install 'avfuse[pcodec]'")
    with warnings.catch_warnings():  # that it is no part of the specification, which docs/cache-format.md says
        warnings.simplefilter("ignore", ZarrUserWarning)
        return PCodec(level=_PCODEC_LEVEL)


def compression_of(metadata: bytes) -> str:
    """Return how an array is compressed, one of COMPRESSIONS or the name of another codec, from its ``zarr.json``."""
    names = [str(codec["name"]).rpartition(".")[2] for codec in json.loads(metadata)["codecs"]]
    return next((name for name in names if name not in PLAIN_CODECS), "none")


def find_scale(lowest_C: npt.NDArray[np.float32], highest_C: npt.NDArray[np.float32]) -> tuple[Any, Any]:
    """Return scale and offset of each channel, (C,) float32 each, from its lowest and highest value."""
    offset_C = lowest_C.astype(np.float32) + np.float32(0)  # which turns -0 into 0
    return ((highest_C - offset_C) / _MAX_BYTE).astype(np.float32) + np.float32(0), offset_C


def to_bytes(
    values_NCHW: npt.NDArray[Any], scale_C: npt.NDArray[np.float32], offset_C: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """Return values as bytes, to the nearest; a channel of one value, whose scale is 0, is 0."""
    scale_C11 = np.where(scale_C > 0, scale_C, 1)[:, None, None]
    levels_NCHW = np.rint((values_NCHW.astype(np.float32) - offset_C[:, None, None]) / scale_C11)
    return levels_NCHW.clip(0, _MAX_BYTE).astype(np.uint8)


def from_bytes(levels: Tensor, scale_C: Tensor, offset_C: Tensor) -> Tensor:
    """Return the float32 values of bytes (..., C, H, W); scale and offset are (..., C)."""
    return torch.addcmul(offset_C[..., None, None], levels.float(), scale_C[..., None, None])


def decode(values_NCHW: npt.NDArray[Any], scale: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None) -> Tensor:
    """Return stored maps as float32 values; `scale` holds scale and offset, (C,) each, of maps that are bytes."""
    stored_NCHW = torch.from_numpy(np.array(values_NCHW))
    if scale is None:
        return stored_NCHW.float()
    return from_bytes(stored_NCHW, *(torch.from_numpy(values_C) for values_C in scale))


def pool(values_NCHW: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the mean of each channel over its map, (N, C, 1, 1).

    The sum of halves is exact, so that their mean does not depend on the order in which they are added.
    """
    return np.asarray(values_NCHW.mean(axis=(2, 3), keepdims=True, dtype=np.float64), np.float32)
