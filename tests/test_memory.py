"""A training whose cache is four times as large as the memory that it may take."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy import toy_spec

from avfuse.cache import FeatureCache
from avfuse.spec import Source
from avfuse.writer import RecordingWriter

MEMORY = 96 * 2**20  # bytes that the training may take beyond what the interpreter and its libraries hold
MAPS, AUDIO = (128, 7, 7), 8
NUM_CLIPS, NUM_RECORDINGS = 4096, 8

TRAINING = """
import json, re, resource, sys, threading
threading.stack_size(2**18)  # of which much more is reserved by default than used
import avfuse
import torch
from pathlib import Path
from avfuse import train
from avfuse.options import TrainOptions
torch.set_num_threads(1)
place, memory, resident = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
status = lambda name: 1024 * int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
torch.nn.Linear(2, 2)(torch.zeros(1, 2)).sum().backward()  # what the libraries allocate once
held = status("VmData")
resource.setrlimit(resource.RLIMIT_DATA, (held + memory, held + memory))
after = []
def tell(progress):
    if progress.metrics:
        after.append(status("RssAnon"))
options = TrainOptions(cache=place, head="visual_only", epochs=3, patience=9, batch_size=16, num_clips=8,
                       head_option=("unimodal_blstm=false",), device="cpu", resident=resident,
                       out=place / resident)
train.train(options, tell)
print(json.dumps(after))
"""


@pytest.fixture(scope="module")
def large_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a cache whose maps are more than four times as large as `MEMORY`."""
    home = tmp_path_factory.mktemp("large")
    store = FeatureCache.create(home, toy_spec(video_shape=MAPS, audio_shape=(AUDIO,), targets=("valence",)), {})
    rng = np.random.default_rng(0)
    block = rng.standard_normal((256, *MAPS), dtype=np.float32)
    for number in range(NUM_RECORDINGS):
        source = Source("validation" if number == 0 else "train", f"{number}", "", f"{number}", None)
        target = rng.uniform(-1, 1, (NUM_CLIPS, 1)).astype(np.float32)
        with RecordingWriter(store, f"{number}", source) as writer:
            writer.begin(NUM_CLIPS)
            for start in range(0, NUM_CLIPS, len(block)):
                writer.append(np.roll(block, number + start, axis=0), np.zeros((len(block), AUDIO), np.float32))
            ends = np.arange(NUM_CLIPS)
            writer.commit(
                {
                    "target": target,
                    "face_share": np.ones(NUM_CLIPS, np.float32),
                    "end_frame": ends,
                    "end_time_s": ends / 25,
                    "frame_time_s": ends / 25,
                    "frame_target": target,
                    "frame_face": np.ones(NUM_CLIPS, bool),
                    "frame_face_probability": np.ones(NUM_CLIPS, np.float32),
                },
                fps=25.0,
            )
    assert sum(item.video.num_bytes for item in store.recordings()) > 4 * MEMORY
    return home


def run(cache: Path, resident: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", TRAINING, str(cache), str(MEMORY), resident]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit and the figures are Linux's")
def test_a_cache_four_times_the_memory_is_trained_from_without_growing(large_cache: Path) -> None:
    done = run(large_cache, "no")
    assert done.returncode == 0, done.stderr
    first, *later = json.loads(done.stdout)
    assert len(later) == 2
    assert max(later) - first < 16 * 2**20  # bytes: threads leave a few; an epoch reads twenty times as much
    held = run(large_cache, "ram")  # the limit is one
    assert held.returncode != 0
    assert "MemoryError" in held.stderr or "can't allocate memory" in held.stderr
