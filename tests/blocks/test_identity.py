"""What tells two teachers apart."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.baselines import ConstantTeacher, ScrambledTeacher
from stillroom.blocks import Average, Cached, Frozen, FunctionTeacher, fingerprint
from stillroom.blocks.identity import check_identity, identity
from stillroom.data.batch import Batch
from stillroom.hub.model import Model


def net(seed: int = 0, features: int = 4) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(features, 3)


def image_net(**options) -> Model:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), net(features=1))
    return Model(inner, **({"channels": 1, "size": 8, "mean": [0.5], "std": [0.2]} | options))


class Scaled(nn.Module):
    """A network whose answers follow from more than its weights."""

    def __init__(self, **more) -> None:
        super().__init__()
        self.net = net()
        self.scale, self.beside, self.further, self.after = 1.0, [], {}, F.relu
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, inputs):
        return self.after(self.scale * self.net(inputs))


def named(text):
    def predict(batch):
        return batch.inputs

    predict.fingerprint = lambda: text
    return predict


def times(factor):
    return lambda value: factor * value


def loop(**more):
    made = Scaled(**more)
    made.beside = [made, made.further]
    made.further["beside"] = made.beside
    return made


DIFFERENT = {
    "weights": (net(0), net(1)),
    "class": (nn.Sequential(net(), nn.ReLU()), nn.Sequential(net(), nn.Tanh())),
    "option of a layer": (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
    "mean": (image_net(), image_net(mean=[0.4])),
    "std": (image_net(), image_net(std=[0.25])),
    "size": (image_net(), image_net(size=16)),
    "an attribute": (Scaled(), Scaled(scale=2.0)),
    "an attribute's attribute": (Scaled(further={"of": [1, (2, 3)]}), Scaled(further={"of": [1, (2, 4)]})),
    "an array": (Scaled(scale=np.ones(3)), Scaled(scale=np.zeros(3))),
    "a tensor that is no buffer": (Scaled(scale=torch.ones(3)), Scaled(scale=torch.zeros(3))),
    "a module that is not registered": (Scaled(beside=[net(0)]), Scaled(beside=[net(1)])),
    "a function inside": (Scaled(after=F.relu), Scaled(after=F.silu)),
    "what a function closes over": (Scaled(after=times(2)), Scaled(after=times(3))),
    "what a function does": (Scaled(after=lambda x: x + 1), Scaled(after=lambda x: x + 2)),
    "a partial": (Scaled(after=partial(F.elu, alpha=1.0)), Scaled(after=partial(F.elu, alpha=2.0))),
    "in a circle": (loop(), loop(scale=2.0)),
    "weights of an average": (Average([net(), net(1)]), Average([net(), net(1)], weights=[1, 2])),
    "of": (Average([net(), net(1)]), Average([net(), net(1)], of="probabilities")),
    "hidden in an average": (Average([Frozen(net())]), Average([Frozen(net(1))])),
    "hidden twice": (Average([Frozen(Average([Frozen(net())]))]), Average([Frozen(Average([Frozen(net(1))]))])),
    "mode": (Average([Frozen(net())]), Average([Frozen(net(), batch_norm="batch")])),
    "behind a cache": (Cached(net(), 4), Cached(net(1), 4)),
    "as a cache keeps it": (Cached(net(), 4), Cached(net(), 4, dtype=torch.float16)),
    "a control's": (ScrambledTeacher(Frozen(net())), ScrambledTeacher(Frozen(net(1)))),
    "which control": (ScrambledTeacher(net()), ConstantTeacher(net())),
    "a function's name": (named("one"), named("two")),
    "a version": (FunctionTeacher(len, version="1"), FunctionTeacher(len, version="2")),
    "how scores are read": (FunctionTeacher(len, version="1"), FunctionTeacher(len, version="1", probabilities=True)),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_teachers_that_may_answer_differently_have_two_identities(what):
    first, second = (Frozen(teacher) for teacher in DIFFERENT[what])
    assert identity(first) != identity(second)
    for teacher in (first, second):
        assert len(identity(teacher)) == 16
        assert identity(teacher) == identity(copy.deepcopy(teacher))
        check_identity(teacher)


def test_what_no_answer_follows_from_makes_no_difference():
    network = image_net()
    before = identity(network)
    network.eval().requires_grad_(False)
    assert identity(network) == before
    assert identity(image_net(source={"kind": "timm", "name": "x"}, notes=["new"], image_size=9)) == before
    cache = Cached(net(), 4)
    before = identity(cache)
    cache(Batch(torch.rand(2, 4), index=torch.tensor([0, 3])))
    assert identity(cache) == before


@pytest.mark.parametrize(
    "teacher", [len, times(2), FunctionTeacher(len), Average([net(), times(2)]), ConstantTeacher(times(2))]
)
def test_a_function_that_does_not_say_who_it_is_has_none(teacher):
    for asked in (identity, check_identity):
        with pytest.raises(ValueError, match=r"does not say who it is, expected a fingerprint\(\).*version="):
            asked(Frozen(teacher))


def test_a_module_with_a_fingerprint_of_its_own_is_read_no_further():
    class Counting(Scaled):
        def fingerprint(self):
            return fingerprint(self.net)

    teacher = Counting()
    before = identity(teacher)
    teacher.scale += 1
    assert identity(teacher) == before
    teacher.net.bias.data += 1
    assert identity(teacher) != before
