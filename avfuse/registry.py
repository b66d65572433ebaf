"""The plugs: one table per socket, name -> "module:attribute".

Rows are strings, so that the choices of an option can be listed without importing what they name. A plug is added by
one file in its socket's folder and one row here.
"""

import importlib
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from avfuse.schema import UsageError

CORPORA = {
    "aff_wild2": "avfuse.corpora.aff_wild2:AffWild2Corpus",
    "folder": "avfuse.corpora.folder:FolderCorpus",
    "fatigue": "avfuse.corpora.fatigue:FatigueCorpus",
}
ENCODERS = {
    "r3d": "avfuse.encoders.r3d:R3DEncoder",
    "spectrogram_resnet": "avfuse.encoders.spectrogram_resnet:SpectrogramResNetEncoder",
}
HEADS = {
    "recursive_joint_attention": "avfuse.fusion.recursive_joint_attention:RecursiveJointAttention",
    "reliability_joint_attention": "avfuse.fusion.reliability_joint_attention:ReliabilityJointAttention",
    "concat": "avfuse.fusion.concat:ConcatFusion",
    "leader_follower": "avfuse.fusion.leader_follower:LeaderFollower",
    "cross_attention": "avfuse.fusion.cross_attention:CrossAttention",
    "joint_cross_attention": "avfuse.fusion.joint_cross_attention:JointCrossAttention",
    "lstm_transformer": "avfuse.fusion.lstm_transformer:LSTMTransformer",
    "audio_only": "avfuse.fusion.audio_only:AudioOnly",
    "visual_only": "avfuse.fusion.visual_only:VisualOnly",
}
ENGINES = {
    "local": "avfuse.engines.local:LocalEngine",
    "ray": "avfuse.engines.ray:RayEngine",
    "serial": "avfuse.engines.serial:SerialEngine",
}
STORES = {
    "directory": "avfuse.stores.directory:DirectoryStore",
    "hdf5": "avfuse.stores.hdf5:HDF5Store",
    "s3": "avfuse.stores.s3:S3Store",
}
METRICS = {
    "ccc": "avfuse.metrics.ccc:ccc",
    "pearson": "avfuse.metrics.pearson:pearson",
    "rmse": "avfuse.metrics.rmse:rmse",
    "mae": "avfuse.metrics.mae:mae",
    "sagr": "avfuse.metrics.sagr:sagr",
    "icc": "avfuse.metrics.icc:icc",
}
FORMATS = {
    "markdown": "avfuse.formats.markdown:render",
    "latex": "avfuse.formats.latex:render",
    "csv": "avfuse.formats.csv:render",
    "json": "avfuse.formats.json:render",
}
SOCKETS = {
    "corpus": CORPORA,
    "encoder": ENCODERS,
    "engine": ENGINES,
    "store": STORES,
    "head": HEADS,
    "metric": METRICS,
    "format": FORMATS,
}


def load(socket: str, name: str) -> Any:
    """Import and return the plug `name` of a socket (a key of `SOCKETS`).

    Raises
    ------
    UsageError
        If the socket has no plug of that name; the message lists the known names.
    """
    table = SOCKETS[socket]
    if name not in table:
        raise UsageError(f"unknown {socket} '{name}'; known: {', '.join(table)}")
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def check_arguments(socket: str, name: str, given: Mapping[str, Any], reserved: Collection[str] = ()) -> dict[str, Any]:
    """Return the arguments that a user gives a plug, without those that equal the plug's defaults.

    So "recursions=2" and nothing at all are the same request. `reserved` names the arguments that avfuse sets itself.

    Raises
    ------
    UsageError
        If the plug has no such argument, or the value is of another type than its default.
    """
    parameters = inspect.signature(load(socket, name)).parameters
    defaults = {key: value.default for key, value in parameters.items() if key not in reserved}
    for key, value in given.items():
        if key not in defaults:
            known = ", ".join(f"{known}={default}" for known, default in defaults.items()) or "none"
            raise UsageError(f"{socket} '{name}' has no argument '{key}'; it takes: {known}")
        kind = type(defaults[key])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UsageError(f"{socket} '{name}': {key}={value} is not a {kind.__name__} such as {defaults[key]}")
    return {key: value for key, value in given.items() if value != defaults[key]}
