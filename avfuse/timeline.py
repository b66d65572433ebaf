"""The clock of one recording: when its frames are shown, and where its clips lie.

A `Timeline` holds the presentation time of every frame, and a regular grid of slots on which clips are cut. With a
constant frame rate slot i is frame i. With a variable one the slots are laid in seconds at the mean frame rate, and a
slot shows the last frame presented by then. `ClipGrid` cuts the slots into clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avfuse.schema import RecordingError

SAMPLE_RATE_HZ = 44_100
CLIP_FRAMES = 8
CLIP_DILATION = 4
CLIP_SPAN = CLIP_FRAMES * CLIP_DILATION
MAX_SOUND_S = 30.0
SOUND_INTERVALS = CLIP_SPAN - 1  # frame intervals of sound under a clip: from its first slot to its last


@dataclass(frozen=True)
class Timeline:
    """When the frames of a recording are shown.

    Attributes
    ----------
    frame_time_s : ndarray, (F,), float64
        Presentation time of each frame in seconds, increasing.
    frame_pts : ndarray, (F,), int64
        The same in the stream's own time base, by which decoded frames are recognised.
    fps : float
        Slots per second: the constant frame rate, or the mean of a variable one.
    variable : bool
        Whether the frame rate varies, so that slots and frames differ.
    zero_s : float
        When a player starts to show the file, the start of its first stream, in seconds: what ratings count from.
    num_unplaced : int
        Frames that are left out, because another has their time stamp or they carry none.
    num_stand_ins : int
        Packets for which no frame may come, as they say no more than that the picture before goes on.
    is_ordered : bool
        Whether decoded frames are recognised by their decoding times instead, as the others are guesses.
    sound_lag_s : float
        How far, in the order of the file, picture and sound lie apart at most, in seconds: what who reads the file
        once has to hold of one, or would have to wait for of the other.
    """

    frame_time_s: npt.NDArray[np.float64]
    frame_pts: npt.NDArray[np.int64]
    fps: float
    variable: bool
    zero_s: float = 0.0
    num_unplaced: int = 0
    num_stand_ins: int = 0
    is_ordered: bool = False
    sound_lag_s: float = 0.0

    @classmethod
    def from_pts(cls, frame_pts: npt.NDArray[np.int64], time_base_s: float) -> Timeline:
        """Lay the timeline of frames with the given presentation time stamps."""
        num_stamps = len(frame_pts)
        frame_pts = np.unique(frame_pts)
        time_s = frame_pts.astype(np.float64) * time_base_s
        num_frames = len(time_s)
        if num_frames < 2:
            return cls(time_s, frame_pts, fps=25.0, variable=False, num_unplaced=num_stamps - num_frames)
        # The demuxer guesses the first and the last stamp of an AVI with B-frames, up to an interval early or late: the
        # frames between them tell whether the rate is constant, and the two ends only have to be near.
        ends = 1 if num_frames > 3 else 0
        inner_s = time_s[ends : num_frames - ends]
        interval_s = float(inner_s[-1] - inner_s[0]) / (len(inner_s) - 1)
        drift_s = np.abs(time_s - inner_s[0] - (np.arange(num_frames) - ends) * interval_s)
        inner_drift_s = drift_s[ends : num_frames - ends]
        # Time stamps rounded to milliseconds, as Matroska's are, stay well within half an interval of the grid.
        variable = bool(inner_drift_s.max() >= 0.5 * interval_s or drift_s.max() >= 1.25 * interval_s)
        if variable:
            interval_s = float(time_s[-1] - time_s[0]) / (num_frames - 1)
        return cls(time_s, frame_pts, 1.0 / interval_s, variable, num_unplaced=num_stamps - num_frames)

    @property
    def rated_time_s(self) -> npt.NDArray[np.float64]:
        """Time of each frame since the start that a player shows, (F,): the clock of ratings with times."""
        return self.frame_time_s - self.zero_s

    @property
    def num_frames(self) -> int:
        """Number of frames (F)."""
        return len(self.frame_time_s)

    @property
    def num_slots(self) -> int:
        """Number of slots, which for a constant frame rate is the number of frames."""
        if not self.variable:
            return self.num_frames
        return int((self.frame_time_s[-1] - self.frame_time_s[0]) * self.fps + 1e-6) + 1

    def slot_time_s(self, slot: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the time of slots in seconds; slots before the first lie before the recording."""
        if not self.variable:
            inside = np.clip(slot, 0, self.num_frames - 1)
            return np.asarray(self.frame_time_s[inside] + (slot - inside) / self.fps)
        return np.asarray(self.frame_time_s[0] + slot / self.fps)

    def slot_frame(self, slot: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the index of the frame that each slot shows; before the start it is the first frame."""
        if not self.variable:
            return np.clip(slot, 0, self.num_frames - 1)
        time_s = self.slot_time_s(slot) + 1e-3  # time stamps may be rounded to milliseconds
        return np.clip(np.searchsorted(self.frame_time_s, time_s, side="right") - 1, 0, None)


@dataclass(frozen=True)
class ClipGrid:
    """Where the clips of a recording lie.

    A clip is 8 frames with dilation 4 out of the last 32 slots: it ends at slot e and holds e - 28, e - 24, ..., e.
    Clips end at the slots hop - 1, 2 hop - 1, ... (a recording shorter than a hop has one clip, which ends at its last
    slot). Where a clip reaches back before the recording, the first frame stands for the missing ones and the sound is
    silence there, so that the first seconds are predicted too.

    Attributes
    ----------
    end_frame_N : ndarray, (N,), int64
        Index of the last frame of each clip.
    end_time_s : ndarray, (N,), float64
        Time of its last slot in seconds; the clip's sound ends there.
    frame_NK : ndarray, (N, 8), int64
        Indices of its frames.
    num_samples : int
        Sound samples under a clip: 31 frame intervals.
    """

    end_frame_N: npt.NDArray[np.int64]
    end_time_s: npt.NDArray[np.float64]
    frame_NK: npt.NDArray[np.int64]
    num_samples: int

    @classmethod
    def lay(cls, timeline: Timeline, hop: int) -> ClipGrid:
        """Lay the clips of a recording, `hop` slots apart.

        Raises
        ------
        RecordingError
            With reason ``too_short``, when there are fewer frames than a clip has; ``too_slow``, when the sound under
            a clip would last longer than 30 s.
        """
        if timeline.num_frames < CLIP_FRAMES:
            found = f"{timeline.num_frames} frames are fewer than the {CLIP_FRAMES} of a clip"
            raise RecordingError("too_short", found)
        if SOUND_INTERVALS / timeline.fps > MAX_SOUND_S:
            raise RecordingError("too_slow", f"{timeline.fps:.3g} frames per second are too few for clips of 32 frames")
        end_slot_N = np.arange(hop - 1, timeline.num_slots, hop)
        if len(end_slot_N) == 0:
            end_slot_N = np.array([timeline.num_slots - 1])
        back_K = CLIP_DILATION * np.arange(CLIP_FRAMES - 1, -1, -1)
        slot_NK = np.maximum(end_slot_N[:, None] - back_K, 0)
        return cls(
            end_frame_N=timeline.slot_frame(end_slot_N),
            end_time_s=timeline.slot_time_s(end_slot_N),
            frame_NK=timeline.slot_frame(slot_NK),
            num_samples=round(SOUND_INTERVALS / timeline.fps * SAMPLE_RATE_HZ),
        )

    @property
    def num_clips(self) -> int:
        """Number of clips (N)."""
        return len(self.end_frame_N)
