"""Which data sets the micro-batches of an update come from, and how many images of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from densekit.errors import DensekitError


class Mixing:
    """How several data sets share the updates of a run: a pure function of the update's number.

    Args:
        shares: of each data set by name, all above 0.
        batch_size: images in a round of micro-batches, over all ranks: one of each set or, in turn, of one set.
        in_turn: the images of an update come from one set, each set as often as its share says; else from every set, in
            proportion to the shares and at least one.

    Attributes:
        sizes: images of a round by data set; in turn of a round of that set.
        parts: the shares as parts of 1.

    Raises:
        DensekitError: fewer images than sets.
    """

    def __init__(self, shares: Mapping[str, float], batch_size: int, *, in_turn: bool = False) -> None:
        self.names, self.in_turn = list(shares), in_turn
        self.parts = {name: share / sum(shares.values()) for name, share in shares.items()}
        sizes = [batch_size] * len(shares) if in_turn else _apportioned([*self.parts.values()], batch_size)
        self.sizes = dict(zip(self.names, sizes))
        self._turns: list[int] = []
        self._counts = [0] * len(shares)

    def sets(self, step: int) -> list[str]:
        """The names of the sets that an update (0-based) takes micro-batches of."""
        return [self.names[self._turn(step)]] if self.in_turn else self.names

    def before(self, name: str, step: int) -> int:
        """How many updates took micro-batches of a set before an update."""
        if not self.in_turn:
            return step
        return sum(self._turn(earlier) == self.names.index(name) for earlier in range(step))

    def _turn(self, step: int) -> int:
        """The set that is most behind its share, the first of equals."""
        while len(self._turns) <= step:
            done = len(self._turns) + 1
            behind = [part * done - count for part, count in zip(self.parts.values(), self._counts)]
            chosen = max(range(len(behind)), key=lambda i: (round(behind[i], 9), -i))
            self._turns.append(chosen)
            self._counts[chosen] += 1
        return self._turns[step]


def _apportioned(parts: Sequence[float], count: int) -> list[int]:
    """Whole numbers in proportion to parts of 1 that sum to ``count``, each at least 1; by largest remainders."""
    if count < len(parts):
        raise DensekitError(
            f"train.batch_size / train.accumulate = {count} images can't be taken from {len(parts)} data sets; make it "
            f"at least {len(parts)}, or set train.mixing=turn"
        )
    spare = count - len(parts)
    exact = [max(0.0, part * count - 1) for part in parts]
    exact = [one * spare / max(sum(exact), 1e-12) for one in exact]
    whole = [int(one + 1e-9) for one in exact]
    order = sorted(range(len(parts)), key=lambda i: (round(whole[i] - exact[i], 9), i))
    for i in order[: spare - sum(whole)]:
        whole[i] += 1
    return [1 + one for one in whole]
