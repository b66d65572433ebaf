"""The contract of engines, for every one that is registered; and what is particular to each."""

import contextlib
import ctypes
import importlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import crews
import pytest
from crews import ToyJob, ToyWorker, recordings, tries

from avfuse import engines, registry
from avfuse.engines import MAX_RETRIES, Engine
from avfuse.engines._dispatch import MAX_ACCUSED, Crew, Done, Event, Gone, Made, Moved, dispatch, sparse, tell_deaths
from avfuse.engines._process import portable
from avfuse.engines.local import LocalEngine, num_cores
from avfuse.schema import Receipt, Recording, RecordingError, UsageError

HERE = Path(__file__).parent
SOON_S = 30.0
MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    """Start Ray once for all tests; engines use the connection that is there."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    environment = dict(os.environ)
    cluster = importlib.import_module("avfuse.engines._cluster")
    with cluster.connected("", 4):
        yield
    assert not ray.is_initialized()
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]


@pytest.fixture(params=list(registry.ENGINES))
def make_engine(request: pytest.FixtureRequest) -> MakeEngine:
    """Return what makes an engine, one after the other of those that there are."""
    return _maker(request, request.param)


@pytest.fixture(params=[name for name in registry.ENGINES if name != "serial"])
def make_fenced_engine(request: pytest.FixtureRequest) -> MakeEngine:
    """Return what makes an engine whose workers are processes of their own: what kills them does not kill the run."""
    return _maker(request, request.param)


def _maker(request: pytest.FixtureRequest, name: str) -> MakeEngine:
    if name == "ray":
        request.getfixturevalue("_ray")
    make: MakeEngine = registry.load("engine", name)
    return make


def run(engine: Engine, job: ToyJob, *fates: str, num_workers: int = 2) -> dict[str, Receipt]:
    """Run recordings of these fates to the end; return their receipts by name."""
    receipts = list(engine.run(job, recordings(*fates), num_workers, lambda *_: None))
    found = {receipt.recording: receipt for receipt in receipts}
    assert len(found) == len(receipts), "a recording has two receipts"
    return found


def outcome(receipt: Receipt) -> str:
    """Return the reason of a failure, else the outcome."""
    return receipt.failure.reason if receipt.failure else receipt.outcome


def is_alive(pid: int) -> bool:
    """Whether a process is there, and not merely waiting for its parent to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def closed(folder: Path) -> set[int]:
    """Return the processes whose workers were let go in order; those that never had a recording need not be."""
    return {int(path.name.partition("-")[2]) for path in folder.glob("closed-*")}


def await_end(folder: Path) -> None:
    """Wait for the end of all workers that were made."""
    pids = crews.processes(folder)
    assert pids
    end_s = time.monotonic() + SOON_S
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < end_s, f"{left} live on"
        time.sleep(0.01)


def await_file(path: Path) -> None:
    end_s = time.monotonic() + SOON_S
    while not path.exists():
        assert time.monotonic() < end_s, f"{path.name} does not come"
        time.sleep(0.01)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_every_recording_has_one_receipt(make_engine: MakeEngine, tmp_path: Path, num_workers: int) -> None:
    found = run(make_engine(), ToyJob(tmp_path), *["good"] * 7, num_workers=num_workers)
    assert {name: receipt.outcome for name, receipt in found.items()} == {f"0{i}-good": "extracted" for i in range(7)}
    assert all(len(tries(tmp_path, name)) == 1 for name in found)
    assert {pid for name in found for pid, _ in tries(tmp_path, name)} <= closed(tmp_path)


def test_nothing_to_do_makes_no_worker(make_engine: MakeEngine, tmp_path: Path) -> None:
    assert run(make_engine(), ToyJob(tmp_path)) == {}
    assert not crews.processes(tmp_path)


def test_no_more_workers_than_recordings(make_engine: MakeEngine, tmp_path: Path) -> None:
    run(make_engine(), ToyJob(tmp_path), "good", num_workers=3)
    assert len(crews.processes(tmp_path)) == 1


def test_progress_is_told_to_whoever_iterates(make_engine: MakeEngine, tmp_path: Path) -> None:
    told = []

    def tell(name: str, num_done: int, total: int) -> None:
        told.append((threading.current_thread(), name, num_done, total))

    list(make_engine().run(ToyJob(tmp_path), recordings("good", "good"), 2, tell))
    ends = {item for item in told if item[2] == item[3]}
    assert ends == {(threading.current_thread(), name, 2, 2) for name in ("00-good", "01-good")}


def test_what_a_recording_does_is_its_own_affair(
    make_engine: MakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = run(make_engine(), ToyJob(tmp_path), "good", "fail", "raise", "eat", "log", "good")
    assert {name: outcome(receipt) for name, receipt in found.items()} == {
        "00-good": "extracted",
        "01-fail": "no_face",
        "02-raise": "unexpected",
        "03-eat": "out_of_memory",
        "04-log": "extracted",
        "05-good": "extracted",
    }
    assert found["01-fail"].is_recorded
    assert not found["02-raise"].is_recorded
    assert found["02-raise"].failure is not None
    assert found["02-raise"].failure.message == "KeyError: 'no such thing'"
    logged = {(record.name, record.levelno, record.getMessage()) for record in caplog.records}
    assert ("crews", logging.WARNING, "04-log looks odd") in logged
    assert any(level == logging.ERROR and message.startswith("02-raise: unexpected") for _, level, message in logged)


def test_a_worker_that_dies_costs_what_killed_it_alone(make_fenced_engine: MakeEngine, tmp_path: Path) -> None:
    bad = ("segfault", "exit", "kill", "once", "leave")
    fates = [fate for fate in bad for fate in ("good", fate, "good")]
    found = run(make_fenced_engine(), ToyJob(tmp_path), *fates)
    ends = {name.partition("-")[2]: outcome(receipt) for name, receipt in found.items()}
    assert len(found) == len(fates)
    assert ends == {
        "good": "extracted",
        "segfault": "worker_died",
        "exit": "worker_died",
        "kill": "worker_died",
        "once": "extracted",
        "leave": "unexpected",
    }
    for name, receipt in found.items():
        pids = [pid for pid, _ in tries(tmp_path, name)]
        assert len(pids) == {"worker_died": 1 + MAX_RETRIES}.get(outcome(receipt), 2 if "once" in name else 1)
        assert len(set(pids)) == len(pids)
        assert receipt.is_recorded == (outcome(receipt) == "extracted")
    await_end(tmp_path)


def test_a_worker_deals_with_recordings_side_by_side(make_fenced_engine: MakeEngine, tmp_path: Path) -> None:
    found = run(make_fenced_engine(), ToyJob(tmp_path, num_side_by_side=2), "meet", "meet", "good", num_workers=1)
    assert {receipt.outcome for receipt in found.values()} == {"extracted"}
    assert len(crews.processes(tmp_path)) == 1
    assert max(count for name in found for _, count in tries(tmp_path, name)) == 2


def test_of_two_that_were_there_the_innocent_succeeds(make_fenced_engine: MakeEngine, tmp_path: Path) -> None:
    job = ToyJob(tmp_path, num_side_by_side=2)
    found = run(make_fenced_engine(), job, "together", "neighbour", *["good"] * 6, num_workers=1)
    assert {name.partition("-")[2]: outcome(receipt) for name, receipt in found.items()} == {
        "together": "worker_died",
        "neighbour": "extracted",
        "good": "extracted",
    }
    again = [*tries(tmp_path, "00-together")[1:], *tries(tmp_path, "01-neighbour")[1:]]
    assert len(again) == MAX_RETRIES + 1
    assert {count for _, count in again} == {1}


def test_a_stop_ends_the_run(make_engine: MakeEngine, tmp_path: Path) -> None:
    receipts = list(make_engine().run(ToyJob(tmp_path), recordings("good", "stop", *["good"] * 20), 1, lambda *_: None))
    assert [receipt.outcome for receipt in receipts] == ["extracted", "stopped"]
    assert receipts[1].error == (28, "No space left on device", "/there")
    assert not tries(tmp_path, "02-good")
    assert len(list(tmp_path.glob("closed-*"))) == 1


def test_what_is_under_way_at_a_stop_is_left_to_end(make_fenced_engine: MakeEngine, tmp_path: Path) -> None:
    job = ToyJob(tmp_path, num_side_by_side=2)
    found = make_fenced_engine().run(job, recordings("stoptogether", "outlast", "good"), 1, lambda *_: None)
    assert [(receipt.recording, receipt.outcome) for receipt in found] == [
        ("01-outlast", "extracted"),
        ("00-stoptogether", "stopped"),
    ]
    assert not tries(tmp_path, "02-good")


def test_closing_early_leaves_no_process(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    running = engine.run(ToyJob(tmp_path), recordings("good", "slow", "slow"), 2, lambda *_: None)
    assert next(running).recording == "00-good"
    if registry.ENGINES["serial"].endswith(type(engine).__name__):
        running.close()
        assert not tries(tmp_path, "01-slow")
        return
    await_file(tmp_path / "under-way")
    running.close()
    await_end(tmp_path)
    assert list(running) == []
    assert (tmp_path / "let-go").exists() or not isinstance(engine, LocalEngine)


def test_a_job_that_cannot_be_made_ends_the_run(make_engine: MakeEngine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^these weights are none$"):
        run(make_engine(), ToyJob(tmp_path, trouble="usage"), "good", "good", "good")
    with pytest.raises(MemoryError, match=r"^no room for the weights$"):
        run(make_engine(), ToyJob(tmp_path, trouble="memory"), "good", "good", "good")
    assert not list(tmp_path.glob("*.try-*"))


def test_workers_that_die_before_they_are_made_are_not_replaced_for_ever(
    make_fenced_engine: MakeEngine, tmp_path: Path
) -> None:
    with pytest.raises(ChildProcessError, match=r"no worker could be made to extract with: the last one .*(7|died)"):
        run(make_fenced_engine(), ToyJob(tmp_path, trouble="death"), "good", num_workers=1)
    assert len(crews.processes(tmp_path)) == 1 + MAX_RETRIES


def test_one_worker_that_cannot_be_made_does_not_hold_up_the_others(
    make_fenced_engine: MakeEngine, tmp_path: Path
) -> None:
    found = run(make_fenced_engine(), ToyJob(tmp_path, trouble="second"), *["good"] * 5)
    assert [receipt.outcome for receipt in found.values()] == ["extracted"] * 5


def test_a_worker_that_gives_no_sign_of_life_is_killed(
    make_fenced_engine: MakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = run(make_fenced_engine(stall_s=4.0), ToyJob(tmp_path), "hangonce", "good", num_workers=2)
    assert [receipt.outcome for receipt in found.values()] == ["extracted", "extracted"]
    assert len(tries(tmp_path, "00-hangonce")) == 2
    assert "gave no sign of life for 4 s and was killed; it had 00-hangonce" in caplog.text


@contextlib.contextmanager
def driven(engine: str, folder: Path, *fates: str) -> Iterator[subprocess.Popen[str]]:
    """Run an engine in a process and a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys, crews; crews.drive(*sys.argv[1:])", engine, folder, *fates],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_local_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with driven("local", tmp_path, "slow", "slow") as process:
        await_file(tmp_path / "under-way")
        process.kill()
        process.wait(SOON_S)
        await_end(tmp_path)
    assert not (tmp_path / "let-go").exists()


def test_an_interruption_from_the_keyboard_stops_local_processes_in_order(tmp_path: Path) -> None:
    with driven("local", tmp_path, "slow", "slow") as process:
        await_file(tmp_path / "under-way")
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=SOON_S)
        assert process.returncode == -signal.SIGINT
        assert told.count("KeyboardInterrupt") == 1, "workers have nothing to say about it"
        await_end(tmp_path)
    assert (tmp_path / "let-go").exists()


def test_a_ray_that_was_started_for_a_run_is_quiet_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    with driven("ray", tmp_path, "once", "good") as process:
        said, told = process.communicate(timeout=4 * SOON_S)
        assert process.returncode == 0, told
        assert sorted(said.splitlines()) == ["00-once extracted", "01-good extracted"]
        await_end(tmp_path)


def test_questions_are_answered_where_workers_are(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    assert (engine.ask(os.getpid) == os.getpid()) == (not registry.ENGINES["ray"].endswith(type(engine).__name__))
    with pytest.raises(UsageError, match=r"^these weights are none$"):
        engine.ask(partial(ToyJob(tmp_path, trouble="usage"), 0))


@pytest.mark.usefixtures("_ray")
def test_ray_says_when_nobody_can_answer(tmp_path: Path) -> None:
    make = registry.load("engine", "ray")
    with pytest.raises(ChildProcessError, match=r"no worker could be made .*the one that was asked died"):
        make().ask(partial(ToyJob(tmp_path, trouble="death"), 0))
    assert len(crews.processes(tmp_path)) == 1 + MAX_RETRIES
    with pytest.raises(UsageError, match="no worker fits the Ray cluster, whose machines have up to 4 CPUs and 0 GPUs"):
        make(num_gpus=1.0).ask(os.getpid)
    with pytest.raises(UsageError, match=r"had no room for a worker for 0\.1 s: others take all of it"):
        make(num_cpus=4.0).ask(_ask_again)


def _ask_again() -> int:
    """Ask for as much as there is, from a place that takes all of it."""
    page = importlib.import_module("avfuse.engines.ray")
    page.ROOM_S = page.MAKING_S = 0.1  # in that process
    answer: int = page.RayEngine(num_cpus=4.0, stall_s=0.1).ask(os.getpid)
    return answer


@pytest.mark.usefixtures("_ray")
def test_a_worker_fits_on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = importlib.import_module("avfuse.engines._cluster")
    machines = [({"CPU": 3.0, "GPU": 1.0}, True), ({"CPU": 8.0}, True), ({"CPU": 64.0, "GPU": 8.0}, False)]
    nodes = [{"Resources": has, "Alive": is_alive} for has, is_alive in machines]
    monkeypatch.setattr(cluster.ray, "nodes", lambda: nodes)
    assert cluster.room_for({"CPU": 2.0, "GPU": 0.0}) == 1 + 4
    assert cluster.room_for({"CPU": 1.0, "GPU": 0.25}) == 3
    with pytest.raises(UsageError, match=r"up to 8 CPUs and 1 GPUs; give less .*: num_cpus=4, num_gpus=1"):
        cluster.room_for({"CPU": 4.0, "GPU": 1.0})


@pytest.mark.parametrize("address", ["", "head:6379"])
def test_a_signal_waits_for_a_ray_that_is_being_started(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Half of one could not be ended; a cluster that is joined is left at once."""
    pytest.importorskip("ray", reason="ray is not installed")
    cluster = importlib.import_module("avfuse.engines._cluster")
    happened: list[str] = []

    def init(**_: object) -> None:
        cluster.ray._private.utils.set_sigterm_handler(lambda *_: happened.append("taken by Ray"))
        signal.raise_signal(signal.SIGTERM)
        happened.append("started")

    def shutdown() -> None:
        ctypes.CDLL(None).signal(signal.SIGTERM, 0)  # as Ray does, which Python does not see
        happened.append("ended")

    def leave(*_: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster.ray, "shutdown", shutdown)
    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit, match="143"), cluster.connected(address, 1):
            happened.append("used")
        assert signal.getsignal(signal.SIGTERM) is leave
        (caught,) = re.findall(r"^SigCgt:\t(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
        assert int(caught, 16) >> (signal.SIGTERM - 1) & 1, "SIGTERM would end the process"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert happened == (["ended"] if address else ["started", "ended"])


@pytest.mark.usefixtures("_ray")
def test_ray_says_when_no_worker_fits(tmp_path: Path) -> None:
    engine = registry.load("engine", "ray")(num_cpus=1000.0)
    with pytest.raises(
        UsageError, match=r"no worker fits .* give less with --engine-option: num_cpus=1000, num_gpus=0"
    ):
        run(engine, ToyJob(tmp_path), "good")


def test_without_ray_the_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "_cluster"):
        monkeypatch.delitem(sys.modules, f"avfuse.engines.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'avfuse\[ray\]'"):
        registry.load("engine", "ray")


@pytest.mark.parametrize("name", ["local", "ray"])
def test_arguments_that_cannot_be_used_are_refused(name: str) -> None:
    if name == "ray":
        pytest.importorskip("ray", reason="ray is not installed")
    with pytest.raises(UsageError, match=f"engine '{name}': stall_s=-1; give"):
        registry.load("engine", name)(stall_s=-1.0)
    if name == "ray":
        with pytest.raises(UsageError, match="a worker takes something of its machine"):
            registry.load("engine", name)(num_cpus=0.0)


def test_a_cluster_that_is_joined_is_elsewhere() -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    make = registry.load("engine", "ray")
    assert (make().is_here, make(address="auto").is_here) == (True, False)


def test_as_many_workers_as_cores() -> None:
    assert num_cores() == len(os.sched_getaffinity(0))


class PaperCrew(Crew):
    """Workers on paper: each is made at once and takes what it is given; the test says what happens then."""

    def __init__(self, num_side_by_side: int) -> None:
        self.given: list[tuple[int, str]] = []
        self.events: deque[tuple[int, Event]] = deque()
        self.lost: set[int] = set()  # and nobody knows it yet
        self._num_side_by_side = num_side_by_side

    def start(self, rank: int) -> None:
        self.events.append((rank, Made(self._num_side_by_side)))

    def give(self, rank: int, recording: Recording) -> bool:
        if rank in self.lost:
            return False
        self.given.append((rank, recording.name))
        self.events.append((rank, Done(Receipt(recording.name, "extracted"))))
        return True

    def wait(self, timeout_s: float | None) -> Iterator[tuple[int, Event]]:
        events, self.events = self.events, deque()
        yield from events
        while not self.events and self.lost:
            yield self.lost.pop(), Gone("was lost")

    def kill(self, rank: int) -> None:
        raise AssertionError

    def close(self, *, in_order: bool) -> None:
        pass


def test_the_last_recordings_are_shared_fairly() -> None:
    crew = PaperCrew(num_side_by_side=4)
    list(dispatch(crew, recordings(*["good"] * 4), 2, lambda *_: None, 0.0))
    assert sorted(rank for rank, _ in crew.given) == [0, 0, 1, 1]


def test_what_could_not_be_handed_over_is_no_suspect(caplog: pytest.LogCaptureFixture) -> None:
    crew = PaperCrew(num_side_by_side=1)
    crew.lost.add(0)
    found = list(dispatch(crew, recordings("good", "good"), 1, lambda *_: None, 0.0))
    assert [receipt.outcome for receipt in found] == ["extracted", "extracted"]
    assert "worker 0 was lost" in caplog.text
    assert "it had" not in caplog.text


def test_progress_is_thinned_out_but_its_end_is_told() -> None:
    told: list[tuple[int, int]] = []
    tell = sparse(lambda *given: told.append(given))
    for step in range(1, 2001):
        tell(step, 2000)
    assert told[0] == (1, 2000)
    assert told[-1] == (2000, 2000)
    assert len(told) < 1000


def test_deaths_are_told_in_a_sentence() -> None:
    same = tell_deaths(["was ended by signal 11 (SIGSEGV)"] * 3)
    assert same.startswith("the process that worked at it was ended by signal 11 (SIGSEGV), 3 times; the last 2 had")
    assert "one ended with exit code 3, one was lost" in tell_deaths(["ended with exit code 3", "was lost"])


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (UsageError("not these"), True),
        (OSError(28, "No space left on device", "/there"), True),
        (RecordingError("no_face", "nobody"), False),
    ],
)
def test_errors_that_cannot_travel_are_put_into_words(error: Exception, kept: bool) -> None:
    found: Any = portable(error)
    assert found is error if kept else str(found) == "RecordingError: nobody"


def test_toy_workers_are_workers() -> None:
    assert not ToyWorker.__abstractmethods__


@pytest.mark.parametrize(("told", "count"), [("max 100000", 8), ("250000 100000", 2), ("1000 100000", 1), ("", 8)])
def test_cores_are_those_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, count: int) -> None:
    """Of its affinity, and of the share of time that its container has."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    (tmp_path / "cpu.max").write_text(told)
    monkeypatch.setattr(engines, "_CPU_SHARE", tmp_path / "cpu.max")
    assert engines.num_cores() == count
    monkeypatch.setattr(engines, "_CPU_SHARE", tmp_path / "none")
    assert engines.num_cores() == 8


class Deaf(Crew):
    """One worker that says nothing behind what it is given; the clock moves when it is waited for, or is told to."""

    def __init__(self, late_s: list[float]) -> None:
        self.now_s, self.late_s, self.killed_s, self.waited_s = 0.0, late_s, list[float](), 0.0
        self._news: deque[Event] = deque()

    def start(self, rank: int) -> None:
        self._news.append(Made(2))

    def give(self, rank: int, recording: Recording) -> bool:
        if "good" in recording.name:
            self._news.append(Done(Receipt(recording.name, "extracted")))
        return True

    def wait(self, timeout_s: float | None) -> Iterator[tuple[int, Event]]:
        if self._news:
            yield 0, self._news.popleft()
            return
        assert timeout_s is not None
        self.waited_s += timeout_s
        self.now_s += timeout_s + (self.late_s.pop(0) if self.late_s else 0.0)

    def kill(self, rank: int) -> None:
        self.killed_s.append(self.waited_s)

    def close(self, *, in_order: bool) -> None:
        pass


@pytest.mark.parametrize("is_suspended", [False, True])
def test_time_in_which_nobody_listens_is_no_workers_silence(
    monkeypatch: pytest.MonkeyPatch, is_suspended: bool
) -> None:
    crew = Deaf([1e6] if is_suspended else [])
    monkeypatch.setattr("avfuse.engines._dispatch.time.monotonic", lambda: crew.now_s)
    receipts = []
    for receipt in dispatch(crew, recordings("good", "mute"), 1, lambda *_: None, stall_s=100.0):
        receipts.append(receipt)
        crew.now_s += 500.0  # spent with the receipt
    assert [receipt.recording for receipt in receipts] == ["00-good", "01-mute"]
    assert crew.killed_s == [100.0, 200.0, 300.0]


class Murderous(PaperCrew):
    """Workers that die of every recording but the good ones."""

    def wait(self, timeout_s: float | None) -> Iterator[tuple[int, Event]]:
        for rank, event in super().wait(timeout_s):
            is_good = not isinstance(event, Done) or "good" in event.receipt.recording
            yield rank, event if is_good else Gone("was ended by signal 4 (SIGILL)")


def test_a_machine_on_which_every_worker_dies_blames_no_recording() -> None:
    crew = Murderous(num_side_by_side=1)
    with pytest.raises(
        ChildProcessError, match=r"5 recordings killed .* none was finished: it may be this machine.*ILL"
    ):
        list(dispatch(crew, recordings(*["kill"] * 9), 1, lambda *_: None, 0.0))
    assert len({name for _, name in crew.given}) == MAX_ACCUSED


def test_recordings_are_to_blame_when_others_are_finished_or_none_is_left() -> None:
    for fates in (["kill"] * 3, ["kill"] * 3 + ["good"] + ["kill"] * 5):
        found = list(dispatch(Murderous(num_side_by_side=1), recordings(*fates), 1, lambda *_: None, 0.0))
        assert sorted(receipt.recording for receipt in found) == [item.name for item in recordings(*fates)]
        assert [item.failure.reason for item in found if item.failure] == ["worker_died"] * fates.count("kill")


def test_no_wait_is_too_long_and_no_number_too_odd() -> None:
    crew = PaperCrew(num_side_by_side=1)
    assert len(list(dispatch(crew, recordings("good"), 1, lambda *_: None, 1e20))) == 1
    with pytest.raises(UsageError, match="stall_s=nan; give seconds"):
        LocalEngine(stall_s=float("nan"))


@pytest.mark.parametrize("num_moved", [0, 1])
def test_killers_end_no_run_in_which_others_are_at_work(num_moved: int) -> None:
    """Five that kill at once, beside one whose clips are coming, or that has not killed anybody yet."""

    class Slow(Murderous):
        def give(self, rank: int, recording: Recording) -> bool:
            if "long" not in recording.name:
                return super().give(rank, recording)
            self.given.append((rank, recording.name))
            self.events.append((rank, Moved(recording.name, num_moved, 9)))
            self.held = rank, Done(Receipt(recording.name, "extracted"))
            return True

        def wait(self, timeout_s: float | None) -> Iterator[tuple[int, Event]]:
            if not self.events:  # the others have died as often as they may
                self.events.append(self.held)
                yield from PaperCrew.wait(self, timeout_s)
                return
            yield from super().wait(timeout_s)

    fates = ["long", *["kill"] * 6]
    found = list(dispatch(Slow(num_side_by_side=1), recordings(*fates), 2, lambda *_: None, 0.0))
    assert sorted(receipt.recording for receipt in found) == [item.name for item in recordings(*fates)]
