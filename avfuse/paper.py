"""The paper's figures: the CCC values of Praveen, Granger & Cardinal, "Recursive Joint Attention for Audio-Visual
Fusion in Regression Based Emotion Recognition" (ICASSP 2023, arXiv 2304.07958), Tables 1 to 3, as data.

They were measured on Affwild2 and on the Fatigue data set with encoders trained for the purpose.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SOURCE = "arXiv 2304.07958, Tables 1-3"
AFFWILD2 = "Affwild2"
FATIGUE = "Fatigue"
_PROPOSED = "recursive_joint_attention"
_PROPOSED_METHOD = "Recursive joint attention + BLSTM"
_PROPOSED_DEFAULTS = {"recursions": 2, "unimodal_blstm": True, "joint_blstm": True}
_SAME_ROW = ("form",)  # by the equations or as the authors published it, a head is the same row of the paper


@dataclass(frozen=True)
class PaperFigure:
    """One CCC of the paper.

    Attributes
    ----------
    table : int
        Number of the table, 1 to 3.
    dataset, partition : str
        What was scored.
    method : str
        The paper's label of the row.
    head : str
        The fusion head that corresponds to it, or a key of its own where avfuse has none.
    head_options : dict
        The values of all head options that tell the rows of this head apart; empty where the paper has one.
    target : str
    ccc : float
    """

    table: int
    dataset: str
    partition: str
    method: str
    head: str
    head_options: Mapping[str, Any] = field(hash=False)
    target: str
    ccc: float


def _options(recursions: int, *, unimodal_blstm: bool = True, joint_blstm: bool = True) -> dict[str, Any]:
    return {"recursions": recursions, "unimodal_blstm": unimodal_blstm, "joint_blstm": joint_blstm}


# method, head options, valence, arousal; all on the validation partition of Affwild2
_TABLE_1: tuple[tuple[str, dict[str, Any], float, float], ...] = (
    (
        "JA w/o recursion: fusion w/o U-BLSTM",
        _options(1, unimodal_blstm=False, joint_blstm=False),
        0.670,
        0.590,
    ),
    ("JA w/o recursion: fusion w/o J-BLSTM", _options(1, joint_blstm=False), 0.691, 0.646),
    ("JA w/o recursion: U-BLSTM and J-BLSTM", _options(1), 0.715, 0.688),
    ("JA w/ recursion: w/o BLSTMs t=2", _options(2, unimodal_blstm=False, joint_blstm=False), 0.703, 0.623),
    ("JA w/ recursion: BLSTMs t=2", _options(2), 0.721, 0.694),
    ("JA w/ recursion: BLSTMs t=3", _options(3), 0.706, 0.652),
    ("JA w/ recursion: BLSTMs t=4", _options(4), 0.685, 0.601),
)
# partition, method, head, valence, arousal; all on Affwild2
_TABLE_2: tuple[tuple[str, str, str, float, float], ...] = (
    ("validation", "Kuhnke et al. feature concatenation", "concat", 0.493, 0.613),
    ("validation", "Zhang et al. leader-follower attention", "leader_follower", 0.469, 0.649),
    ("validation", "Rajasekhar et al. cross attention", "cross_attention", 0.541, 0.517),
    ("validation", "Rajasekhar et al. joint cross attention", "joint_cross_attention", 0.657, 0.580),
    ("validation", "LSTM + transformers on the paper's features", "lstm_transformer", 0.628, 0.654),
    ("validation", _PROPOSED_METHOD, _PROPOSED, 0.721, 0.694),
    ("test", "Meng et al. LSTM + transformers", "lstm_transformer_meng", 0.606, 0.596),
    ("test", "Karas et al. LSTM + transformers", "lstm_transformer_karas", 0.418, 0.407),
    ("test", "Rajasekhar et al. joint cross attention", "joint_cross_attention", 0.451, 0.389),
    ("test", _PROPOSED_METHOD, _PROPOSED, 0.467, 0.405),
)
# method, head, fatigue; all on the validation partition of Fatigue
_TABLE_3: tuple[tuple[str, str, float], ...] = (
    ("Audio only (ResNet-18)", "audio_only", 0.312),
    ("Visual only (R3D)", "visual_only", 0.415),
    ("Feature concatenation", "concat", 0.378),
    ("Cross attention", "cross_attention", 0.421),
    (_PROPOSED_METHOD, _PROPOSED, 0.447),
)


def _defaults(head: str) -> dict[str, Any]:
    return dict(_PROPOSED_DEFAULTS) if head == _PROPOSED else {}


FIGURES = (
    *(
        PaperFigure(1, AFFWILD2, "validation", method, _PROPOSED, options, target, ccc)
        for method, options, valence, arousal in _TABLE_1
        for target, ccc in (("valence", valence), ("arousal", arousal))
    ),
    *(
        PaperFigure(2, AFFWILD2, partition, method, head, _defaults(head), target, ccc)
        for partition, method, head, valence, arousal in _TABLE_2
        for target, ccc in (("valence", valence), ("arousal", arousal))
    ),
    *(
        PaperFigure(3, FATIGUE, "validation", method, head, _defaults(head), "fatigue", ccc)
        for method, head, ccc in _TABLE_3
    ),
)


def paper_dataset(target: str) -> str | None:
    """Return the data set on which the paper rates a target, or None where it does not know the target."""
    return next((figure.dataset for figure in FIGURES if figure.target == target), None)


def paper_ccc(head: str, head_options: Mapping[str, Any], target: str) -> PaperFigure | None:
    """Return the paper's figure for a head on the validation partition, or None where it has none.

    `head_options` may leave out what equals the paper's defaults (recursions=2, both BLSTMs). A head's form does not
    matter: the published code is what a row was measured with, the equations are what the paper says of it. Any other
    option that the paper's rows do not name (a dropout, a hidden size) makes another head, of which it says nothing.
    """
    named = {key: value for key, value in head_options.items() if key not in _SAME_ROW}
    wanted = _typed({**_defaults(head), **named})
    for figure in FIGURES:
        same = (figure.head, figure.partition, figure.target) == (head, "validation", target)
        if same and _typed(figure.head_options) == wanted:
            return figure
    return None


def _typed(options: Mapping[str, Any]) -> dict[str, tuple[type, Any]]:
    """Keep true and 1 apart, which compare equal."""
    return {key: (type(value), value) for key, value in options.items()}
