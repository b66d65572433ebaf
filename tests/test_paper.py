"""The paper's figures, retyped from arXiv 2304.07958, Tables 1 to 3."""

from typing import Any

import pytest

from avfuse.paper import FIGURES, PaperFigure, paper_ccc, paper_dataset

RJA = "recursive_joint_attention"


@pytest.mark.parametrize(
    ("options", "valence", "arousal"),
    [
        ({"recursions": 1, "unimodal_blstm": False, "joint_blstm": False}, 0.670, 0.590),
        ({"recursions": 1, "unimodal_blstm": True, "joint_blstm": False}, 0.691, 0.646),
        ({"recursions": 1, "joint_blstm": False}, 0.691, 0.646),
        ({"recursions": 1}, 0.715, 0.688),
        ({"recursions": 2, "unimodal_blstm": False, "joint_blstm": False}, 0.703, 0.623),
        ({"unimodal_blstm": False, "joint_blstm": False}, 0.703, 0.623),
        ({"recursions": 2, "unimodal_blstm": True, "joint_blstm": True}, 0.721, 0.694),
        ({}, 0.721, 0.694),
        ({"recursions": 3}, 0.706, 0.652),
        ({"recursions": 4, "joint_blstm": True}, 0.685, 0.601),
    ],
)
def test_table_1(options: dict[str, Any], valence: float, arousal: float) -> None:
    for target, ccc in (("valence", valence), ("arousal", arousal)):
        figure = paper_ccc(RJA, options, target)
        assert figure is not None
        assert (figure.ccc, figure.table, figure.dataset, figure.partition) == (ccc, 1, "Affwild2", "validation")


@pytest.mark.parametrize(
    ("head", "valence", "arousal"),
    [
        ("concat", 0.493, 0.613),
        ("leader_follower", 0.469, 0.649),
        ("cross_attention", 0.541, 0.517),
        ("joint_cross_attention", 0.657, 0.580),
        ("lstm_transformer", 0.628, 0.654),
        (RJA, 0.721, 0.694),
    ],
)
def test_table_2_validation(head: str, valence: float, arousal: float) -> None:
    assert [getattr(paper_ccc(head, {}, target), "ccc", None) for target in ("valence", "arousal")] == [
        valence,
        arousal,
    ]


def test_table_2_test() -> None:
    test = {(figure.head, figure.target): figure.ccc for figure in FIGURES if figure.partition == "test"}
    assert test == {
        ("lstm_transformer_meng", "valence"): 0.606,
        ("lstm_transformer_meng", "arousal"): 0.596,
        ("lstm_transformer_karas", "valence"): 0.418,
        ("lstm_transformer_karas", "arousal"): 0.407,
        ("joint_cross_attention", "valence"): 0.451,
        ("joint_cross_attention", "arousal"): 0.389,
        (RJA, "valence"): 0.467,
        (RJA, "arousal"): 0.405,
    }


@pytest.mark.parametrize(
    ("head", "ccc"),
    [("audio_only", 0.312), ("visual_only", 0.415), ("concat", 0.378), ("cross_attention", 0.421), (RJA, 0.447)],
)
def test_table_3(head: str, ccc: float) -> None:
    figure = paper_ccc(head, {}, "fatigue")
    assert figure is not None
    assert (figure.ccc, figure.table, figure.dataset) == (ccc, 3, "Fatigue")


@pytest.mark.parametrize(
    ("head", "options", "ccc"),
    [
        (RJA, {"form": "released", "recursions": 1}, 0.715),
        (RJA, {"form": "released"}, 0.721),
        (RJA, {"form": "paper", "recursions": 3}, 0.706),
        ("joint_cross_attention", {"form": "released"}, 0.657),
        ("concat", {"form": "released"}, 0.493),
    ],
)
def test_the_released_form_is_the_same_row(head: str, options: dict[str, Any], ccc: float) -> None:
    figure = paper_ccc(head, options, "valence")
    assert figure is not None
    assert figure.ccc == ccc


def test_the_release_is_the_row_with_one_recursion() -> None:
    figure = paper_ccc(RJA, {"form": "released", "recursions": 1}, "arousal")
    assert figure is not None
    assert (figure.table, figure.method) == (1, "JA w/o recursion: U-BLSTM and J-BLSTM")


@pytest.mark.parametrize(
    ("head", "options", "target"),
    [
        (RJA, {"dropout": 0.5}, "valence"),
        ("concat", {"form": "released", "dropout": 0.1}, "valence"),
        ("audio_only", {"form": "released"}, "valence"),
        (RJA, {"recursions": 5}, "valence"),
        (RJA, {"recursions": 2, "joint_blstm": False}, "valence"),
        (RJA, {"recursions": True}, "valence"),
        (RJA, {"recursions": 3}, "fatigue"),
        (RJA, {}, "dominance"),
        ("concat", {"recursions": 2}, "valence"),
        ("concat", {"hidden": 64}, "fatigue"),
        ("audio_only", {}, "valence"),
        ("lstm_transformer_meng", {}, "valence"),
        ("gated", {}, "valence"),
    ],
)
def test_no_false_match(head: str, options: dict[str, Any], target: str) -> None:
    assert paper_ccc(head, options, target) is None


def test_every_figure_is_there_once() -> None:
    keys = {(f.table, f.dataset, f.partition, f.head, f.method, f.target) for f in FIGURES}
    assert len(keys) == len(FIGURES) == 7 * 2 + 10 * 2 + 5
    assert len(set(FIGURES)) == len(FIGURES)
    assert all(isinstance(figure, PaperFigure) and 0 < figure.ccc < 1 for figure in FIGURES)
    assert [paper_dataset(target) for target in ("arousal", "fatigue", "dominance")] == ["Affwild2", "Fatigue", None]
