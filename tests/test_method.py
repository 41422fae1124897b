import copy

import pytest
import torch
from torch import nn

from stillroom.baselines import KD
from stillroom.data.batch import Batch
from stillroom.method import Clock, Losses, Method, Needs
from tests.toys import batch, mlp


def test_the_total_is_the_weighted_sum():
    losses = Losses(kd=torch.tensor(2.0), label=torch.tensor(3.0), weights={"kd": 0.25})
    assert float(losses.total) == 3.5


def test_a_term_of_weight_zero_is_left_out_even_when_it_is_nan():
    label = torch.tensor(3.0, requires_grad=True)
    losses = Losses(kd=torch.tensor(torch.nan), label=label, weights={"kd": 0})
    assert float(losses.total.detach()) == 3.0
    assert list(losses) == ["kd", "label"]


def test_all_weights_zero_give_a_zero_that_is_connected():
    label = torch.tensor(3.0, requires_grad=True)
    losses = Losses(label=label, weights={"label": 0})
    losses.total.backward()
    assert float(losses.total.detach()) == 0
    assert float(label.grad) == 0


def test_only_keeps_weights_and_outputs():
    losses = Losses(a=torch.tensor(1.0), b=torch.tensor(2.0), weights={"b": 3.0}, outputs="said").only(["b"])
    assert float(losses.total) == 6.0
    assert losses.outputs == "said"


@pytest.mark.parametrize(
    ("terms", "weights", "message"),
    [
        ({}, {}, "at least one named term"),
        ({"kd": torch.ones(3)}, {}, r"'kd' must be a scalar tensor, given \(3,\)"),
        ({"kd": 1.0}, {}, "'kd' must be a scalar tensor, given float"),
        ({"kd": torch.tensor(1.0)}, {"kb": 1.0}, r"weights are given for \['kb'\], but the terms are \['kd'\]"),
    ],
)
def test_strange_losses_are_refused(terms, weights, message):
    with pytest.raises(ValueError, match=message):
        Losses(weights=weights, **terms)


def test_a_method_needs_its_teacher_a_module_and_something_to_train():
    with pytest.raises(ValueError, match="KD learns from a teacher, given none"):
        KD(mlp(), None)
    with pytest.raises(TypeError, match=r"student must be a torch\.nn\.Module, given str"):
        KD("resnet20", mlp())
    with pytest.raises(ValueError, match="nothing to train"):
        KD(mlp().requires_grad_(False), mlp())


def test_the_teacher_is_no_part_of_the_method():
    teacher = mlp(hidden=32, seed=1)
    method = KD(mlp(), teacher)
    own = {id(tensor) for tensor in (*method.parameters(), *method.state_dict().values())}
    assert not own & {id(tensor) for tensor in teacher.parameters()}
    assert not any(name.startswith("teacher") for name in method.state_dict())
    assert teacher not in list(method.modules())
    method.train()
    assert not teacher.training
    method.double()
    assert next(teacher.parameters()).dtype == torch.float64


def test_a_copy_is_independent_of_the_original():
    method = KD(mlp(), mlp(seed=1))
    other = copy.deepcopy(method)
    other.teacher.network[0].weight.zero_()
    assert float(method.teacher.network[0].weight.abs().sum()) > 0


def test_a_method_in_somebodys_own_loop_stands_at_the_end_of_time():
    method = KD(mlp(), mlp(seed=1))
    assert method.clock.ramp(0.5) == 1.0
    method.tell_time(step=5, epoch=0.5, progress=0.25)
    assert method.clock == Clock(5, 0.5, 0.25)
    assert method.clock.ramp(0.5) == 0.5
    assert method.clock.ramp(0) == 1.0


def test_by_default_one_player_has_everything():
    class WithAdapter(Method):
        needs = Needs()

        def __init__(self, student, teacher):
            super().__init__(student, teacher)
            self.adapter = nn.Linear(3, 3)

        def forward(self, batch):
            return Losses(gap=(self.adapter(self.student(batch.inputs)) - self.teacher(batch)).square().mean())

    method = WithAdapter(mlp(), mlp(seed=1))
    assert {id(p) for p in method.players()["student"]} == {id(p) for p in method.parameters()}
    ((player, losses),) = method.turns(batch())
    assert player == "student"
    assert list(losses) == ["gap"]
    assert method.product is method.student


@pytest.mark.parametrize("given", [(torch.zeros(2, 6), torch.zeros(2)), {"inputs": torch.zeros(2, 6)}, torch.zeros(2)])
def test_what_is_no_batch_is_refused(given):
    with pytest.raises(
        TypeError, match=rf"KD learns from a .*Batch, given a {type(given).__name__}: wrap what a loader"
    ):
        KD(mlp(), mlp(seed=1))(given)


def test_plain_numbers_in_lists_become_tensors():
    made = Batch(torch.zeros(3, 6), [0, 2, 1], [4, 5, 6])
    assert torch.equal(made.labels, torch.tensor([0, 2, 1]))
    assert torch.equal(made.index, torch.tensor([4, 5, 6]))
    assert list(KD(mlp(), mlp(seed=1))(made)) == list(KD(mlp(), mlp(seed=1))(batch()))
