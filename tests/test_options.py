"""Every knob is declared once, with its help, and reaches the command line."""

import dataclasses
import math
import typing
from pathlib import Path
from typing import Any

import click
import pytest

from avfuse import cache_options, options, registry
from avfuse.cli import cli
from avfuse.knobs import PROTOCOLS
from avfuse.options import ExtractOptions, TrainOptions, cache_home, local_home
from avfuse.schema import UsageError

COMMANDS = {
    "demo": options.DemoOptions,
    "extract": options.ExtractOptions,
    "fuse-train": options.TrainOptions,
    "report": options.ReportOptions,
    "audit": options.AuditOptions,
    "predict": options.PredictOptions,
    "checkpoint import": options.ImportOptions,
    "cache verify": cache_options.CacheVerifyOptions,
    "cache repair": cache_options.CacheRepairOptions,
    "cache ls": cache_options.CacheListOptions,
    "cache info": cache_options.CacheInfoOptions,
    "cache failures": cache_options.CacheFailuresOptions,
    "cache diff": cache_options.CacheDiffOptions,
    "cache shrink": cache_options.CacheShrinkOptions,
    "cache gc": cache_options.CacheCollectOptions,
    "cache export": cache_options.CacheExportOptions,
    "cache import": cache_options.CacheImportOptions,
}
every_command = pytest.mark.parametrize("command", list(COMMANDS))
every_knob = pytest.mark.parametrize(
    ("command", "field"),
    [
        pytest.param(name, field, id=f"{name}-{field.name}")
        for name, kind in COMMANDS.items()
        for field in dataclasses.fields(kind)
    ],
)


def find_command(name: str) -> click.Command:
    command: click.Command = cli
    for word in name.split():
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


def parameters(command: str) -> dict[str, click.Parameter]:
    return {str(parameter.name): parameter for parameter in find_command(command).params}


def test_every_options_class_is_a_command() -> None:
    pages = (options, cache_options)
    declared = {kind for page in pages for kind in vars(page).values() if dataclasses.is_dataclass(kind)}
    assert declared == set(COMMANDS.values())
    assert {name.split()[0] for name in COMMANDS} == set(cli.commands)


@every_command
def test_options_are_frozen(command: str) -> None:
    assert COMMANDS[command].__dataclass_params__.frozen  # type: ignore[attr-defined]


@every_knob
def test_a_knob_says_what_it_is_for(command: str, field: dataclasses.Field[Any]) -> None:
    assert len(field.metadata["help"]) >= 6
    assert field.metadata["help"].endswith((".", "]"))
    assert set(field.metadata) == {"help", "choices", "minimum", "argument", "flag", "record"}
    if field.metadata["choices"] and field.default not in (None, dataclasses.MISSING):
        default = field.default if isinstance(field.default, tuple) else (field.default,)
        assert set(default) <= set(field.metadata["choices"])


@every_knob
def test_a_knob_reaches_the_command_line(command: str, field: dataclasses.Field[Any]) -> None:
    parameter = parameters(command)[field.name]
    if isinstance(parameter, click.Option):
        assert f"--{field.name.replace('_', '-')}" in parameter.opts
        assert parameter.help == field.metadata["help"]
        context = click.Context(find_command(command))
        assert parameter.get_default(context) == field.default or (parameter.multiple and field.default == ())
    else:
        assert parameter.required == (field.default is dataclasses.MISSING)
        assert parameter.required or field.metadata["argument"].startswith("[")


@every_command
def test_the_command_line_knows_no_other_knobs(command: str) -> None:
    known = {field.name for field in dataclasses.fields(COMMANDS[command])}
    assert set(parameters(command)) - known <= {"as_json", "yes", "dry_run"}


@every_knob
def test_a_knob_refuses_what_is_below_its_minimum(command: str, field: dataclasses.Field[Any]) -> None:
    minimum = field.metadata["minimum"]
    hint = typing.get_type_hints(COMMANDS[command])[field.name]
    assert (minimum is None) or hint in (int, float, int | None, float | None, tuple[int, ...])
    if minimum is not None:
        convert = parameters(command)[field.name].type.convert
        assert convert(str(minimum if float in (hint, *typing.get_args(hint)) else int(minimum)), None, None) == minimum
        with pytest.raises(click.BadParameter, match="is not in the range"):
            convert(str(int(minimum) - 1), None, None)


def test_a_protocol_fills_in_what_is_not_given() -> None:
    expected = {
        "default": (32, 50, 1e-4, "plateau", 8, 1.0, "ccc", "all", "shuffled", 8),
        "released": (64, 50, 1e-4, "released", 50, 0.0, "released", "complete", "recorded", 0),
    }
    assert set(PROTOCOLS) == set(expected)
    for protocol, values in expected.items():
        filled_in = TrainOptions(protocol=protocol)
        assert tuple(getattr(filled_in, name) for name in PROTOCOLS[protocol]) == values
    assert TrainOptions() == TrainOptions(protocol="default")
    assert [TrainOptions(num_clips=number).overlap for number in (2, 7, 16)] == [1, 3, 8]


def test_what_is_given_wins_over_the_protocol() -> None:
    given = {"batch_size": 3, "gradient_clip": 0.0, "schedule": "plateau", "overlap": 0}
    for protocol in PROTOCOLS:
        filled_in = TrainOptions(protocol=protocol, **given)
        expected = {**PROTOCOLS[protocol], **given}
        assert {name: getattr(filled_in, name) for name in expected} == expected


def test_protocols_set_the_same_knobs_and_their_help_says_to_what() -> None:
    knobs = {field.name: field for field in dataclasses.fields(TrainOptions)}
    unset = {name for name, field in knobs.items() if field.default is None and "Path" not in str(field.type)}
    unset.remove("fold")  # not given is a value of its own
    for values in PROTOCOLS.values():
        assert set(values) == unset
        for name, value in values.items():
            choices = knobs[name].metadata["choices"]
            assert choices is None or value in choices
    for name in unset:
        default, released = (PROTOCOLS[protocol][name] for protocol in ("default", "released"))
        assert knobs[name].metadata["help"].endswith(f"  [default: {default}; released: {released}]")
    assert knobs["overlap"].metadata["help"].endswith("[default: half a window; released: 0]")
    # A protocol is a name for values: the values identify a run, the name does not.
    assert not knobs["protocol"].metadata["record"]
    assert all(knobs[name].metadata["record"] for name in unset)


def test_the_command_line_leaves_to_the_protocol_what_is_not_given() -> None:
    with find_command("fuse-train").make_context(
        "fuse-train", ["--protocol", "released", "--batch-size", "8"]
    ) as context:
        knobs = {name: value for name, value in context.params.items() if name != "as_json"}
    assert TrainOptions(**knobs) == TrainOptions(protocol="released", batch_size=8)


@pytest.mark.parametrize("name", ["protocol", "schedule", "loss", "windows", "order", "amp"])
def test_an_unknown_choice_is_refused(name: str) -> None:
    known = ", ".join({field.name: field for field in dataclasses.fields(TrainOptions)}[name].metadata["choices"])
    with pytest.raises(UsageError, match=f"^unknown {name} 'other'; known: {known}$"):
        TrainOptions(**{name: "other"})


def test_choices_are_those_of_the_registry() -> None:
    tables = {
        ("extract", "corpus"): registry.CORPORA,
        ("extract", "video_encoder"): registry.ENCODERS,
        ("extract", "audio_encoder"): registry.ENCODERS,
        ("fuse-train", "head"): registry.HEADS,
        ("report", "format"): registry.FORMATS,
    }
    for (command, name), table in tables.items():
        kind = parameters(command)[name].type
        assert isinstance(kind, click.Choice)
        assert tuple(kind.choices) == tuple(table)


def test_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AVFUSE_CACHE", str(tmp_path / "named by the environment"))
    for given in (tmp_path / "given", str(tmp_path / "given")):
        assert cache_home(given) == tmp_path / "given"
    assert cache_home("s3://bucket/given") == "s3://bucket/given"
    assert cache_home(None) == local_home() == tmp_path / "named by the environment"
    monkeypatch.setenv("AVFUSE_CACHE", "s3://bucket//named")
    assert cache_home(None) == "s3://bucket//named"
    assert cache_home(tmp_path) == tmp_path
    assert local_home() == Path("cache")
    monkeypatch.setenv("AVFUSE_CACHE", "")
    assert cache_home(None) == local_home() == Path("cache")
    monkeypatch.delenv("AVFUSE_CACHE")
    assert cache_home(None) == local_home() == Path("cache")


@every_command
def test_a_cache_is_a_path_or_an_address(command: str) -> None:
    if "cache" not in parameters(command):
        assert not any(field.name == "cache" for field in dataclasses.fields(COMMANDS[command]))
        return
    convert = parameters(command)["cache"].type.convert
    assert convert("features/x.zarr", None, None) == Path("features/x.zarr")
    assert convert("s3://bucket/prefix", None, None) == "s3://bucket/prefix"
    assert parameters(command)["cache"].make_metavar(click.Context(find_command(command))) == "PATH"


def test_a_fold_is_refused_with_the_options() -> None:
    with pytest.raises(UsageError, match=r"^--fold 3/2: expected fold I of N as I/N, for example 1/5$"):
        TrainOptions(fold="3/2")


@pytest.mark.parametrize("name", ["faces", "decode", "precision", "dtype", "maps", "compress"])
def test_an_unknown_choice_of_extraction_is_refused(name: str) -> None:
    known = ", ".join({field.name: field for field in dataclasses.fields(ExtractOptions)}[name].metadata["choices"])
    with pytest.raises(UsageError, match=f"^unknown {name} 'other'; known: {known}$"):
        ExtractOptions(Path("root"), **{name: "other"})


def test_views_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^--views 0: there is at least 1, the clip as it is$"):
        ExtractOptions(Path("root"), views=0)
    with pytest.raises(UsageError, match=r"^--flip mirrors views other than the first; keep some, with --views 2"):
        ExtractOptions(Path("root"), flip=True)
    assert ExtractOptions(Path("root"), views=2, flip=True).views == 2


def test_aligned_images_are_not_decoded_on_a_gpu() -> None:
    with pytest.raises(UsageError, match=r"^--decode gpu decodes videos, and --faces cropped takes images"):
        ExtractOptions(Path("root"), decode="gpu", faces="cropped")


@pytest.mark.parametrize(
    ("name", "refused", "allowed"),
    [
        ("noise", (-0.1, math.nan, math.inf), (0.0, 3.0)),
        ("drop_modality", (-0.1, 1.01, math.nan), (0.0, 1.0)),
        ("mask_span", (-0.1, 1.01, math.nan), (0.0, 1.0)),
    ],
)
def test_augmentation_is_refused_beyond_its_range(
    name: str, refused: tuple[float, ...], allowed: tuple[float, ...]
) -> None:
    for value in refused:
        with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')} {value:g}: expected a number "):
            TrainOptions(**{name: value})
    for value in allowed:
        assert getattr(TrainOptions(**{name: value}), name) == value
    assert getattr(TrainOptions(), name) == 0


def test_runs_do_not_go_into_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "x.zarr"
    store.mkdir()
    monkeypatch.setenv("AVFUSE_CACHE", str(store))
    assert local_home() == store  # a folder like any other
    (store / "zarr.json").touch()
    assert local_home() == Path("cache")
    monkeypatch.setenv("AVFUSE_CACHE", str(tmp_path / "x.h5"))
    assert local_home() == Path("cache")
