"""Who took what: interactions of users with items as a set of pairs, negatives, and splits per user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.extras import require


class Interactions:
    """A set of (user, item) pairs: implicit feedback, each pair once, ordered by user and then by item.

    Args:
        users: `(E,)` int64 in [0, user_count).
        items: `(E,)` int64 in [0, item_count); pairs may come in any order, and repeated ones count once.
        user_count: U.
        item_count: I.

    Raises:
        ValueError: no pair, shapes that differ, or a number out of range.

    Example:
        >>> listened = Interactions(torch.tensor([0, 0, 1]), torch.tensor([2, 0, 1]), 2, 3)
        >>> listened.items_of(0).tolist(), len(listened)
        ([0, 2], 3)
    """

    def __init__(self, users: Tensor, items: Tensor, user_count: int, item_count: int) -> None:
        if users.shape != items.shape or users.ndim != 1:
            raise ValueError(
                f"users and items must both be (E,), given {tuple(users.shape)} and {tuple(items.shape)}: one pair each"
            )
        if not len(users):
            raise ValueError("there are no interactions: give at least one (user, item) pair")
        for name, numbers, count in (("users", users, user_count), ("items", items, item_count)):
            lowest, highest = int(numbers.min()), int(numbers.max())
            if lowest < 0 or highest >= count:
                raise ValueError(f"{name} must lie in [0, {count}), given numbers from {lowest} to {highest}")
        self.user_count, self.item_count = int(user_count), int(item_count)
        self.keys = (users.long() * item_count + items.long()).unique()  # sorted
        self.users, self.items = self.keys // item_count, self.keys % item_count

    # ---- from and to what others have ----------------------------------------------------------------------------

    @classmethod
    def from_pairs(cls, pairs: Any, *, user_count: int | None = None, item_count: int | None = None) -> Interactions:
        """Take `(E, 2)` whole numbers (user, item) from 0: a tensor, an array or a list.

        Args:
            pairs: one row each.
            user_count: U; one more than the highest number when not given.
            item_count: I; the same.
        """
        table = torch.as_tensor(np.asarray(pairs))
        if table.ndim != 2 or table.shape[1] != 2 or table.is_floating_point():
            raise ValueError(f"pairs must be (E, 2) whole numbers, given {tuple(table.shape)} {table.dtype}")
        users, items = table.long().unbind(1)
        counts = [int(n.max()) + 1 if len(n) else 0 for n in (users, items)]
        return cls(users, items, user_count or counts[0], item_count or counts[1])

    @classmethod
    def from_matrix(cls, matrix: Any) -> Interactions:
        """Take a matrix `(U, I)` whose non-zeros are the pairs: SciPy sparse, NumPy, or a torch tensor."""
        if isinstance(matrix, Tensor):
            rows, columns = matrix.to_dense().nonzero(as_tuple=True)
        else:
            rows, columns = (torch.from_numpy(part.astype(np.int64)) for part in matrix.nonzero())
        if len(matrix.shape) != 2:
            raise ValueError(f"an interaction matrix has users as rows and items as columns, given {matrix.shape}")
        return cls(rows, columns, *matrix.shape)

    def to_scipy(self) -> Any:
        """Return a SciPy CSR matrix `(U, I)` of ones."""
        from scipy.sparse import csr_matrix

        ones = np.ones(len(self), dtype=np.float32)
        return csr_matrix((ones, (self.users.numpy(), self.items.numpy())), (self.user_count, self.item_count))

    @classmethod
    def from_pyg(cls, data: Any, relation: tuple[str, str, str] | None = None) -> Interactions:
        """Take a torch_geometric graph.

        Args:
            data: a `HeteroData` with one relation between two kinds of nodes, or a `Data` whose nodes are U users, then
                I items, with a `user_count` attribute (as `to_pyg` makes it); directions and self-loops do not matter.
            relation: which relation of a `HeteroData`; its only one when not given.
        """
        if hasattr(data, "edge_types"):
            if relation is None and len(data.edge_types) != 1:
                raise ValueError(f"the graph has {len(data.edge_types)} relations: name one of {data.edge_types}")
            source, _, target = kind = relation or data.edge_types[0]
            users, items = data[kind].edge_index
            return cls(users, items, data[source].num_nodes, data[target].num_nodes)
        user_count, (first, second) = int(data.user_count), data.edge_index
        forward = (first < user_count) & (second >= user_count)
        backward = (second < user_count) & (first >= user_count)
        users = torch.cat([first[forward], second[backward]])
        items = torch.cat([second[forward], first[backward]]) - user_count
        return cls(users, items, user_count, data.num_nodes - user_count)

    def to_pyg(self) -> Any:
        """Return a torch_geometric `Data`: U users, then I items, both directions of each pair, no self-loops."""
        items = self.items + self.user_count
        both = torch.stack([torch.cat([self.users, items]), torch.cat([items, self.users])])
        return require("torch_geometric.data").Data(
            edge_index=both, num_nodes=self.user_count + self.item_count, user_count=self.user_count
        )

    # ---- parts ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"Interactions({len(self)} pairs of {self.user_count} users and {self.item_count} items)"

    @property
    def node_count(self) -> int:
        """U + I."""
        return self.user_count + self.item_count

    def items_of(self, user: int) -> Tensor:
        """`(k,)` items of a user, in order."""
        return self.items[self.users == user]

    def user_degrees(self) -> Tensor:
        """`(U,)` number of items per user."""
        return self.users.bincount(minlength=self.user_count)

    def item_degrees(self) -> Tensor:
        """`(I,)` number of users per item."""
        return self.items.bincount(minlength=self.item_count)

    def dense(self, users: Tensor) -> Tensor:
        """`(B, I)` bool: which items these users have taken."""
        found = torch.zeros(len(users), self.item_count, dtype=torch.bool)
        place = torch.full((self.user_count,), -1)
        place[users] = torch.arange(len(users))
        kept = place[self.users] >= 0
        found[place[self.users[kept]], self.items[kept]] = True
        return found[place[users]]  # a user named twice has one row there

    def where(self, kept: Tensor) -> Interactions:
        """Keep some pairs, `(E,)` bool, and all users and items."""
        return Interactions(self.users[kept], self.items[kept], self.user_count, self.item_count)

    def union(self, other: Interactions) -> Interactions:
        """All pairs of both, over the same users and items."""
        self.check_same_nodes(other)
        users, items = torch.cat([self.users, other.users]), torch.cat([self.items, other.items])
        return Interactions(users, items, self.user_count, self.item_count)

    def contains(self, users: Tensor, items: Tensor) -> Tensor:
        """`(B,)` bool: whether these pairs are among the interactions."""
        keys, known = users * self.item_count + items, self.keys.to(users.device)
        return known[torch.searchsorted(known, keys).clamp(max=len(known) - 1)] == keys

    def keep_nodes(self, users: Tensor, items: Tensor) -> Interactions:
        """Keep some users and items, renumbered in the order given (the new number is the place in the list)."""
        user_place = torch.full((self.user_count,), -1).index_put((users,), torch.arange(len(users)))
        item_place = torch.full((self.item_count,), -1).index_put((items,), torch.arange(len(items)))
        new_users, new_items = user_place[self.users], item_place[self.items]
        kept = (new_users >= 0) & (new_items >= 0)
        return Interactions(new_users[kept], new_items[kept], len(users), len(items))

    def check_every_user(self) -> None:
        """Refuse users without any item.

        Raises:
            ValueError: with how many and which first.
        """
        empty = (self.user_degrees() == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"{len(empty)} of {self.user_count} users have no interaction (user {', '.join(map(str, empty[:3]))}"
                f"{', ...' if len(empty) > 3 else ''}): drop them first (keep_nodes), nothing can be learned for them"
            )

    def check_same_nodes(self, other: Interactions) -> None:
        """Refuse interactions of other numbers of users or items."""
        mine, theirs = (self.user_count, self.item_count), (other.user_count, other.item_count)
        if mine != theirs:
            raise ValueError(f"both need the same users and items, given {mine} and {theirs} (users, items)")

    def sample_negatives(self, users: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw one item per user, uniformly among the items that the user has not taken.

        Args:
            users: `(B,)`, on any device.
            generator: of the draws; the global one when not given.

        Raises:
            ValueError: a user has taken all items.
        """
        full = self.user_degrees().to(users.device)[users] >= self.item_count
        if bool(full.any()):
            raise ValueError(f"user {int(users[full][0])} has taken all {self.item_count} items: there is no negative")

        def draw(count: int) -> Tensor:
            return torch.randint(self.item_count, (count,), generator=generator, device=users.device)

        items = draw(len(users))
        again = self.contains(users, items).nonzero().flatten()
        while len(again):
            items[again] = draw(len(again))
            again = again[self.contains(users[again], items[again])]
        return items

    def with_fakes(self, share: float, *, avoid: Interactions | None = None, seed: int = 0) -> tuple[Interactions, Any]:
        """Add pairs that never happened, for tests of denoising.

        Args:
            share: fakes per real pair, above 0.
            avoid: further pairs that no fake may be (held-out ones).
            seed: of the draws.

        Returns:
            All pairs, and `(E,)` bool: which of them are fakes.
        """
        known = self if avoid is None else self.union(avoid)
        random = torch.Generator().manual_seed(seed)
        keys = torch.zeros(0, dtype=torch.int64)
        wanted, free = round(share * len(self)), self.user_count * self.item_count - len(known)
        if not 0 < wanted <= free // 2:
            raise ValueError(f"share={share} asks for {wanted} fake pairs, but must ask for 1 to {free // 2}")
        while len(keys) < wanted:
            users = torch.randint(self.user_count, (wanted,), generator=random)
            items = torch.randint(self.item_count, (wanted,), generator=random)
            new = users * self.item_count + items
            keys = torch.cat([keys, new[~known.contains(users, items)]]).unique()
        keys = keys[torch.randperm(len(keys), generator=random)[:wanted]]
        fakes = Interactions(keys // self.item_count, keys % self.item_count, self.user_count, self.item_count)
        everything = self.union(fakes)
        return everything, fakes.contains(everything.users, everything.items)

    def split(self, *, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> InteractionSplits:
        """Cut every user's items at random into training, validation and test.

        A user with k items gives round(test * k) of them to the test and round(validation * k) to validation, as long
        as one is left to train on.

        Args:
            validation: share per user, in [0, 1).
            test: share per user, in [0, 1).
            seed: of the cut.

        Raises:
            ValueError: a share out of range, nothing held out at all, or a user without any item.
        """
        if not (min(validation, test) >= 0 and 0 < validation + test < 1):
            raise ValueError(f"shares must be 0 or more and sum to less than 1, given {validation} and {test}")
        self.check_every_user()
        random = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(self), generator=random)
        shuffled = shuffled[self.users[shuffled].argsort(stable=True)]  # by user, each user's items in random order
        degrees = self.user_degrees()
        rank = torch.empty_like(shuffled)
        rank[shuffled] = torch.arange(len(self)) - (degrees.cumsum(0) - degrees)[self.users[shuffled]]
        tested = torch.minimum((degrees * test).round().long(), degrees - 1)
        validated = torch.minimum((degrees * validation).round().long(), degrees - 1 - tested)
        in_test = rank < tested[self.users]
        in_validation = ~in_test & (rank < (tested + validated)[self.users])
        return InteractionSplits(
            self.where(~in_test & ~in_validation),
            self.where(in_validation) if validation else None,
            self.where(in_test) if test else None,
        )


@dataclass(frozen=True)
class InteractionSplits:
    """Interactions cut per user.

    Attributes:
        train: what is trained on; every user has an item here.
        validation: what choices are made by; None where there is none.
        test: what is reported; None where there is none.

    Raises:
        ValueError: a user has nothing to train on, or the parts have other users or items.
    """

    train: Interactions
    validation: Interactions | None = None
    test: Interactions | None = None

    def __post_init__(self) -> None:
        self.train.check_every_user()
        for part in (self.validation, self.test):
            if part is not None:
                self.train.check_same_nodes(part)
