"""Trees taken apart: the skeleton as documented, names, copies, refusals."""

from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal

import numpy as np
import pytest
import torch
from torch import Tensor

from deepzero_apps.runs.trees import Tree, flatten, unflatten

Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("tree", "skeleton"),
    [
        ((1, 2.0), {"tuple": [1, 2.0]}),
        ({"a": 1, 2: "b"}, {"dict": [["a", 1], [2, "b"]]}),
        (OrderedDict(a=[]), {"ordered": [["a", []]]}),
        (Counter({5: 2}), {"counter": [[5, 2]]}),
        (float("-inf"), {"float": "-inf"}),
        (np.int8(3), {"numpy": ["int8", 3]}),
        ([None, True, "x"], [None, True, "x"]),
    ],
)
def test_skeleton_is_as_documented(tree: Tree, skeleton: Tree) -> None:
    assert flatten(tree) == (skeleton, {})

    back = unflatten(skeleton, {})
    assert back == tree
    assert type(back) is type(tree)


def test_flat_state_dict_keeps_its_names() -> None:
    state = torch.nn.BatchNorm1d(3).state_dict()

    assert flatten(state)[1].keys() == state.keys()


def test_equal_paths_get_names_of_their_own() -> None:
    a, b, c, d = torch.arange(4.0).unbind()
    tree = {"x": {0: a, "0": b}, "x/0": c, "__metadata__": d}

    skeleton, tensors = flatten(tree)

    assert list(tensors) == ["x/0", "x/0'", "x/0''", "__metadata__'"]
    assert unflatten(skeleton, tensors) == tree


def test_tensors_are_copies() -> None:
    weight = torch.zeros(2, requires_grad=True)

    _, tensors = flatten([weight, weight])
    tensors["0"] += 1

    assert weight.tolist() == [0, 0]
    assert tensors["1"].tolist() == [0, 0]
    assert not tensors["0"].requires_grad


def test_lazily_conjugated_or_negated_tensor_is_stored_as_it_reads() -> None:
    z = torch.tensor([1 + 2j], dtype=torch.complex64).conj()

    _, tensors = flatten({"conjugate": z, "negative": z.imag})

    assert torch.view_as_real(tensors["conjugate"]).tolist() == [[1, -2]]
    assert not tensors["conjugate"].is_conj()
    assert tensors["negative"].view(torch.int32).view(torch.float32).tolist() == [-2]
    assert not tensors["negative"].is_neg()


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Decimal(1), "Decimal"),
        (Pair(1, 2), "Pair"),
        ({1}, "set"),
        (1j, "complex"),
        (np.zeros(2), "ndarray"),
        (np.datetime64("2020"), "datetime64"),
        (torch.Generator(), "Generator"),
    ],
)
def test_unknown_type_is_refused_with_its_place(value: object, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"got {kind} at state\['a'\]\[1\]; convert it"):
        flatten({"a": [0, value]})


@pytest.mark.parametrize("key", [True, 1.0, None, (1, 2), np.int64(1)])
def test_key_of_another_type_is_refused(key: object) -> None:
    with pytest.raises(TypeError, match=r"keys of type str or int, got .* at state\[0\]"):
        flatten([{key: 1}])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, dtype=torch.complex128),
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
    ],
    ids=["complex128", "meta", "sparse"],
)
def test_tensor_that_safetensors_cannot_hold_is_refused(tensor: Tensor) -> None:
    with pytest.raises(TypeError, match=r"state must hold dense tensors .* at state\['w'\]"):
        flatten({"w": tensor})


def test_tree_that_holds_itself_is_refused() -> None:
    tree: list[Tree] = []
    tree.append(tree)

    with pytest.raises(ValueError, match=r"at most 100 levels deep, got more .* hold itself"):
        flatten(tree)


@pytest.mark.parametrize(
    ("skeleton", "message"),
    [({"code": "x"}, "known kind, got 'code'"), ({"numpy": ["object", 1]}, "got 'object'")],
)
def test_forged_skeleton_is_refused(skeleton: Tree, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unflatten(skeleton, {})
