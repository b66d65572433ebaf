"""Every registered encoder keeps the contract of `avfuse.encoders`; weights are what they are said to be."""

import hashlib
import io
import json
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from avfuse import registry
from avfuse.device import keep_fp32
from avfuse.encoders import Encoder, _weights
from avfuse.encoders.r3d import MEAN, STD, R3DEncoder
from avfuse.encoders.spectrogram_resnet import SpectrogramResNetEncoder
from avfuse.schema import UsageError

CPU = torch.device("cpu")
State = dict[str, Tensor]
# torchvision's published counts without the classification layer (512 x 400 + 400 or 512 x 1000 + 1000), for sound also
# without the two input channels that a spectrogram does not have.
NUM_PARAMETERS = {
    ("r3d", "r3d_18"): 33_371_472 - 205_200,
    ("r3d", "r2plus1d_18"): 31_505_325 - 205_200,
    ("spectrogram_resnet", ""): 11_689_512 - 513_000 - 2 * 64 * 49,
}
every_encoder = pytest.mark.parametrize(("name", "arch"), list(NUM_PARAMETERS))
every_arch = pytest.mark.parametrize("arch", ["r3d_18", "r2plus1d_18"])


def build(name: str, arch: str = "", weights: str = "random:0", allow_download: bool = False) -> Encoder:
    arguments = {"arch": arch} if arch else {}
    encoder: Encoder = registry.load("encoder", name)(weights, allow_download, **arguments)
    return encoder


def clips_for(encoder: Encoder, num_clips: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if encoder.modality == "video":
        return torch.randint(0, 256, (num_clips, 8, 112, 112, 3), dtype=torch.uint8, generator=generator)
    return torch.rand(num_clips, 45_570, generator=generator) * 2 - 1


def plain_video(arch: str, seed: int) -> nn.Module:
    """Build torchvision's network as torchvision builds it, under a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torchvision.models.get_model(arch, weights=None)


def video_state(arch: str = "r3d_18", seed: int = 3) -> State:
    return dict(plain_video(arch, seed).state_dict())


def audio_state(seed: int = 3, num_channels: int = 3) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = dict(torchvision.models.resnet18(weights=None).state_dict())
        state["conv1.weight"] = torch.randn(64, num_channels, 7, 7)
    return state


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def state() -> State:
    return audio_state()


def load_audio(spec: str | Path) -> SpectrogramResNetEncoder:
    return SpectrogramResNetEncoder(str(spec))


def assert_holds(encoder: Encoder, state: State) -> None:
    """Assert that an encoder's network holds a state, its classification layer left out."""
    held = encoder.network.state_dict()
    assert set(held) == {key for key in state if not key.startswith("fc.")}
    for key, value in held.items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)


# The contract


def test_every_registered_encoder_has_its_row() -> None:
    assert {name for name, _ in NUM_PARAMETERS} == set(registry.ENCODERS), "add the new encoder's parameter count"


@every_encoder
def test_number_of_parameters(name: str, arch: str) -> None:
    encoder = build(name, arch)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == NUM_PARAMETERS[name, arch]


@every_encoder
def test_contract(name: str, arch: str) -> None:
    encoder = build(name, arch)
    encoder.place(CPU, "fp32")
    clips = clips_for(encoder)
    before = clips.clone()
    with torch.inference_mode():
        feature, again, alone = encoder(clips), encoder(clips), encoder(clips[:1])
    assert encoder.modality in ("video", "audio")
    assert feature.shape == (2, *encoder.feature_shape)
    assert len(encoder.feature_shape) == {"video": 3, "audio": 1}[encoder.modality]
    assert feature.dtype == torch.float32
    assert feature.isfinite().all()
    assert feature.std() > 0
    assert torch.equal(clips, before)
    assert torch.equal(feature, again)
    torch.testing.assert_close(alone, feature[:1], rtol=1e-3, atol=1e-4)  # another batch size, another order of sums
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    for described in (encoder.fingerprint, encoder.provenance):
        assert json.loads(json.dumps(described)) == described


@every_encoder
def test_fingerprint_tells_weights_apart_and_ignores_the_file(name: str, arch: str, tmp_path: Path) -> None:
    first, second = build(name, arch), build(name, arch, "random:1")
    assert build(name, arch).fingerprint == first.fingerprint
    assert second.fingerprint != first.fingerprint
    path = save(first.network.state_dict(), tmp_path / "a.pt")
    assert build(name, arch, str(path)).fingerprint == first.fingerprint
    assert build(name, arch, str(path)).provenance != first.provenance


def test_video_architectures_have_fingerprints_of_their_own() -> None:
    assert build("r3d", "r3d_18").fingerprint != build("r3d", "r2plus1d_18").fingerprint


def test_unknown_architecture() -> None:
    with pytest.raises(UsageError, match=r"'r3d_34' is none of r3d_18, r2plus1d_18"):
        R3DEncoder("random:0", arch="r3d_34")


# R3D


def _settled(arch: str, tmp_path: Path) -> tuple[Path, nn.Module]:
    """Return a network whose batch norms are not the identity, so that folding them is tested, and its file."""
    network = plain_video(arch, seed=5)
    generator = torch.Generator().manual_seed(6)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            module.weight.data.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            module.bias.data.copy_(0.1 * torch.randn(module.num_features, generator=generator))
    return save(network.state_dict(), tmp_path / "settled.pt"), network.eval()


def _plain_features(network: nn.Module, clips: Tensor) -> Tensor:
    """Return torchvision's own features, hooked off its last stage, of clips normalised as its documentation says."""
    caught: list[Tensor] = []
    hook = network.layer4.register_forward_hook(lambda module, given, made: caught.append(made))
    unit_BCKYX = (clips.permute(0, 4, 1, 2, 3) / 255.0 - torch.tensor(MEAN).view(3, 1, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1, 1
    )
    with torch.no_grad():
        network(unit_BCKYX)
    hook.remove()
    return caught[0]


@every_arch
def test_placed_network_equals_the_plain_one(arch: str, tmp_path: Path) -> None:
    path, plain = _settled(arch, tmp_path)
    encoder = R3DEncoder(str(path), arch=arch)
    clips = clips_for(encoder, num_clips=1)
    expected = _plain_features(plain, clips)
    assert expected.shape == (1, 512, 1, 7, 7)
    encoder.place(CPU, "fp32")
    assert not any(isinstance(module, nn.BatchNorm3d) for module in encoder.modules())
    with torch.inference_mode():
        feature = encoder(clips)
    # Folding and another memory layout change the order of float32 sums only.
    torch.testing.assert_close(feature, expected[:, :, 0], rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    lower = R3DEncoder(str(path), arch=arch)
    lower.place(CPU, "bf16")
    with torch.inference_mode():
        rounded = lower(clips)
    assert rounded.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(rounded.flatten(), expected.flatten(), dim=0)
    assert cosine > 0.999  # bfloat16 keeps 8 bits: 0.4 % per sum, averaged out over thousands of terms


def test_longer_clips_are_averaged_over_time(tmp_path: Path) -> None:
    path, plain = _settled("r3d_18", tmp_path)
    encoder = R3DEncoder(str(path))
    clips = torch.cat([clips_for(encoder, num_clips=1), 255 - clips_for(encoder, num_clips=1)], dim=1)
    expected = _plain_features(plain, clips)
    assert expected.shape == (1, 512, 2, 7, 7)
    assert not torch.allclose(expected[:, :, 0], expected[:, :, 1])
    encoder.place(CPU, "fp32")
    with torch.inference_mode():
        torch.testing.assert_close(
            encoder(clips), expected.mean(dim=2), rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )


def test_normalisation_is_that_of_kinetics() -> None:
    assert MEAN == (0.43216, 0.394666, 0.37645)
    assert STD == (0.22803, 0.22145, 0.216989)


# The spectrogram


def slow_log_mel(sound_S: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the spectrogram as the fact sheet of the paper's code describes it, one window after the other."""
    sound_S = np.concatenate([np.zeros(max(0, 45_599 - len(sound_S))), sound_S])
    padded_S = np.pad(sound_S, 512, mode="reflect")
    window = np.zeros(1024)
    window[71 : 71 + 882] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(882) / 882)  # periodic Hann, centred in the FFT
    columns = [padded_S[441 * c : 441 * c + 1024] * window for c in range(1 + len(sound_S) // 441)]
    power_WF = np.abs(np.fft.rfft(columns, axis=1)) ** 2
    edge_mel = np.linspace(0, 2595 * np.log10(1 + 22_050 / 700), 66)
    edge_hz = 700 * (10 ** (edge_mel / 2595) - 1)
    bin_hz = np.linspace(0, 22_050, 513)
    mel_MW = np.empty((64, len(columns)))
    for m in range(64):
        low, centre, high = edge_hz[m : m + 3]
        triangle = np.minimum((bin_hz - low) / (centre - low), (high - bin_hz) / (high - centre)).clip(0)
        mel_MW[m] = power_WF @ triangle
    level = 10 * np.log10(np.maximum(mel_MW, 1e-10))
    return (np.maximum(level, level.max() - 80) + 14.8) / 19.895


def sounds() -> dict[str, npt.NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    time_s = np.arange(45_570) / 44_100
    return {
        "noise": rng.uniform(-1, 1, 45_570),
        "tone": 0.3 * np.sin(2 * np.pi * 997 * time_s),
        "click": np.eye(1, 45_570, 30_000)[0],
        "short": rng.uniform(-0.1, 0.1, 5_000),
        "long": rng.uniform(-0.5, 0.5, 91_140),
    }


@pytest.fixture(scope="module")
def spectrogram() -> SpectrogramResNetEncoder:
    return SpectrogramResNetEncoder("random:0")


@pytest.mark.filterwarnings("ignore:At least one mel filterbank has all zero values:UserWarning")
@pytest.mark.parametrize("kind", list(sounds()))
def test_spectrogram_equals_a_slow_one(kind: str, spectrogram: SpectrogramResNetEncoder) -> None:
    sound_S = sounds()[kind]
    expected_MW = slow_log_mel(sound_S)
    found_MW = spectrogram.log_mel(torch.from_numpy(sound_S).float()[None])[0, 0].numpy()
    assert found_MW.shape == expected_MW.shape
    # float32 against float64: 1e-7 of the loudest cell is 60 dB below it at the FFT's rounding, near the floor.
    loud = expected_MW > expected_MW.max() - 50 / 19.895
    np.testing.assert_allclose(found_MW[loud], expected_MW[loud], atol=2e-4)
    np.testing.assert_allclose(found_MW, expected_MW, atol=0.05)


def test_silence(spectrogram: SpectrogramResNetEncoder) -> None:
    silence = spectrogram.log_mel(torch.zeros(2, 45_570))
    assert silence.shape == (2, 1, 64, 104)
    torch.testing.assert_close(silence, torch.full_like(silence, (-100 + 14.8) / 19.895))
    assert silence[0, 0, 0, 0].item() == pytest.approx(-4.2825, abs=5e-5)  # the fact sheet's four decimals


@pytest.mark.parametrize(
    ("num_samples", "columns"), [(1, 104), (45_570, 104), (45_599, 104), (45_864, 105), (91_140, 207)]
)
def test_number_of_columns(num_samples: int, columns: int, spectrogram: SpectrogramResNetEncoder) -> None:
    assert spectrogram.log_mel(torch.zeros(1, num_samples)).shape == (1, 1, 64, columns)


def test_floor_is_each_clips_own(spectrogram: SpectrogramResNetEncoder) -> None:
    quiet, loud = 1e-4 * torch.rand(1, 45_570), torch.rand(1, 45_570)
    together = spectrogram.log_mel(torch.cat([quiet, loud]))
    torch.testing.assert_close(together, torch.cat([spectrogram.log_mel(quiet), spectrogram.log_mel(loud)]))


# Weights


@every_encoder
def test_random_weights_leave_the_global_generator_alone(name: str, arch: str) -> None:
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    first = build(name, arch, "random:7")
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(12)
    second = build(name, arch, "random:7")
    assert_holds(second, first.network.state_dict())
    other = build(name, arch, "random:8").network.state_dict()
    assert any(not torch.equal(value, other[key]) for key, value in first.network.state_dict().items())


@pytest.mark.parametrize("seed", ["", "-1", "1.5", "x", "²", "9" * 30])
def test_random_weights_need_a_whole_number(seed: str) -> None:
    with pytest.raises(UsageError, match=r"are not random:SEED"):
        load_audio(f"random:{seed}")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_state_in_a_file(suffix: str, tmp_path: Path) -> None:
    state = audio_state(num_channels=1)
    path = tmp_path / f"weights of mine{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    encoder = load_audio(path)
    assert_holds(encoder, state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert encoder.provenance == {"weights": str(path), "file": path.name, "sha256": digest}


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net"])
def test_wrapped_state(wrapper: str, tmp_path: Path) -> None:
    state = audio_state(num_channels=1)
    parallel = {f"module.{key}": value for key, value in state.items()}
    path = save({wrapper: parallel, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "a.pth")
    assert_holds(load_audio(path), state)


def test_counts_of_seen_batches_may_be_missing(tmp_path: Path) -> None:
    state = audio_state(num_channels=1)
    path = save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "a.pt")
    assert_holds(load_audio(path), state)


def test_three_channels_are_averaged_for_sound(state: State, tmp_path: Path) -> None:
    encoder = load_audio(save(state, tmp_path / "a.pt"))
    assert_holds(encoder, {**state, "conv1.weight": state["conv1.weight"].sum(dim=1, keepdim=True) / 3})


def test_digest_in_the_name(state: State, tmp_path: Path) -> None:
    path = save(state, tmp_path / "a.pt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_audio(f"{path}#sha256={digest}").provenance["sha256"] == digest
    assert load_audio(f"{path}#sha256={digest[:12].upper()}").provenance["sha256"] == digest
    with pytest.raises(UsageError, match=rf"a\.pt is not the file that was asked for: its sha256 is {digest}"):
        load_audio(f"{path}#sha256={'0' * 64}")
    for unusable in ("", "xyz", digest + "0", "ab"):
        with pytest.raises(UsageError, match="8 to 64 hexadecimal digits"):
            load_audio(f"{path}#sha256={unusable}")


def tsav_file(folder: Path, drop: str = " ") -> tuple[Path, State, State]:
    """Write a checkpoint laid out like tsav's; return it with its video and audio state."""
    video, audio = video_state("r2plus1d_18"), audio_state(num_channels=1)
    video["stem.0.weight"] = torch.cat([video["stem.0.weight"], torch.full((45, 1, 1, 7, 7), 9.0)], dim=1)
    both = {f"video_model.r2plus1d.{key}": value for key, value in video.items()}
    both |= {f"audio_model.resnet.{key}": value for key, value in audio.items()}
    both["fc.weight"] = torch.zeros(17, 1024)
    both = {key: value for key, value in both.items() if not key.startswith(drop)}
    return save({"state_dict": both}, folder / "tsav.pt"), video, audio


def test_tsav_checkpoint(tmp_path: Path) -> None:
    path, video, audio = tsav_file(tmp_path)
    assert_holds(load_audio(f"tsav:{path}"), audio)
    encoder = R3DEncoder(f"tsav:{path}", arch="r2plus1d_18")
    assert_holds(encoder, {**video, "stem.0.weight": video["stem.0.weight"][:, :3]})
    with pytest.raises(UsageError, match=r"are of r2plus1d_18, not of r3d_18; add --video-option arch=r2plus1d_18"):
        R3DEncoder(f"tsav:{path}", arch="r3d_18")
    with pytest.raises(UsageError, match="does not fit"):
        load_audio(path)


def test_tsav_checkpoint_without_the_stream(tmp_path: Path) -> None:
    path, *_ = tsav_file(tmp_path, drop="audio_model")
    with pytest.raises(UsageError, match=r"no parameter begins with 'audio_model\.resnet\.'"):
        load_audio(f"tsav:{path}")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: {**s, "layer3.1.bn1.weights": s["bn1.weight"]}, r"'layer3\.1\.bn1\.weights' is unexpected"),
        (
            lambda s: {k: v for k, v in s.items() if k != "layer2.0.bn1.bias"},
            r"'layer2\.0\.bn1\.bias' is missing",
        ),
        (lambda s: {**s, "bn1.bias": torch.zeros(63)}, r"'bn1\.bias' is \(63,\), expected \(64,\)"),
        (lambda s: {**s, "conv1.weight": torch.zeros(64, 4, 7, 7)}, r"'conv1\.weight' is \(64, 4, 7, 7\), expected"),
        (lambda s: {**s, "conv1.weight": torch.zeros(64)}, r"'conv1\.weight' is \(64,\), expected \(64, 1, 7, 7\)"),
        (lambda s: {"backbone." + k: v for k, v in s.items()}, r"parameter 'conv1\.weight' is missing"),
        (lambda s: {}, "holds no state dictionary"),
        (lambda s: {"epoch": 3}, "holds no state dictionary"),
        (lambda s: {0: torch.zeros(1)}, "holds no state dictionary"),
        (lambda s: torch.zeros(3), "holds no state dictionary"),
    ],
)
def test_state_that_does_not_fit(change: Callable[[State], Any], match: str, state: State, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"a\.pt .*{match}"):
        load_audio(save(change(state), tmp_path / "a.pt"))


@pytest.mark.parametrize("shape", [(64,), (64, 1, 3, 7, 7), (64, 5, 3, 7, 7)])
def test_stem_that_does_not_fit(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = save({**video_state(), "stem.0.weight": torch.zeros(shape)}, tmp_path / "a.pt")
    with pytest.raises(UsageError, match=r"'stem\.0\.weight' is \(64,.*\), expected \(64, 3, 3, 7, 7\)"):
        R3DEncoder(str(path))


class _Trap:
    """Leaves a mark in `place` when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for write in (save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))):
        write({"state_dict": _Trap(mark)}, tmp_path / "a.pt")
        with pytest.raises(UsageError, match=r"a\.pt does not load as a file of weights") as caught:
            load_audio(tmp_path / "a.pt")
        assert "weights_only" not in str(caught.value)  # torch's own message advises to switch the safeguard off
        assert not mark.exists()
    pickle.loads((tmp_path / "a.pt").read_bytes())
    assert mark.exists(), "the trap itself does not work"


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["empty", "text", "page", "truncated", "noise"])
def test_files_that_hold_no_weights(kind: str, suffix: str, state: State, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = {
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "page": b"<!doctype html><html></html>",
        "truncated": buffer.getvalue()[:100_000],
        "noise": np.random.default_rng(0).bytes(10_000),
    }[kind]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"a\{suffix} does not load as a file of weights"):
        load_audio(path)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match=r"no such file, and not a torchvision name"):
        load_audio("no/such/file.pt")
    with pytest.raises(UsageError, match=r"'tsav\.pt'|no such file"):
        load_audio("tsav:tsav.pt")
    with pytest.raises(UsageError, match=r"ResNet18_Weights has IMAGENET1K_V1"):
        load_audio("ResNet18_Weights.NOPE")


# torchvision's files

IMAGENET = "ResNet18_Weights.IMAGENET1K_V1"


@pytest.fixture
def torchvision_file(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, bytes]:
    """Let ResNet18_Weights.IMAGENET1K_V1 mean a small file of the test; return its place and its content."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    name = f"resnet18-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    find = _weights._find_torchvision
    monkeypatch.setattr(
        _weights,
        "_find_torchvision",
        lambda spec, url, allow_download: find(spec, f"https://weights.example/models/{name}", allow_download),
    )
    return tmp_path / "hub" / "checkpoints" / name, buffer.getvalue()


class _Download:
    """Stands in for `urllib.request.urlopen`: remembers what was asked, gives the content or fails."""

    def __init__(self, content: bytes | Exception) -> None:
        self.content = content
        self.asked: list[tuple[str, float]] = []

    def __call__(self, url: str, timeout: float) -> io.BytesIO:
        self.asked.append((url, timeout))
        if isinstance(self.content, Exception):
            raise self.content
        return io.BytesIO(self.content)


def no_network(*_: object, **__: object) -> None:
    raise AssertionError("the network was asked")


@pytest.mark.parametrize(
    ("make", "spec", "name"),
    [
        (R3DEncoder, "R3D_18_Weights.KINETICS400_V1", "r3d_18-b3b3357e.pth"),
        (SpectrogramResNetEncoder, IMAGENET, "resnet18-f37072fd.pth"),
    ],
)
def test_missing_torchvision_file(
    make: type[Encoder], spec: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(UsageError, match=rf"looked for {tmp_path}/hub/checkpoints/{name}.*--allow-download"):
        make(spec)
    assert list(tmp_path.iterdir()) == []


def test_torchvision_file_is_found(torchvision_file: tuple[Path, bytes], state: State) -> None:
    path, content = torchvision_file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    encoder = load_audio(IMAGENET)
    assert torch.equal(encoder.network.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    assert encoder.provenance["file"] == path.name
    with pytest.raises(UsageError, match="is not the file that was asked for"):
        load_audio(f"{IMAGENET}#sha256={'0' * 64}")


def test_wrong_file_under_torchvisions_name(torchvision_file: tuple[Path, bytes]) -> None:
    path, _ = torchvision_file
    path.parent.mkdir(parents=True)
    save(audio_state(seed=4), path)
    with pytest.raises(UsageError, match=rf"{path.name} is not the file that was asked for"):
        load_audio(IMAGENET)


def test_download_when_allowed(torchvision_file: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = torchvision_file
    download = _Download(content)
    monkeypatch.setattr(urllib.request, "urlopen", download)
    for _ in range(2):  # the second time it is there
        SpectrogramResNetEncoder(IMAGENET, allow_download=True)
    assert download.asked == [(f"https://weights.example/models/{path.name}", 30)]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (
            urllib.error.URLError("no route"),
            r"could not be fetched \(<urlopen error no route>\); copy the file to .*",
        ),
        (TimeoutError("timed out"), r"could not be fetched \(timed out\)"),
        (b"only the beginning", "came in part or altered"),
    ],
)
def test_failed_download_leaves_nothing(
    answer: bytes | Exception, match: str, torchvision_file: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = torchvision_file
    monkeypatch.setattr(urllib.request, "urlopen", _Download(answer))
    with pytest.raises(UsageError, match=match):
        SpectrogramResNetEncoder(IMAGENET, allow_download=True)
    assert list(path.parent.iterdir()) == []


@pytest.mark.gpu
@every_encoder
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_computes_the_same(name: str, arch: str, precision: str) -> None:
    keep_fp32(torch.device("cuda"))
    features = []
    for device in ("cpu", "cuda"):
        encoder = build(name, arch)
        encoder.place(torch.device(device), "fp32" if device == "cpu" else precision)
        with torch.inference_mode():
            features.append(encoder(clips_for(encoder).to(device)).cpu().flatten(1))
        assert features[-1].dtype == torch.float32
    cosine_B = nn.functional.cosine_similarity(*features)
    # bf16 has 8 bits: what was measured on a CPU is 0.99997; float32 differs by the order of its sums.
    assert float(cosine_B.min()) > (0.999 if precision == "bf16" else 0.999999)
