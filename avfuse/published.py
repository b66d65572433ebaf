"""Published fusion weights: a checkpoint of the authors to a run like one trained here.

Known are the checkpoints of recursive joint attention and of joint cross attention (its journal version), with any
number of attention blocks and with or without the gate of the authors' Dynamic Cross-Attention. A file holds a state
dictionary, bare or under ``net``; what it is follows from the names in it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avfuse import checkpoint, registry, runs
from avfuse.atomic import sweep
from avfuse.cache import FeatureCache
from avfuse.dataset import WindowedPartition, find_residence
from avfuse.device import choose_device
from avfuse.fusion import FusionHead
from avfuse.knobs import format_assignments
from avfuse.options import ImportOptions, cache_home, local_home
from avfuse.passes import predict_clips
from avfuse.schema import Predictions, UsageError
from avfuse.weights import check_state, file_digest, read_state

TARGETS = ("valence", "arousal")
AUDIO_SHAPE, VIDEO_SHAPE = (512,), (512, 7, 7)
SPACING = 32  # frames between the clips of a window in the published code
DEFAULT_NUM_CLIPS, MAX_NUM_CLIPS, MAX_BLOCKS = 16, 4096, 64
_BLOCK = re.compile(r"coattn\.dcn_layers\.(\d+)\.")
# The head's parameter names, and what the published code calls them.
_NAMES = (
    (r"^(audio|video)_blstm\.", r"\1_extract."),
    (r"^joint_blstm\.", "Joint."),
    (r"^(audio_extract|video_extract|Joint)\.layers\.(\d)\.(weight|bias)_(ih|hh)_l0", r"\1.rnn.\3_\4_l\2"),
    (r"^(audio_extract|video_extract|Joint)\.output_layer\.", r"\1.linear."),
    (r"\.initial_state$", ".init_hidden"),
    (r"^guided_video\.pooling\.audio_layer\.", "video_attn.attn.affine_audio."),
    (r"^guided_video\.pooling\.cell_layer\.", "video_attn.attn.affine_video."),
    (r"^guided_video\.pooling\.cell_score\.", "video_attn.attn.affine_v."),
    (r"^guided_video\.pooling\.audio_score\.", "video_attn.attn.affine_g."),
    (r"^guided_video\.pooling\.score\.", "video_attn.attn.affine_h."),
    (r"^guided_video\.pooling\.output_layer\.", "video_attn.attn.affine_feat."),
    (r"^attend\.", "recursions.0."),
    (r"^recursions\.(\d+)\.query\.", r"coattn.dcn_layers.\1.dense_coattn.query_linear."),
    (r"^recursions\.(\d+)\.video_(key|value)\.", r"coattn.dcn_layers.\1.dense_coattn.\g<2>1_linear."),
    (r"^recursions\.(\d+)\.audio_(key|value)\.", r"coattn.dcn_layers.\1.dense_coattn.\g<2>2_linear."),
    (r"^recursions\.(\d+)\.video_output\.", r"coattn.dcn_layers.\1.linears.0.0."),
    (r"^recursions\.(\d+)\.audio_output\.", r"coattn.dcn_layers.\1.linears.1.0."),
    (r"^gates\.(audio|video)\.choice\.", r"\1_gating_fc_layer."),
    (r"^regressor\.branches\.0\.", "vregressor."),
    (r"^regressor\.branches\.1\.", "aregressor."),
)


@dataclass(frozen=True)
class ImportSummary:
    """What was imported: the run, its head with options, and the validation CCC by target where a cache was given."""

    run: str
    head: str
    head_options: str
    targets: tuple[str, ...]
    num_parameters: int
    file_sha256: str
    ccc: dict[str, float]


def import_checkpoint(
    options: ImportOptions, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> ImportSummary:
    """Write a run from a published checkpoint; with a cache, predict and score its validation partition.

    Raises
    ------
    UsageError
        If the file is missing, holds anything but tensors, or does not fit (the first parameter that is missing, of
        another shape or unexpected is named); if the cache does not suit the head; if `out` holds another run.
    """
    if not options.file.is_file():
        what = "is a folder" if options.file.is_dir() else "does not exist"
        raise UsageError(f"{options.file} {what}; give a checkpoint file")
    device = choose_device(options.device)
    name, arguments, head = load_published(options.file)
    digest = file_digest(options.file)
    head_options = {key: value for key, value in arguments.items() if key != "num_clips"}
    record = runs.RunRecord(
        head=name,
        head_options=registry.check_arguments("head", name, head_options),
        targets=TARGETS,
        seed=0,
        options={"weights": f"{options.file.name}#sha256={digest}", "num_clips": head.num_clips, "spacing": SPACING},
        fingerprint="",
        dataset="",
        revision=runs.code_revision(),
        versions={package: version(package) for package in ("avfuse", "torch", "numpy")},
    )
    run = options.out or local_home() / "runs" / "imported" / f"{options.file.stem}-{digest[:8]}" / "seed-0"
    _refuse_another(run, record)
    predictions: list[Predictions] = []
    if options.cache is not None:
        cache = FeatureCache.find(cache_home(options.cache))
        predictions = _predict(head.to(device), cache, options, on_progress)
        record = dataclasses.replace(
            record,
            fingerprint=cache.spec.fingerprint,
            dataset=cache.spec.dataset,
            features=cache.digest(("train", "validation")),
            ranges=cache.spec.ranges,
            hop=int(cache.spec.clip["hop"]),
            settings=cache.spec.to_json(),
        )
    return _write(run, record, head, {**arguments, "targets": list(TARGETS)}, predictions, digest)


def load_published(path: Path) -> tuple[str, dict[str, Any], FusionHead]:
    """Return the name of the head that a checkpoint holds, its arguments but the targets, and the head itself.

    Raises
    ------
    UsageError
        If the file holds anything but tensors, or does not fit.
    """
    state = read_state(path)
    name, arguments = _recognise(state, path)
    with torch.device("meta"):  # the file says how large the head is: compare before anything of that size is made
        own = checkpoint.build_head(name, {**arguments, "targets": TARGETS}).state_dict()
    published = {published_name(key): key for key in own if not key.startswith("inputs.")}
    check_state(state, {key: own[name] for key, name in published.items()}, path)
    head = checkpoint.build_head(name, {**arguments, "targets": TARGETS})
    own = head.state_dict()
    head.load_state_dict({**own, **{published[key]: value for key, value in state.items()}})
    return name, arguments, head.eval()


def published_name(name: str) -> str:
    """Return what the published code calls a parameter of the head."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _recognise(state: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Any]]:
    """Tell from the names in a state dictionary which head it belongs to, and with which arguments."""
    blocks = {match.group(1) for key in state if (match := _BLOCK.match(key))}
    if not blocks:
        raise UsageError(
            f"{path} is no fusion checkpoint that avfuse knows: no parameter begins with 'coattn.dcn_layers.0.'"
        )
    if len(blocks) > MAX_BLOCKS:
        raise UsageError(f"{path} names {len(blocks)} attention blocks; up to {MAX_BLOCKS} are read")
    key = state.get("coattn.dcn_layers.0.dense_coattn.key1_linear.bias")
    num_clips = len(key) if key is not None and key.ndim == 1 and 0 < len(key) <= MAX_NUM_CLIPS else DEFAULT_NUM_CLIPS
    arguments: dict[str, Any] = {"form": "released", "num_clips": num_clips}
    prefixes = {name.partition(".")[0] for name in state}
    has_blstm, has_gate = bool(prefixes & {"audio_extract", "video_extract"}), "audio_gating_fc_layer" in prefixes
    if len(blocks) == 1 and not has_blstm and not has_gate:
        return "joint_cross_attention", arguments
    arguments |= {"recursions": len(blocks), "unimodal_blstm": has_blstm, "gate": has_gate}
    return "recursive_joint_attention", arguments


def _predict(
    head: FusionHead, cache: FeatureCache, options: ImportOptions, on_progress: Callable[[int, int], None]
) -> list[Predictions]:
    if cache.spec.targets != TARGETS:
        raise UsageError(
            f"{cache.path} is rated for {', '.join(cache.spec.targets)}; the head predicts valence, arousal"
        )
    if (cache.spec.audio_shape, cache.spec.video_shape) != (AUDIO_SHAPE, VIDEO_SHAPE):
        raise UsageError(
            f"{cache.path} holds features of shape {cache.spec.audio_shape} and {cache.spec.video_shape}; "
            f"the head takes {AUDIO_SHAPE} and {VIDEO_SHAPE}"
        )
    device, recordings = next(head.parameters()).device, cache.recordings()
    partition = WindowedPartition(
        cache,
        "validation",
        head.num_clips,
        SPACING,
        resident=find_residence(recordings, "auto", device, {"validation": 1}),
        device=device,
        recordings=recordings,
    )
    return partition.predictions(predict_clips(head, partition, "off", options.batch_size, on_progress))


def _refuse_another(run: Path, record: runs.RunRecord) -> None:
    if run.exists() and not run.is_dir():
        raise UsageError(f"{run} is a file; give another --out")
    if (run / runs.RUN_FILE).is_file():
        found = runs.read_run(run)
        if _digest_of(found) != _digest_of(record):
            raise UsageError(f"{run} holds another run; give another --out or remove it")
    elif run.is_dir() and any(run.iterdir()):
        raise UsageError(f"{run} is there and holds no run; give another --out")


def _digest_of(record: runs.RunRecord) -> str:
    """Return the digest of the file that a run was imported from; nothing for a run that was trained."""
    return str(record.options.get("weights", "")).rpartition("=")[2]


def _write(
    run: Path,
    record: runs.RunRecord,
    head: FusionHead,
    arguments: dict[str, Any],
    predictions: list[Predictions],
    digest: str,
) -> ImportSummary:
    """Write the run, its record last, and say what it is."""
    runs.write_run(run, record)  # incomplete, so that an import cut short is known for what it is
    sweep(run)
    (run / runs.PREDICTIONS_FILE).unlink(missing_ok=True)
    checkpoint.save_head(run / runs.HEAD_FILE, record.head, arguments, head)
    ccc: dict[str, float] = {}
    if predictions:
        runs.write_predictions(run, predictions)
        ccc = runs.ccc_by_target(predictions)
    num_parameters = sum(parameter.numel() for parameter in head.parameters())
    summary = {"num_parameters": num_parameters, "ccc": ccc, "mean_ccc": float(np.mean(list(ccc.values()) or np.nan))}
    runs.write_run(run, dataclasses.replace(record, summary=summary, complete=True))
    options = format_assignments(record.head_options)
    return ImportSummary(str(run), record.head, options, record.targets, num_parameters, digest, ccc)
