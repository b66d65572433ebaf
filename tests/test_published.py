"""Published checkpoints, of any seed: imported, used, and refused where they do not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transcription
from toy import toy_spec

from avfuse import checkpoint, published, runs
from avfuse.cache import FeatureCache
from avfuse.options import ImportOptions, ReportOptions
from avfuse.published import import_checkpoint
from avfuse.report import report
from avfuse.schema import UsageError
from avfuse.spec import Source
from avfuse.writer import RecordingWriter


def weights_of(system="recursive_joint_attention", seed=0, **sizes):
    return transcription.random_weights(system, torch.Generator().manual_seed(seed), **sizes)


def save(path, state, wrapper="net", prefix=""):
    state = {prefix + name: value for name, value in state.items()}
    torch.save({wrapper: state} if wrapper else state, path)
    return path


def make_inputs(num_clips=16, batch=2, seed=9):
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(batch, num_clips, 512, generator=generator)
    return audio, torch.randn(batch, num_clips, 512, 7, 7, generator=generator).relu()


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
@pytest.mark.parametrize(("wrapper", "prefix"), [("net", ""), ("net", "module."), (None, "")])
def test_recursive_joint_attention(tmp_path, num_blocks, wrapper, prefix):
    weights = weights_of(num_blocks=num_blocks)
    path = save(tmp_path / "recursive.pt", weights, wrapper, prefix)
    summary = import_checkpoint(ImportOptions(file=path, out=tmp_path / "run"))
    assert summary.head == "recursive_joint_attention"
    assert summary.num_parameters == 15_947_859 + 2_625_056 * (num_blocks - 1)
    assert summary.ccc == {}
    head = checkpoint.load_head(tmp_path / "run")
    assert head.targets == ("valence", "arousal")
    assert not head.training
    audio, video = make_inputs()
    with torch.no_grad():
        trace = head(audio, video)
        expected = transcription.recursive_joint_attention(weights, audio, video.flatten(2), num_blocks)
    torch.testing.assert_close(trace, expected, atol=1e-5, rtol=1e-5)
    # A shorter window, masked, is what it is alone.
    mask = torch.arange(16)[None] < torch.tensor([[16], [5]])
    with torch.no_grad():
        torch.testing.assert_close(head(audio, video, mask)[1, :5], head(audio[1:, :5], video[1:, :5])[0])


def test_joint_cross_attention(tmp_path):
    weights = weights_of("joint_cross_attention_tbiom")
    run = tmp_path / "run"
    summary = import_checkpoint(ImportOptions(file=save(tmp_path / "joint.pt", weights), out=run))
    assert (summary.head, summary.num_parameters) == ("joint_cross_attention", 8_586_323)
    audio, video = make_inputs()
    with torch.no_grad():
        expected = transcription.joint_cross_attention_tbiom(weights, audio, video.flatten(2))
        torch.testing.assert_close(checkpoint.load_head(run)(audio, video), expected, atol=1e-5, rtol=1e-5)


def test_windows_of_another_length_and_the_gate_are_recognised(tmp_path):
    weights = weights_of(num_blocks=2, num_clips=8)
    for modality in ("audio", "video"):
        weights[f"{modality}_gating_fc_layer.weight"] = torch.randn(2, 512)
        weights[f"{modality}_gating_fc_layer.bias"] = torch.randn(2)
    summary = import_checkpoint(ImportOptions(file=save(tmp_path / "gated.pt", weights), out=tmp_path / "run"))
    assert summary.head_options == "form=released, gate=true"
    head = checkpoint.load_head(tmp_path / "run")
    assert head.num_clips == 8
    assert torch.equal(head.gates.video.choice.weight, weights["video_gating_fc_layer.weight"])


def test_the_run_says_where_it_came_from(tmp_path, monkeypatch):
    monkeypatch.setenv("AVFUSE_CACHE", str(tmp_path / "home"))
    path = save(tmp_path / "recursive.pt", weights_of())
    summary = import_checkpoint(ImportOptions(file=path))
    assert Path(summary.run).parent.name == f"recursive-{summary.file_sha256[:8]}"
    record = runs.read_run(Path(summary.run))
    assert record.complete
    assert record.options["weights"] == f"recursive.pt#sha256={summary.file_sha256}"
    assert (record.head_options, record.targets) == ({"form": "released", "recursions": 1}, ("valence", "arousal"))
    before = (Path(summary.run) / runs.HEAD_FILE).read_bytes()
    assert import_checkpoint(ImportOptions(file=path)) == summary
    assert (Path(summary.run) / runs.HEAD_FILE).read_bytes() == before
    with pytest.raises(UsageError, match="was imported without a cache to score it on"):
        report(ReportOptions(runs=(Path(summary.run),)))


def test_round_trip(tmp_path):
    """What the run holds, under the published names, is what the file held; and it imports again."""
    weights = weights_of(num_blocks=2)
    import_checkpoint(ImportOptions(file=save(tmp_path / "one.pt", weights), out=tmp_path / "one"))
    head = checkpoint.load_head(tmp_path / "one")
    names = {published.published_name(name): name for name in head.state_dict() if not name.startswith("inputs.")}
    again = {name: head.state_dict()[own] for name, own in names.items()}
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    import_checkpoint(ImportOptions(file=save(tmp_path / "two.pt", again), out=tmp_path / "two"))
    audio, video = make_inputs()
    with torch.no_grad():
        assert torch.equal(head(audio, video), checkpoint.load_head(tmp_path / "two")(audio, video))


def without(name):
    return lambda state: state.pop(name)


def renamed(name, other):
    def change(state):
        state[other] = state.pop(name)

    return change


def replaced(name, value):
    def change(state):
        state[name] = value

    return change


class Rogue:
    def __reduce__(self):
        return (print, ("this must not run",))


BLOCK = "coattn.dcn_layers.0.dense_coattn."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("Joint.linear.bias"), r"parameter 'Joint\.linear\.bias' is missing"),
        (
            without(f"{BLOCK}query_linear.weight"),
            r"parameter 'coattn\.dcn_layers\.0\.dense_coattn\.query_linear\.weight'",
        ),
        (without(f"{BLOCK}key1_linear.bias"), r"'coattn\.dcn_layers\.0\.dense_coattn\.key1_linear\.bias' is missing"),
        (renamed("vregressor.0.weight", "vregressor.1.weight"), r"parameter 'vregressor\.0\.weight' is missing"),
        (renamed("audio_extract.init_hidden", "audio_extract.h0"), r"'audio_extract\.init_hidden' is missing"),
        (replaced("extra.weight", torch.zeros(2)), r"parameter 'extra\.weight' is unexpected"),
        (
            replaced("aregressor.3.weight", torch.zeros(2, 128)),
            r"'aregressor\.3\.weight' is \(2, 128\), expected \(1, 128\)",
        ),
        (
            replaced(f"{BLOCK}key1_linear.weight", torch.zeros(8, 8)),
            r"key1_linear\.weight' is \(8, 8\), expected \(16, 16\)",
        ),
        (replaced("coattn.dcn_layers.9.linears.0.0.bias", torch.zeros(512)), r"'coattn\.dcn_layers\.1\..*' is missing"),
        (
            replaced("Joint.linear.bias", torch.full((512,), torch.nan)),
            r"'Joint\.linear\.bias' holds values that are not",
        ),
        (replaced("Joint.linear.bias", Rogue()), "never pickled objects"),
        (replaced("Joint.linear.bias", "text"), "holds no state dictionary"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, capsys, change, message):
    weights = weights_of()
    change(weights)
    path = save(tmp_path / "recursive.pt", weights)
    with pytest.raises(UsageError, match=message) as caught:
        import_checkpoint(ImportOptions(file=path, out=tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert "this must not run" not in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_sizes_in_the_file_are_checked_before_anything_is_built(tmp_path):
    weights = weights_of() | {f"coattn.dcn_layers.{i}.linears.0.0.bias": torch.zeros(1) for i in range(3000)}
    with pytest.raises(UsageError, match="names 3000 attention blocks; up to 64 are read"):
        import_checkpoint(ImportOptions(file=save(tmp_path / "blocks.pt", weights), out=tmp_path / "run"))
    for length in (0, 100_000):
        weights = weights_of() | {f"{BLOCK}key1_linear.bias": torch.zeros(1).expand(length)}
        with pytest.raises(UsageError, match=rf"key1_linear\.bias' is \({length},\), expected \(16,\)"):
            import_checkpoint(ImportOptions(file=save(tmp_path / "length.pt", weights), out=tmp_path / "run"))


def test_an_import_that_was_cut_short_goes_on(tmp_path, monkeypatch):
    path = save(tmp_path / "recursive.pt", weights_of())
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_head", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_checkpoint(ImportOptions(file=path, out=tmp_path / "run"))
    assert not runs.read_run(tmp_path / "run").complete
    import_checkpoint(ImportOptions(file=path, out=tmp_path / "run"))
    assert runs.read_run(tmp_path / "run").complete


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="is a folder; give a checkpoint file"):
        import_checkpoint(ImportOptions(file=tmp_path))
    with pytest.raises(UsageError, match=r"nowhere\.pt does not exist; give a checkpoint file"):
        import_checkpoint(ImportOptions(file=tmp_path / "nowhere.pt"))
    path = save(tmp_path / "other.pt", {"layer.weight": torch.zeros(2)})
    with pytest.raises(UsageError, match=r"no fusion checkpoint that avfuse knows: no parameter begins with 'coattn"):
        import_checkpoint(ImportOptions(file=path))
    path.write_text("<html>not found</html>")
    with pytest.raises(UsageError, match="does not load as a file of weights"):
        import_checkpoint(ImportOptions(file=path))


def test_places_that_are_taken_are_refused(tmp_path):
    path = save(tmp_path / "recursive.pt", weights_of())
    other = save(tmp_path / "other.pt", weights_of(seed=1))
    import_checkpoint(ImportOptions(file=path, out=tmp_path / "run"))
    with pytest.raises(UsageError, match="run holds another run; give another --out or remove it"):
        import_checkpoint(ImportOptions(file=other, out=tmp_path / "run"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="folder is there and holds no run"):
        import_checkpoint(ImportOptions(file=path, out=tmp_path / "folder"))
    with pytest.raises(UsageError, match="is a file; give another --out"):
        import_checkpoint(ImportOptions(file=path, out=path))


def make_cache(home, targets=("valence", "arousal")):
    """Make a store of full-size features: one recording to train on, two to validate."""
    store = FeatureCache.create(home, toy_spec(targets=targets, video_shape=(512, 7, 7), audio_shape=(512,)), {})
    rng = np.random.default_rng(0)
    for name, partition, num_clips in (("a", "train", 4), ("b", "validation", 70), ("c", "validation", 9)):
        num_frames = num_clips * 8
        end_frame = np.arange(1, num_clips + 1) * 8 - 1
        frame_target = rng.uniform(-1, 1, size=(num_frames, len(targets))).astype(np.float32)
        arrays = {
            "target": frame_target[end_frame],
            "face_share": np.ones(num_clips, np.float32),
            "end_frame": end_frame,
            "end_time_s": end_frame / 25,
            "frame_time_s": np.arange(num_frames) / 25,
            "frame_target": frame_target,
            "frame_face": np.ones(num_frames, bool),
            "frame_face_probability": np.ones(num_frames, np.float32),
        }
        with RecordingWriter(store, name, Source(partition, name, f"{name}.mp4", "0" * 64, None)) as writer:
            writer.begin(num_clips)
            video = rng.normal(size=(num_clips, 512, 7, 7)).clip(0).astype(np.float32)
            writer.append(video, rng.normal(size=(num_clips, 512)).astype(np.float32))
            writer.commit(arrays, fps=25.0)
    return store


def test_scored_on_a_cache_it_stands_in_reports(tmp_path):
    store = make_cache(tmp_path)
    weights = weights_of()
    path = save(tmp_path / "recursive.pt", weights)
    seen = []
    summary = import_checkpoint(
        ImportOptions(file=path, out=tmp_path / "run", cache=tmp_path, device="cpu", batch_size=5),
        lambda done, total: seen.append((done, total)),
    )
    assert seen == [(5, 12), (10, 12), (12, 12)]
    predictions = runs.read_predictions(tmp_path / "run")
    assert [item.recording for item in predictions] == ["b", "c"]
    # At a clip's end the frame's prediction is the clip's, in the window that begins with the first clip.
    recording = store.recordings("validation")[1]
    clips = slice(0, 9, 4)
    audio = torch.from_numpy(recording.array("audio")[clips])[None]
    video = torch.from_numpy(np.concatenate([run for _, run in recording.video.strided(0, 4, 3)])).float()[None]
    with torch.no_grad():
        expected = checkpoint.load_head(tmp_path / "run")(audio, video)[0].numpy()
    np.testing.assert_allclose(predictions[1].prediction_FE[recording.array("end_frame")[clips]], expected, atol=1e-6)
    record = json.loads((tmp_path / "run" / runs.RUN_FILE).read_text())
    assert record["fingerprint"] == store.spec.fingerprint
    table = report(ReportOptions(runs=(tmp_path / "run",)))
    assert table.rows[0][0].startswith("recursive_joint_attention")
    assert table.records[0]["ccc_mean"] == pytest.approx(summary.ccc["valence"], abs=1e-12)
    # Imported once more without the cache, it is scored on nothing.
    import_checkpoint(ImportOptions(file=path, out=tmp_path / "run"))
    with pytest.raises(UsageError, match="was imported without a cache to score it on"):
        report(ReportOptions(runs=(tmp_path / "run",)))


def test_a_cache_that_does_not_suit_is_refused(tmp_path):
    path = save(tmp_path / "recursive.pt", weights_of())
    make_cache(tmp_path / "other", targets=("fatigue",))
    with pytest.raises(UsageError, match="is rated for fatigue; the head predicts valence, arousal"):
        import_checkpoint(ImportOptions(file=path, out=tmp_path / "run", cache=tmp_path / "other"))
    FeatureCache.create(tmp_path / "small", toy_spec(), {})
    with pytest.raises(
        UsageError, match=r"holds features of shape \(32,\) and \(32, 2, 2\); the head takes \(512,\) and"
    ):
        import_checkpoint(ImportOptions(file=path, out=tmp_path / "run", cache=tmp_path / "small"))
    assert not (tmp_path / "run").exists()
