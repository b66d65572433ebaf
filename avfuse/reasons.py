"""What an error means that ended a recording: a typed reason, or that the machine failed and no other could be kept.

Errors are looked through to what they came from, so that whoever turns one into another need not care.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator

import av.error

from avfuse.batching import is_out_of_memory
from avfuse.options import ExtractOptions
from avfuse.schema import Failure, PassingError, Recording, RecordingError, UsageError

log = logging.getLogger(__name__)

LACKING = {"no_audio_stream": "audio", "no_video_stream": "video"}
"""The modality that a recording has to do without, by the reason that says so."""
_OF_THIS_MACHINE = (errno.EMFILE, errno.ENFILE)  # no file can be opened any more
_NO_THREAD = "can't start new thread"
_OF_A_NETWORK = (
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENODEV, errno.ENXIO, errno.ECONNRESET, errno.ENOTCONN),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
)


def describe_failure(recording: Recording, error: Exception) -> Failure | None:
    """Turn what a recording ended with into a typed reason, None where the recording is not to blame.

    An unknown error keeps its type and its message.
    """
    name = recording.name
    if _fault_of_machine(error) is not None:
        return None
    if isinstance(error, RecordingError):
        return Failure(name, error.reason, str(error), error.share)
    if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return Failure(name, "out_of_memory", str(error) or "the machine ran out of memory")
    if isinstance(error, av.error.FFmpegError):
        return Failure(name, "unreadable", f"{recording.path}: {error}")
    if isinstance(error, (OSError, UsageError)):
        return None
    log.error("%s: unexpected %s", name, type(error).__name__, exc_info=error)
    return Failure(name, "unexpected", f"{type(error).__name__}: {error}")


def describe_error(error: Exception) -> tuple[int, str, str]:
    """Return number, message and place of an error that is not a recording's fault; 0 for what the user gave."""
    error = _fault_of_machine(error) or error
    if isinstance(error, OSError):
        return error.errno or errno.EIO, error.strerror or str(error), str(error.filename or "")
    return 0, str(error), ""


def may_pass(error: Exception) -> bool:
    """Whether another try may succeed with these very files, as when a server did not answer for a while.

    That a disk cannot be read is believed of the system, not of FFmpeg, which says so of damage, too: there the file is
    read once more (`avfuse.survey.certainly`).
    """
    return any(
        isinstance(cause, PassingError)
        or _errno(cause) in _OF_A_NETWORK
        or (_errno(cause) == errno.EIO and not isinstance(cause, av.error.FFmpegError))
        for cause in _causes(error)
    )


def is_overruled(failure: Failure, options: ExtractOptions) -> bool:
    """Whether the options now allow what a recording was set aside for."""
    if failure.reason in LACKING:
        return options.allow_missing
    if failure.share is None:
        return False
    allowed = {
        "corrupt_packets": failure.share <= options.max_corrupt,
        "no_face": failure.share >= options.min_face_share,
    }
    return allowed.get(failure.reason, False)


def _fault_of_machine(error: Exception) -> OSError | None:
    """Return what the machine failed in, where that lies behind an error, None where it does not."""
    for cause in _causes(error):
        if (number := _errno(cause)) in _OF_THIS_MACHINE:
            return OSError(number, f"{os.strerror(number)}; allow more with ulimit -n, or take fewer --num-workers")
        if isinstance(cause, RuntimeError) and _NO_THREAD in str(cause):
            return OSError(errno.EAGAIN, "no thread can be started; allow more processes, or take fewer --num-workers")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__


def _errno(error: BaseException) -> int:
    number: int | None = error.errno if isinstance(error, (OSError, av.error.FFmpegError)) else 0
    return number or 0
