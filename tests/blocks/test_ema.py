import copy

import pytest
import torch
from torch import nn

from stillroom.blocks import EMA, decay_of


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def walk(module: nn.Module, steps: int):
    """Change every weight at random and yield a float64 copy of them before and after each change."""
    yield {name: value.double() for name, value in module.state_dict().items()}
    for _ in range(steps):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        module(torch.randn(8, 3).to(next(module.parameters()).dtype))
        yield {name: value.double() for name, value in module.state_dict().items()}


def closed_form(history: list[dict[str, torch.Tensor]], decays: list[float], name: str) -> torch.Tensor:
    """Weigh the start by the product of all decays, and step i by (1 - d_i) times the product of the later ones."""
    weights = []
    for row in range(len(history)):
        weight = 1.0 if row == 0 else 1 - decays[row - 1]
        for decay in decays[max(row, 0) :]:
            weight *= decay
        weights.append(weight)
    return sum(weight * values[name] for weight, values in zip(weights, history, strict=True))


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_has_its_closed_form(warmup, buffers):
    module = network()
    ema = EMA(module, decay=0.7, warmup=warmup, buffers=buffers)
    history = []
    for step, values in enumerate(walk(module, 12)):
        history.append(values)
        if step:
            ema.update()
    decays = [min(0.7, (1 + t) / (10 + t)) if warmup else 0.7 for t in range(12)]
    means = ema.module.state_dict()
    assert set(means) == set(history[0])
    for name, mean in means.items():
        copied = name.endswith("tracked") or ("running" in name and buffers == "copy")
        expected = history[-1][name] if copied else closed_form(history, decays, name)
        torch.testing.assert_close(mean.double(), expected, atol=1e-6, rtol=1e-5)
    assert ema.module[1].num_batches_tracked == 12


def test_a_decay_per_epoch_or_sample_is_spread_over_the_steps():
    module = nn.Linear(1, 1)
    by_epoch, by_sample = EMA(module, decay=0.5, unit="epoch"), EMA(module, decay=decay_of(512), unit="sample")
    start = module.weight.item()
    with torch.no_grad():
        module.weight.add_(1)
    for _ in range(4):  # four steps of an epoch, 128 samples each: one half-life
        by_epoch.update(1 / 4)
        by_sample.update(128)
    assert by_epoch.module.weight.item() == pytest.approx(start + 0.5)
    assert by_sample.module.weight.item() == pytest.approx(start + 0.5)
    assert by_sample.passed == 512


def test_bfloat16_weights_are_averaged_in_float32():
    module = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    ema = EMA(module, decay=0.999)
    with torch.no_grad():
        module.weight.fill_(1.0)
        ema.module.weight.fill_(0.0)
    ema._wide["weight"].fill_(0.0)
    for _ in range(1000):
        ema.update()
    assert ema.module.weight.dtype == torch.bfloat16
    # in bfloat16 alone a step of 0.001 * (1 - mean) is lost before the mean reaches 0.5
    assert ema.module.weight.item() == pytest.approx(1 - 0.999**1000, abs=2**-9)
    assert ema._wide["weight"].item() == pytest.approx(1 - 0.999**1000, abs=1e-5)


def test_casting_keeps_the_average():
    module = nn.Linear(1, 1, bias=False)
    ema = EMA(module, decay=0.5)
    ema.to(torch.bfloat16)
    module.to(torch.bfloat16)
    with torch.no_grad():
        module.weight.fill_(1 + 2**-7)
    ema.update()
    exact = ema._wide["weight"].item()
    ema.to(torch.float32)
    assert ema.module.weight.item() == exact
    assert ema._wide == {}


def test_the_averaged_network_is_evaluated_and_asks_for_no_gradient():
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = network()
            self.ema = EMA(self.student)

    owner = Owner().train()
    assert not any(module.training for module in owner.ema.module.modules())
    assert not any(parameter.requires_grad for parameter in owner.ema.parameters())
    assert {key.split(".")[1] for key in owner.state_dict() if key.startswith("ema.")} == {"module", "_extra_state"}
    inputs = torch.randn(2, 3)
    assert torch.equal(owner.ema(inputs), owner.ema.module(inputs))

    twin = copy.deepcopy(owner)
    with torch.no_grad():
        twin.student[0].weight.add_(1000)
    before = owner.ema.module[0].weight.clone()
    twin.ema.update()
    owner.ema.update()
    assert torch.equal(owner.ema.module[0].weight, before)
    torch.testing.assert_close(twin.ema.module[0].weight, before + 1, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_average_goes_on_bit_for_bit(tmp_path, dtype):
    module = network().to(dtype)
    ema = EMA(module, decay=0.9, warmup=True)
    for _ in walk(module, 3):
        ema.update()
    torch.save({"network": module.state_dict(), "ema": ema.state_dict()}, tmp_path / "state.pt")

    state = torch.load(tmp_path / "state.pt")
    other = network().to(dtype)
    other.load_state_dict(state["network"])
    resumed = EMA(other, decay=0.9, warmup=True)
    resumed.load_state_dict(state["ema"])
    for each, average in ((module, ema), (other, resumed)):
        torch.manual_seed(1)
        for _ in walk(each, 3):
            average.update()
    assert resumed.passed == ema.passed == 8
    for name, mean in ema.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], mean)
    assert all(torch.equal(resumed._wide[name], wide) for name, wide in ema._wide.items())
    with pytest.raises(ValueError, match="counts by epoch, but the state by step"):
        EMA(other, unit="epoch").load_state_dict(state["ema"])
    if dtype == torch.bfloat16:
        with pytest.raises(ValueError, match=r"keeps 0 weights in float32 .*, but the state keeps 8"):
            EMA(network()).load_state_dict(state["ema"])


def test_a_network_of_another_form_is_refused():
    module = network()
    ema = EMA(module)
    module.append(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match=r"11 weights .* \(9\)"):
        ema.update()


def test_the_followed_network_may_be_compiled():
    module = network()
    ema = EMA(torch.compile(module, backend="eager"), decay=0.0)
    with torch.no_grad():
        module[0].weight.add_(1)
    ema.update()
    assert torch.equal(ema.module[0].weight, module[0].weight)
    assert type(ema.module) is nn.Sequential


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, r"in \[0, 1\), given 1\.0"),
        ({"unit": "batch"}, "given 'batch'"),
        ({"buffers": "mean"}, "given 'mean'"),
    ],
)
def test_wrong_averages_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EMA(network(), **options)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="passed must be a number above 0, given 0"):
        EMA(network()).update(0)
    with pytest.raises(ValueError, match="half_life must be a number above 0, given -1"):
        decay_of(-1)
