import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn

from stillroom.blocks import Average, Cached, Frozen, Taps, tap_root, unwrapped
from stillroom.data.batch import Batch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.scale = nn.Linear(width, width, bias=False)

    def forward(self, x):
        return x + self.scale(self.mlp(x))


class Network(nn.Module):
    def __init__(self, width: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Owner(nn.Module):
    """What a method looks like: it trains a student, hides a teacher and taps both."""

    def __init__(self) -> None:
        super().__init__()
        self.student = Network()
        self.teacher = Frozen(Network())
        self.student_taps = Taps(self.student, "blocks.*")
        self.teacher_taps = Taps(self.teacher, ["blocks.2"])

    def forward(self, x):
        self.teacher(x)
        return self.student(x)


class Wrapper(nn.Module):
    """What normalises the inputs for the network inside it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def tap_root(self) -> nn.Module:
        return self.network

    def forward(self, x):
        return self.network(2 * x)


def hooks_on(module: nn.Module) -> int:
    return sum(len(inner._forward_hooks) + len(inner._forward_pre_hooks) for inner in module.modules())


def by_hand(network: Network, x: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of the three blocks, computed without calling any module."""
    x, outputs = x @ network.stem.weight.T + network.stem.bias, []
    for block in network.blocks:
        hidden = torch.tanh(x @ block.mlp[0].weight.T + block.mlp[0].bias)
        x = x + hidden @ block.scale.weight.T
        outputs.append(x)
    return outputs


def test_features_are_what_the_modules_returned_in_the_order_asked_for():
    network, x = Network(), torch.randn(5, 4)
    taps = Taps(network, ["blocks.2", "blocks.0"])
    network(x)
    expected = by_hand(network, x)
    assert list(taps.features) == ["blocks.2", "blocks.0"]
    torch.testing.assert_close(taps.features["blocks.2"], expected[2])
    torch.testing.assert_close(taps.features["blocks.0"], expected[0])


def test_gradients_flow_through_a_feature_to_what_came_before_it_only():
    network = Network()
    taps = Taps(network, "blocks.0")
    network(torch.randn(5, 4))
    taps.features["blocks.0"].sum().backward()
    assert network.stem.weight.grad.abs().sum() > 0
    assert network.blocks[1].scale.weight.grad is None


@pytest.mark.parametrize(
    ("pattern", "tapped"),
    [
        ("blocks.*", ("blocks.0", "blocks.1", "blocks.2")),
        ("blocks.*.mlp", ("blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp")),
        ("b*.[02]", ("blocks.0", "blocks.2")),
        ("**.scale", ("blocks.0.scale", "blocks.1.scale", "blocks.2.scale")),
        ("blocks.1.**", ("blocks.1", "blocks.1.mlp", "blocks.1.mlp.0", "blocks.1.mlp.1", "blocks.1.scale")),
        (["head", "blocks.?", "blocks.1"], ("head", "blocks.0", "blocks.1", "blocks.2")),
    ],
)
def test_patterns_stay_within_a_part_of_a_name_and_two_stars_do_not(pattern, tapped):
    assert Taps(Network(), pattern).tapped == tapped


def test_a_wrong_name_is_answered_with_the_nearest_names_and_how_to_list_all():
    with pytest.raises(ValueError, match=r"Network .*'block\.1'.* 18 names.*'blocks\.1'.*Taps\.names\(module\)"):
        Taps(Network(), "block.1")
    with pytest.raises(ValueError, match=r"'scale'.*'blocks\.0\.scale'"):
        Taps(Network(), "scale")
    with pytest.raises(ValueError, match="at least one module name"):
        Taps(Network(), [])
    assert len(Taps.names(Network())) == 18
    assert Taps.names(Network())[:4] == ["stem", "blocks", "blocks.0", "blocks.0.mlp"]


def test_removal_leaves_nothing_on_the_network():
    network = Network()
    taps = Taps(network, "blocks.*")
    assert hooks_on(network) == 4
    taps.remove()
    taps.remove()
    assert hooks_on(network) == 0
    network(torch.randn(5, 4))
    with pytest.raises(RuntimeError, match=r"'blocks\.0' has no output recorded"):
        _ = taps.features
    pickle.loads(pickle.dumps(network))


def test_other_hooks_stay():
    network, calls = Network(), []
    network.head.register_forward_hook(lambda *_: calls.append(1))
    with Taps(network, "head"):
        network(torch.randn(5, 4))
    network(torch.randn(5, 4))
    assert len(calls) == 2


def test_a_with_block_removes_its_taps_after_an_error_too():
    network = Network()
    with pytest.raises(ZeroDivisionError), Taps(network, "head"):
        raise ZeroDivisionError
    assert hooks_on(network) == 0


def test_two_taps_on_one_network_do_not_disturb_each_other():
    network, x = Network(), torch.randn(5, 4)
    first, second = Taps(network, "stem"), Taps(network, ["stem", "head"])
    logits = network(x)
    first.remove()
    assert second.features["head"] is logits
    logits = network(x)
    assert second.features["head"] is logits


def test_a_copied_owner_taps_its_own_copy():
    owner, x, y = Owner(), torch.randn(5, 4), torch.randn(6, 4)
    owner(x)  # what is recorded hangs on a graph and could not be copied
    twin = copy.deepcopy(owner)
    with torch.no_grad():
        for parameter in (*twin.student.parameters(), *twin.teacher.network.parameters()):
            parameter.mul_(0.5)
    with pytest.raises(RuntimeError, match="no output recorded"):
        _ = twin.student_taps.features
    twin(y)
    torch.testing.assert_close(twin.student_taps.features["blocks.2"], by_hand(twin.student, y)[2])
    torch.testing.assert_close(twin.teacher_taps.features["blocks.2"], by_hand(twin.teacher.network, y)[2])
    torch.testing.assert_close(owner.student_taps.features["blocks.2"], by_hand(owner.student, x)[2])
    owner(x)
    assert twin.student_taps.features["blocks.2"].shape == (6, 4)
    twin.student_taps.remove()
    assert hooks_on(twin.student) == 0
    assert hooks_on(owner.student) == 4


def test_a_copied_owner_survives_a_removal_before_the_copy():
    owner = Owner()
    owner.student_taps.remove()
    twin = copy.deepcopy(owner)
    twin(torch.randn(5, 4))
    assert hooks_on(twin.student) == 0


def test_a_network_copied_alone_records_nothing_and_leaves_the_original_be():
    network, x = Network(), torch.randn(5, 4)
    taps = Taps(network, "head")
    logits = network(x)
    twin = copy.deepcopy(network)
    twin(torch.randn(7, 4))
    assert taps.features["head"] is logits
    assert [hook.output for hook in twin.head._forward_hooks.values()] == [None]


def test_a_pickled_owner_taps_what_comes_back():
    owner, x = Owner(), torch.randn(5, 4)
    owner(x)
    twin = pickle.loads(pickle.dumps(owner))
    twin(x)
    torch.testing.assert_close(twin.student_taps.features["blocks.1"], by_hand(owner.student, x)[1])
    torch.testing.assert_close(twin.teacher_taps.features["blocks.2"], by_hand(owner.teacher.network, x)[2])


def test_an_owner_moves_with_its_taps_and_keeps_them_out_of_its_state():
    owner = Owner().to(torch.float64).train()
    x = torch.randn(5, 4, dtype=torch.float64)
    owner(x)
    assert owner.student_taps.features["blocks.0"].dtype == torch.float64
    assert owner.teacher_taps.features["blocks.2"].dtype == torch.float64
    assert not owner.teacher_taps.features["blocks.2"].requires_grad
    assert set(owner.state_dict()) == {f"student.{key}" for key in Network().state_dict()}


def test_each_forward_forgets_the_one_before():
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.left(x) if x.sum() > 0 else self.right(x)

    network = Choosy()
    taps = Taps(network, ["left"])
    network(torch.ones(1, 4))
    assert taps.features["left"].shape == (1, 4)
    network(-torch.ones(1, 4))
    with pytest.raises(RuntimeError, match="'left' has no output recorded"):
        _ = taps.features


def test_of_several_calls_in_one_forward_the_last_counts():
    activation = nn.ReLU()
    network = nn.Sequential(nn.Linear(4, 3), activation, nn.Linear(3, 2), activation)
    taps = Taps(network, "1")
    assert taps.tapped == ("1",)
    output = network(torch.randn(5, 4))
    assert taps.features["1"] is output
    assert Taps(network, "3").tapped == ("3",)  # its other name can be asked for


def test_a_feature_changed_in_place_is_refused():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    taps = Taps(network, ["0"])
    network(torch.randn(5, 4))
    with pytest.raises(RuntimeError, match="the output of '0' was changed in place"):
        _ = taps.features
    taps = Taps(network, ["1"])
    network(torch.randn(5, 4))
    assert taps.features["1"].min() >= 0


def test_the_first_tensor_of_tuples_and_dicts_is_kept():
    class Many(nn.Module):
        def forward(self, x):
            return {"note": "no tensor", "hidden": (x + 1, x + 2)}

    class Nothing(nn.Module):
        def forward(self, x):
            return None

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.many, self.nothing = Many(), Nothing()

        def forward(self, x):
            self.nothing(x)
            return self.many(x)["hidden"][1]

    network = Both()
    taps = Taps(network, "many")
    network(torch.zeros(2))
    assert taps.features["many"].tolist() == [1, 1]
    taps = Taps(network, "nothing")
    network(torch.zeros(2))
    with pytest.raises(RuntimeError, match="'nothing' returned no tensor"):
        _ = taps.features


def test_inference_mode_works():
    network = Network()
    taps = Taps(network, "head")
    with torch.inference_mode():
        logits = network(torch.randn(5, 4))
    assert taps.features["head"] is logits


def test_names_are_relative_to_the_tap_root_of_a_wrapper():
    network, x = Network(), torch.randn(5, 4)
    teacher = Frozen(Wrapper(network))
    assert tap_root(teacher) is network
    taps = Taps(teacher, "blocks.0")
    teacher(Batch(x))
    torch.testing.assert_close(taps.features["blocks.0"], by_hand(network, 2 * x)[0].detach())


def test_wrappers_are_taken_off():
    network = Network()
    assert unwrapped(torch.compile(network, backend="eager")) is network
    assert unwrapped(network) is network
    assert tap_root(Frozen(torch.compile(Wrapper(torch.compile(network)), backend="eager"))) is network


def test_a_function_has_nothing_to_tap():
    with pytest.raises(TypeError, match=r"only a torch\.nn\.Module.*given function"):
        Taps(Frozen(lambda batch: batch.inputs), "head")


def test_a_cache_has_nothing_to_tap():
    with pytest.raises(TypeError, match="a Cached teacher answers from memory"):
        Taps(Frozen(Cached(Network(), 3)), "head")


def test_the_members_of_an_average_can_be_tapped():
    teacher = Frozen(Average([Network(), Network()]))
    taps, x = Taps(teacher, "teachers.*.blocks.0"), torch.randn(5, 4)
    teacher(x)
    for row, network in enumerate(teacher.network.teachers):
        expected = by_hand(network, x)[0].detach()
        torch.testing.assert_close(taps.features[f"teachers.{row}.blocks.0"], expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_distributed_data_parallel_before_and_after(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network, x = Network(), torch.randn(5, 4)
        before = Taps(network, "blocks.2")
        parallel = nn.parallel.DistributedDataParallel(network)
        after = Taps(parallel, "blocks.*")
        parallel(x)
        assert after.tapped == ("blocks.0", "blocks.1", "blocks.2")
        torch.testing.assert_close(before.features["blocks.2"], by_hand(network, x)[2])
        torch.testing.assert_close(after.features["blocks.2"], by_hand(network, x)[2])
        after.features["blocks.2"].sum().backward()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("when", ["before torch.compile", "after torch.compile", "after a compiled forward"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_torch_compile(when, wrapped):
    torch.compiler.reset()
    network = Network()
    outer = Wrapper(network) if wrapped else network
    factor = 2 if wrapped else 1
    taps = Taps(outer, "blocks.*") if when == "before torch.compile" else None
    compiled = torch.compile(outer, backend="eager", fullgraph=True)
    if when == "after a compiled forward":
        compiled(torch.randn(5, 4))
    taps = taps or Taps(compiled, "blocks.*")
    for _ in range(3):
        x = torch.randn(5, 4)
        compiled(x)
        assert list(taps.features) == ["blocks.0", "blocks.1", "blocks.2"]
        torch.testing.assert_close(taps.features["blocks.1"], by_hand(network, factor * x)[1])
    gradient = torch.autograd.grad(taps.features["blocks.1"].sum(), network.stem.weight)[0]
    expected = torch.autograd.grad(by_hand(network, factor * x)[1].sum(), network.stem.weight)[0]
    torch.testing.assert_close(gradient, expected)
    taps.remove()
    compiled(x)
    with pytest.raises(RuntimeError, match="no output recorded"):
        _ = taps.features
    assert hooks_on(network) == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, of any block
def test_a_block_compiled_on_its_own_keeps_its_name():
    torch.compiler.reset()
    network, x = Network(), torch.randn(5, 4)
    plain = Taps.names(network)
    network.blocks[1] = torch.compile(network.blocks[1], backend="eager")
    network.blocks[2].compile(backend="eager")
    assert Taps.names(network) == plain
    taps = Taps(network, ["blocks.*", "blocks.1.scale", "blocks.2.mlp.1"])
    for _ in range(2):
        network(x)
        expected = by_hand(network, x)
        torch.testing.assert_close(taps.features["blocks.1"], expected[1])
        torch.testing.assert_close(taps.features["blocks.2"], expected[2])
        torch.testing.assert_close(taps.features["blocks.1.scale"], expected[1] - expected[0])
