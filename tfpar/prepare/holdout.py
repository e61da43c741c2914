"""Which images validate: some of each class, or whole groups; and whether an image is on both sides."""

import hashlib

import numpy as np

from tfpar import errors
from tfpar.prepare.arrays import SplitWriter
from tfpar.prepare.inputs import Input

_SHOWN = 3  # pairs of pictures in a message
_MOST_MOVES, _MOST_SWAPS = 1000, 1e7  # of groups; numbers that comparing all swaps may take
_NOTHING = 1e-9  # of a class


def chosen(writer: SplitWriter, class_names: list[str], *, fraction: float, seed: int) -> np.ndarray:
    """Return the positions of the images that validate: about `fraction` of each class.

    A hash of (seed, name) ranks images and groups. It needs no random stream, so the ranks of the others stay when pictures
    are added later; some change sides, because more images validate then.
    """
    by_group = any(item.group is not None for item in writer.items)
    positions = _of_groups(writer, fraction, seed) if by_group else _of_each_class(writer, class_names, fraction, seed)
    labels = writer.labels
    numbers = np.bincount(labels), np.bincount(labels[positions], minlength=labels.max() + 1)
    for name, images, held_out in zip(class_names, *numbers, strict=True):
        if images and not held_out:
            print(f"class {name}: {'its group' if by_group else 'its one image'} goes to train, none to validation")
    return positions


def _of_each_class(writer: SplitWriter, class_names: list[str], fraction: float, seed: int) -> np.ndarray:
    labels, found = writer.labels, []
    for label in range(len(class_names)):
        members = np.flatnonzero(labels == label)
        wanted = min(max(1, round(fraction * len(members))), len(members) - 1)
        found.extend(sorted(members, key=lambda i: _rank(seed, writer.items[i].source))[:wanted])
    return np.asarray(sorted(found), np.int64)


def _of_groups(writer: SplitWriter, fraction: float, seed: int) -> np.ndarray:
    """Take groups in the order of their hashes while that brings the classes closer to the fraction. Then move the group, or
    swap the two, that brings them closest, until nothing does. No class may lose all of its training images."""
    names, group_of = np.unique([item.group for item in writer.items], return_inverse=True)
    counts = np.zeros((len(names), writer.labels.max() + 1))  # images of each group and class
    np.add.at(counts, (group_of, writer.labels), 1)
    counts = counts[:, counts.any(axis=0)]
    shares = counts / counts.sum(axis=0)

    def distance(share: np.ndarray) -> np.ndarray:
        """Return how far the held-out shares [..., classes] are from the fraction; a class without any is far."""
        apart = ((share - fraction) ** 2).sum(axis=-1) + (share < _NOTHING).sum(axis=-1)
        return np.where((share > 1 - _NOTHING).any(axis=-1), np.inf, apart)

    held_out, share = np.zeros(len(names), bool), np.zeros(counts.shape[1])
    for group in sorted(range(len(names)), key=lambda group: _rank(seed, names[group])):
        closer = ((share + shares[group] - fraction) ** 2).sum() < ((share - fraction) ** 2).sum()
        if closer and distance(share + shares[group]) < np.inf:
            held_out[group], share = True, share + shares[group]
    for _ in range(_MOST_MOVES):
        inside, outside = np.flatnonzero(held_out), np.flatnonzero(~held_out)
        moves = [(group,) for group in range(len(names))]
        after = [share + np.where(held_out[:, np.newaxis], -shares, shares)]
        if len(inside) * shares.size < _MOST_SWAPS:
            moves += [(one, other) for one in inside for other in outside]
            after += [share - shares[one] + shares[outside] for one in inside]
        distances = distance(np.concatenate(after))
        best = int(distances.argmin())
        if distances[best] >= distance(share) - _NOTHING:
            break
        held_out[list(moves[best])] ^= True
        share = shares[held_out].sum(axis=0)
    return np.flatnonzero(held_out[group_of])


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def check_groups(splits: dict[str, SplitWriter]) -> None:
    """Refuse splits that the source gives where a group is in two of them."""
    split_of: dict[str, str] = {}
    for split, writer in splits.items():
        for group in {item.group for item in writer.items} - {None}:
            if split_of.setdefault(group, split) != split:
                raise errors.DataError(f"group {group} is in {split_of[group]} and in {split}; move it to one of them")


def tell_same_pictures(splits: dict[str, SplitWriter], class_names: list[str]) -> None:
    """Print a line where the same pixels are in two classes, and one where they are in two splits."""
    digests = np.concatenate([np.frombuffer(writer.digests, "V16") for writer in splits.values()])
    _, inverse, counts = np.unique(digests, return_inverse=True, return_counts=True)
    places = [(split, item) for split, writer in splits.items() for item in writer.items]
    first: dict[int, tuple[str, Input]] = {}
    in_two_classes, in_two_splits = [], []
    for position in np.flatnonzero(counts[inverse] > 1):
        split, here = places[position]
        other_split, other = first.setdefault(inverse[position], (split, here))
        if here.label != other.label:
            names = class_names[other.label], class_names[here.label]
            in_two_classes.append(f"{other.source} in {names[0]}, {here.source} in {names[1]}")
        elif split != other_split:
            in_two_splits.append(f"{other.source} in {other_split}, {here.source} in {split}")
    for found, where in ((in_two_classes, "two classes"), (in_two_splits, "two splits")):
        if found:
            print(f"same pictures in {where}: {len(found)} ({'; '.join(found[:_SHOWN])})")
