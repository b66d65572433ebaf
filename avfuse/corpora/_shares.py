"""Partitions of a corpus that declares none: shares of its subjects, drawn by a seed."""

from collections.abc import Iterable
from dataclasses import dataclass

from avfuse.partitions import split_by_subject
from avfuse.schema import UsageError

VALIDATION, TEST, SPLIT_SEED = 0.2, 0.0, 0


@dataclass(frozen=True)
class Shares:
    """The arguments of a corpus that tell how its subjects are spread over partitions."""

    validation: float
    test: float
    split_seed: int

    def draw(self, subjects: Iterable[str], remedy: str | None = None) -> dict[str, str]:
        """Return the partition of each subject; raises like `split_by_subject`, with what to do about too few."""
        names = sorted(set(subjects))
        partitions = split_by_subject(
            names, self.validation, self.test, self.split_seed, remedy=remedy or "add subjects"
        )
        return dict(zip(names, partitions, strict=True))

    def refuse(self, declared: str) -> None:
        """Refuse arguments that would have no effect, as the partitions are declared there.

        Raises
        ------
        UsageError
            If any of the arguments is given.
        """
        if self != Shares(VALIDATION, TEST, SPLIT_SEED):
            given = f"validation={self.validation:g}, test={self.test:g}, split_seed={self.split_seed}"
            raise UsageError(f"{given}: {declared}, so none are drawn; leave these options out, or the partitions")
