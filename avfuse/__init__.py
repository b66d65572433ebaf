"""avfuse: continuous emotion from video, in two stages that meet on disk.

Stage 1 (``avfuse extract``) turns videos into a feature cache once; stage 2 (``avfuse fuse-train``) trains light
audio-visual fusion heads from that cache; ``avfuse report`` tabulates the concordance of the runs. The stages are
functions of their options: `avfuse.extract.extract`, `avfuse.train.train`, `avfuse.report.report`; so are
`avfuse.audit.audit`, which looks for what is wrong with a corpus, and `avfuse.predict.predict`.

The public names below load on first use, so that importing avfuse stays cheap: it imports neither torch nor zarr.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Idle OpenMP threads must sleep: spinning ones slow small convolutions down tenfold on shared cores. In GNU's runtime,
# which reads this as a count, they spin for some microseconds first: waking them for every small product of a head
# would take a tenth of its training step. The runtime reads both once, when torch is first imported, so they are set
# here, and the user's own choice is never overridden.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"

_PUBLIC = {
    "Annotation": "avfuse.schema",
    "AuditOptions": "avfuse.options",
    "CacheSpec": "avfuse.spec",
    "DemoOptions": "avfuse.options",
    "ExtractOptions": "avfuse.options",
    "FeatureCache": "avfuse.cache",
    "PredictOptions": "avfuse.options",
    "Recording": "avfuse.schema",
    "ReportOptions": "avfuse.options",
    "TrainOptions": "avfuse.options",
    "UsageError": "avfuse.schema",
    "ccc": "avfuse.metrics.ccc",
    "load_head": "avfuse.checkpoint",
    "predict_recording": "avfuse.overlapping",
}

__all__ = [
    "Annotation",
    "AuditOptions",
    "CacheSpec",
    "DemoOptions",
    "ExtractOptions",
    "FeatureCache",
    "PredictOptions",
    "Recording",
    "ReportOptions",
    "TrainOptions",
    "UsageError",
    "__version__",
    "ccc",
    "load_head",
    "predict_recording",
]

if TYPE_CHECKING:
    from avfuse.cache import FeatureCache
    from avfuse.checkpoint import load_head
    from avfuse.metrics.ccc import ccc
    from avfuse.options import (
        AuditOptions,
        DemoOptions,
        ExtractOptions,
        PredictOptions,
        ReportOptions,
        TrainOptions,
    )
    from avfuse.overlapping import predict_recording
    from avfuse.schema import Annotation, Recording, UsageError
    from avfuse.spec import CacheSpec


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'avfuse' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
