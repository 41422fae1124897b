"""MST-Distill: stages, masks, routing, refusals, and the experiment in small."""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom import Batch, Optim, Training, check_method, fit
from stillroom.blocks import Edits, Sees, fingerprint, top_picks
from stillroom.data import Splits, TensorSamples
from stillroom.losses import all_pairs_kd_loss, balance_cv_loss, balance_kl_loss, kd_loss
from stillroom.method import Clock
from stillroom.systems.multimodal.mst_distill import MSTDistill, decayed_weight, paper, recipe
from stillroom.systems.multimodal.mst_distill.arms import examine
from stillroom.task import Classification

QUICK = Training(steps=24, batch_size=16, optimizer=Optim("adam", lr=5e-3, schedule="constant"), evaluate_every=2)


class Both(nn.Module):
    """A teacher of two arguments whose ReLUs are no modules."""

    def __init__(self, classes=3):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(9, 12), nn.Linear(12, 8), nn.Linear(8, classes)

    def forward(self, image, sound):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(torch.cat([image, sound], dim=1)), inplace=True))))


def mlp(width, classes=3):
    return nn.Sequential(
        nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Linear(8, classes)
    )


def cloud(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.randn(3, 9, generator=torch.Generator().manual_seed(5))
    both = 1.5 * centres[labels] + torch.randn(count, 9, generator=generator)
    return {"image": both[:, :4], "sound": both[:, 4:]}, labels


def batch(count=12, seed=0):
    inputs, labels = cloud(count, seed)
    return Batch(inputs, labels, torch.arange(count))


def splits():
    parts = [TensorSamples(*cloud(count, seed)) for count, seed in ((96, 0), (60, 1), (48, 2))]
    return Splits(*parts, classes=list("abc"), name="clouds")


def build(seed=0, student=None, teacher=None, auxiliary=None, **options):
    torch.manual_seed(seed)
    return MSTDistill(
        Sees(student or mlp(4), "image"),
        Sees(teacher or Both(), "image", "sound"),
        auxiliary=Sees(auxiliary or mlp(5), "sound"),
        **({"probe": batch(2)} | options),
    )


def three_stages(**options):
    return build(collaborate_epochs=1, specialise_epochs=1, distil_epochs=2, **options)


def run(method, training=QUICK, **options):
    return fit(method, splits(), training, progress=False, trackers=(), **options)


def open_masks(method):
    with torch.no_grad():
        for mask in method.masks:
            mask.mask.score.bias.fill_(50.0)


def enter(method, name):
    method.enter_stage(next(stage for stage in method.stages() if stage.name == name))
    return method


@pytest.fixture(scope="module")
def trained():
    """A run through all stages, with what the networks' weights were at each stage's ends."""
    hashes = {}

    class Spy(MSTDistill):
        def begin_stage(self, stage):
            hashes[f"begin {stage.name}"] = self.prints()

        def end_stage(self, stage):
            hashes[f"end {stage.name}"] = self.prints()

        def prints(self):
            parts = ("student", "multimodal", "auxiliary", "masks", "router")
            return {name: fingerprint(getattr(self, name)) for name in parts}

    torch.manual_seed(0)
    method = Spy(
        Sees(mlp(4), "image"), Sees(Both(), "image", "sound"), auxiliary=Sees(mlp(5), "sound"), probe=batch(2),
        collaborate_epochs=1, specialise_epochs=1, distil_epochs=2,
    )  # fmt: skip
    return method, run(method), hashes


# ---- taps and masks


def test_taps_are_the_last_hidden_layers_unless_named():
    assert build().taps == [("multimodal", "fc1"), ("multimodal", "fc2"), ("auxiliary", "0"), ("auxiliary", "2")]
    named = build(teacher_taps=["fc2"], auxiliary_taps=("0",))
    assert named.taps == [("multimodal", "fc2"), ("auxiliary", "0")]
    assert [mask.mask.channels for mask in named.masks] == [8, 12]
    assert len(build(taps=1).taps) == 2
    assert f"{named.mask_parameters:,}" in repr(named)


def test_open_masks_leave_the_logits_and_hooks_are_gone_afterwards():
    method, data = build(), batch()
    method.eval()
    before = [method.multimodal(data.inputs), method.auxiliary(data.inputs)]
    masked = [method.specialised_logits(number, data.inputs) for number in range(4)]
    assert all(not torch.allclose(masked[number], before[number // 2], atol=1e-3) for number in range(4))
    open_masks(method)
    for number in range(4):
        torch.testing.assert_close(method.specialised_logits(number, data.inputs), before[number // 2])
    assert torch.equal(method.multimodal(data.inputs), before[0])
    method.masks[1].forward = None
    with pytest.raises(TypeError):
        method.specialised_logits(1, data.inputs)
    assert torch.equal(method.multimodal(data.inputs), before[0])
    assert not any(module._forward_hooks for module in method.modules())


def test_a_specialised_teacher_has_one_mask_and_in_the_codes_way_those_before_it():
    one, stacked, data = build(), build(stacked_masks=True), batch()
    network, (first, second, *_) = one.multimodal.network.eval(), one.masks
    x = torch.cat([data.inputs["image"], data.inputs["sound"]], dim=1)
    hidden = F.relu(network.fc1(x))
    alone = network.fc3(F.relu(second(network.fc2(hidden))))
    torch.testing.assert_close(one.specialised_logits(1, data.inputs), alone)
    gated = F.relu(first(network.fc1(x)))
    both = network.fc3(F.relu(second(network.fc2(gated))))
    torch.testing.assert_close(stacked.specialised_logits(1, data.inputs), both)
    torch.testing.assert_close(stacked.specialised_logits(0, data.inputs), one.specialised_logits(0, data.inputs))
    enter(stacked, "specialise")  # each is trained alone
    torch.testing.assert_close(stacked.specialised_logits(1, data.inputs), alone)


# ---- the terms of the stages


def test_in_the_first_stage_everybody_learns_from_labels_and_from_everybody():
    method, data = enter(build(), "collaborate"), batch()
    losses = method(data)
    said = {name: getattr(method, name)(data.inputs) for name in ("student", "multimodal", "auxiliary")}
    expected = sum(F.cross_entropy(one, data.labels) for one in said.values()) + all_pairs_kd_loss(said)
    torch.testing.assert_close(losses.total, expected)
    losses.total.backward()
    for name in said:
        assert all(parameter.grad is not None for parameter in getattr(method, name).parameters())
    assert all(parameter.grad is None for parameter in method.masks.parameters())


def test_in_the_second_stage_each_mask_learns_what_the_student_says_and_nothing_else_moves():
    method, data = enter(build(), "specialise"), batch()
    turns = list(method.turns(data))
    assert [player for player, _ in turns] == [f"mask-{number}" for number in range(4)]
    for number, (_, losses) in enumerate(turns):
        assert list(losses) == [f"follow_{number}"]
        expected = kd_loss(method.specialised_logits(number, data.inputs), method.student(data.inputs), temperature=4.0)
        torch.testing.assert_close(losses.total, expected)
        losses.total.backward()
        reached = [other for other in range(4) if any(p.grad is not None for p in method.masks[other].parameters())]
        assert reached == list(range(number + 1))
    assert all(
        p.grad is None for name in ("student", "multimodal", "auxiliary") for p in getattr(method, name).parameters()
    )
    together = method(data)
    torch.testing.assert_close(together.total, sum(losses.total for _, losses in turns))


def test_in_the_third_stage_each_sample_learns_from_the_teacher_picked_for_it():
    method, data = enter(build(), "distil"), batch()
    method.tell_time(0, 0.0, 0.0, stage=Clock(0, 0.0, 0.0))
    losses = method(data)
    said = method.student(data.inputs)
    probabilities = method.router(said)
    picks = top_picks(probabilities, 1)[:, 0]
    chosen = torch.stack(
        [method.specialised_logits(int(pick), data[[row]].inputs)[0] for row, pick in enumerate(picks)]
    )
    torch.testing.assert_close(losses["distill"], kd_loss(said, chosen, temperature=4.0))
    torch.testing.assert_close(losses["balance"], balance_kl_loss(probabilities))
    torch.testing.assert_close(losses.total, losses["label"] + losses["distill"] + losses["balance"])
    assert build(balance=balance_cv_loss)(data)["balance"] > 0


def test_the_router_learns_from_its_balance_alone_unless_the_teachers_are_weighted():
    data = batch()
    for routing, learns in (("top", False), ("random", False), ("mean", False), ("weighted", True)):
        method = enter(build(routing=routing), "distil")
        losses = method(data)
        router = list(method.router.parameters())
        gradients = torch.autograd.grad(
            losses["label"] + losses["distill"], router, allow_unused=True, retain_graph=True
        )
        assert any(grad is not None and float(grad.abs().sum()) > 0 for grad in gradients) == learns, routing
        balance = torch.autograd.grad(losses["balance"], [*router, *method.student.parameters()], retain_graph=True)
        assert all(float(grad.abs().sum()) > 0 for grad in balance[: len(router)])
        assert float(balance[-1].abs().sum()) > 0  # it flows on into the student
        losses.total.backward()
        for name in ("multimodal", "auxiliary", "masks"):
            assert all(parameter.grad is None for parameter in getattr(method, name).parameters())


def test_with_all_teachers_picked_routing_does_not_matter():
    method, data = enter(build(picks=4), "distil"), batch()
    said = method.student(data.inputs)
    expected = torch.stack(
        [kd_loss(said, method.specialised_logits(number, data.inputs)) for number in range(4)]
    ).mean()
    torch.testing.assert_close(method(data)["distill"], expected)
    with torch.no_grad():
        method.router.second.bias.add_(torch.tensor([9.0, -3.0, 0.0, 2.0]))
    torch.testing.assert_close(method(data)["distill"], expected)


def test_without_masks_the_teachers_are_themselves():
    method, data = build(masks=False), batch()
    assert [stage.name for stage in method.stages()] == ["collaborate", "distil"]
    assert method.mask_parameters == 0
    assert torch.equal(method.specialised_logits(1, data.inputs), method.multimodal(data.inputs))
    assert torch.equal(method.specialised_logits(3, data.inputs), method.auxiliary(data.inputs))


def test_the_mean_of_the_teachers():
    method, data = enter(build(routing="mean"), "distil"), batch()
    mean = torch.stack([method.specialised_logits(number, data.inputs) for number in range(4)]).mean(0)
    torch.testing.assert_close(method(data)["distill"], kd_loss(method.student(data.inputs), mean))


def test_weights_fall_after_the_first_epoch_of_the_third_stage():
    method, data = enter(build(distill_weight=2.0), "distil"), batch()
    for epoch, distill, balance in (
        (0.0, 2.0, 1.0),
        (0.99, 2.0, 1.0),
        (1.0, 1.0, 0.9),
        (30.5, 1.0, 0.729),
        (31.0, 0.5, 0.6561),
    ):
        method.tell_time(999, 99.0, 0.9, stage=Clock(7, epoch, 0.1))
        weights = method(data).weights
        assert weights["distill"] == pytest.approx(distill)
        assert weights["balance"] == pytest.approx(balance)
    assert decayed_weight(float("inf"), initial=0.7, factor=0.5, every=30) == 0.7


# ---- training


def test_what_is_frozen_in_a_stage_keeps_its_bits(trained):
    _, _, hashes = trained
    moves = {
        "collaborate": {"student", "multimodal", "auxiliary"},
        "specialise": {"masks"},
        "distil": {"student", "router"},
    }
    for name, expected in moves.items():
        before, after = hashes[f"begin {name}"], hashes[f"end {name}"]
        assert {part for part in before if before[part] != after[part]} == expected, name
    assert hashes["end collaborate"] == hashes["begin specialise"]
    assert hashes["end specialise"] == hashes["begin distil"]


def test_the_best_masks_and_the_best_student_are_kept(trained):
    _, fitted, _ = trained
    records = {record["stage"]: record for record in fitted.stages}
    follow = [measured["total"] for step, measured in fitted.curve if 6 < step <= 12]
    label = [measured["label"] for step, measured in fitted.curve if step > 12]
    assert "best_step" not in records["collaborate"]
    assert records["specialise"]["value"] == min(follow)
    assert records["distil"]["value"] == min(label)
    assert fitted.best_step == records["distil"]["best_step"]


def test_masked_teachers_move_towards_the_student(trained):
    _, fitted, _ = trained
    follow = {step: measured["total"] for step, measured in fitted.curve if 6 < step <= 12}
    assert min(follow.values()) < follow[8]


def test_what_ships_needs_one_modality(trained):
    method, fitted, _ = trained
    data = batch(30, seed=9)
    expected = fitted.product(data.inputs)
    assert torch.equal(fitted.product(data.inputs["image"]), expected)
    assert torch.equal(fitted.product.network(data.inputs["image"]), expected)
    shuffled = data.inputs | {"sound": data.inputs["sound"].flip(0)}
    assert torch.equal(fitted.product(shuffled), expected)
    assert fitted.product.network[0].in_features == 4
    assert method.product is fitted.product


def test_teachers_are_examined_with_and_without_masks(trained):
    method, _, _ = trained
    found = examine(method, [batch(30, seed=9), batch(15, seed=8)])
    assert {"teacher_accuracy", "auxiliary_accuracy", "specialised_3_accuracy", "specialised_0_agreement"} <= set(found)
    assert sum(found[f"routed_to_{number}"] for number in range(4)) == pytest.approx(1.0)
    assert found["teacher_accuracy"] > 0.5


class DiedError(Exception):
    pass


@pytest.mark.parametrize("steps", [3, 8, 12, 19])
def test_a_run_killed_in_any_stage_ends_with_the_same_bits(trained, tmp_path, steps):
    expected_method, expected, _ = trained
    method = three_stages()

    def die(player):
        if method.clock.step + 1 >= steps:
            raise DiedError

    method.after_step = die
    with pytest.raises(DiedError):
        run(method, folder=tmp_path)
    resumed = three_stages()
    torch.manual_seed(77)
    fitted = run(resumed, folder=tmp_path, resume=True)
    assert fitted.curve == expected.curve
    assert fitted.stages == expected.stages
    assert fingerprint(resumed) == fingerprint(expected_method)


def test_networks_that_were_trained_before_can_skip_the_first_stage():
    method = build(collaborate_epochs=0, specialise_epochs=1, distil_epochs=1)
    before = fingerprint(method.multimodal)
    run(method, QUICK.change(steps=4))
    assert fingerprint(method.multimodal) == before
    assert "together" not in method.players()


def test_a_student_learns_in_a_plain_loop_that_knows_no_stages():
    method = build(collaborate_epochs=0)
    data = batch(90)
    optimizer = torch.optim.Adam(method.players()["student"], lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        method(data).total.backward()
        optimizer.step()
    accuracy = (method.product(batch(60, seed=4).inputs).argmax(1) == batch(60, seed=4).labels).double().mean()
    assert accuracy > 0.6


def test_maps_and_dense_predictions_work_too():
    def seg(channels):
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1),
        )  # fmt: skip

    class Cat(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = seg(4)

        def forward(self, colour, depth):
            return self.body(torch.cat([colour, depth], dim=1))

    inputs = {"colour": torch.rand(4, 3, 9, 7), "depth": torch.rand(4, 1, 9, 7)}
    labels = torch.randint(4, (4, 9, 7))
    labels[:, 0] = -100
    data = Batch(inputs, labels)
    method = MSTDistill(
        Sees(seg(3), "colour"), Sees(Cat(), "colour", "depth"), auxiliary=Sees(seg(1), "depth"), probe=data[:2]
    )
    assert method.router.dense
    for name in ("collaborate", "specialise", "distil"):
        enter(method, name).train()
        for _, losses in method.turns(data):
            losses.total.backward()
            assert bool(losses.total.isfinite())
    norms = [module for module in method.multimodal.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)


def test_the_battery():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = check_method(three_stages(), batch(), task=Classification(), processes=False, raises=False)
    assert report.ok, str(report)
    assert len(report.passed) > 15


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"picks": 0}, r"picks must lie in \[1, 4\], the number of specialised teachers, given 0"),
        ({"picks": 5}, r"picks must lie in \[1, 4\], the number of specialised teachers, given 5"),
        ({"heads": 5}, r"8 channels needs at least shrink \* heads = 10"),
        ({"most_mask_parameters": 500}, "12 channels has .* parameters, more than the 500 allowed"),
        ({"teacher_taps": ["fc9"]}, "no module of Both is called 'fc9'"),
        ({"auxiliary": mlp(5, classes=4)}, r"student gives .*\(2, 3\).* the auxiliary teacher of shape \(2, 4\)"),
        ({"teacher": Both(classes=2)}, r"the multimodal teacher of shape \(2, 2\)"),
        ({"temperature": 0.0}, "temperature must be a number above 0, given 0"),
        ({"distil_epochs": 0.0}, "distil_epochs must be a number above 0, given 0"),
        ({"balance_weight": -1.0}, "balance_weight must be a number of 0 or more, given -1"),
        ({"routing": "best"}, "given 'best'"),
        ({"probe": {"image": torch.randn(2, 4), "sound": torch.randn(3, 5)}}, "given image: 2, sound: 3 rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_taps_with_a_sequence_are_refused():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.out = nn.Linear(1, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, sound):
            return self.out(self.mix(self.embed(sound.unsqueeze(2)).relu()).mean(1))

    with pytest.raises(ValueError, match=r"outputs \(N, 5, 8\): tap another layer"):
        build(auxiliary=Tokens(), auxiliary_taps=["embed"])
    with pytest.raises(ValueError, match="Tokens has no hidden layer before its output that gives vectors"):
        build(auxiliary=Tokens())


def test_unpaired_batches_are_refused_in_every_stage():
    method, data = build(), batch()
    data.inputs["sound"] = data.inputs["sound"][:5]
    for name in ("collaborate", "specialise", "distil"):
        enter(method, name)
        with pytest.raises(ValueError, match="given image: 12, sound: 5 rows"):
            list(method.turns(data))


def test_a_copy_is_masked_by_its_own_masks():
    method, data = build(), batch()
    twin = copy.deepcopy(method)
    open_masks(twin)
    with Edits(method.multimodal, {"fc1": torch.zeros_like}):
        torch.testing.assert_close(twin.specialised_logits(0, data.inputs), twin.multimodal(data.inputs))


# ---- the experiment


def test_the_experiment_in_small(tmp_path):
    experiment = recipe()
    assert experiment.seeds >= 6
    assert {"cotraining", "random-routing", "mean-teacher", "no-masks"} == set(experiment.controls)
    results = experiment.tiny().run(seeds=(0, 1), folder=tmp_path, progress=False)
    assert len(results["claims"]) == 8
    for name, arm in results["arms"].items():
        metrics = arm["metrics"]
        assert metrics["accuracy"] == metrics["accuracy_with_other_modality_shuffled"], name
    assert "routed_to_3" in results["arms"]["mst"]["metrics"]


@pytest.mark.skipif(not os.environ.get("STILLROOM_DATA"), reason="STILLROOM_DATA is not set")
def test_the_experiment_on_recordings_and_images_in_small():
    experiment = recipe("spoken-digits").tiny()
    arms = {name: experiment.arms[name] for name in ("kd-auxiliary", "mst")}
    shown = replace(experiment, arms=arms, claims=(), controls=(), rivals=(), baseline="mst").run(
        seeds=(0,), progress=False
    )
    metrics = shown["arms"]["mst"]["metrics"]
    assert metrics["accuracy"] == metrics["accuracy_with_other_modality_shuffled"]
    assert metrics["mask_parameters"][0] > 0


def test_every_arm_begins_with_the_same_networks():
    experiment = recipe()
    settings = {name: arm.setting for name, arm in experiment.arms.items()}
    assert len(set(map(id, settings.values()))) == 1
    (setting,) = set(settings.values())
    assert setting.student == "upper"
    assert setting.epochs == 140


def test_other_data_need_two_named_modalities():
    experiment = recipe("digits", student_modality="left")
    with pytest.raises(ValueError, match="the student sees 'left', but the modalities are upper, lower"):
        experiment.tiny().run(seeds=(0,), progress=False)
    with pytest.raises(ValueError, match="inputs of two named modalities, given Tensor"):
        recipe(Splits(*(TensorSamples(torch.rand(90, 4), torch.arange(90) % 3),) * 2, classes=list("abc"))).tiny().run(
            seeds=(0,), progress=False
        )


def test_the_papers_settings_in_small():
    """Its networks and taps on small maps; the mask over 596 features is as large as the paper's."""
    from stillroom.systems.multimodal.mst_distill.networks import paper_networks

    experiment = paper()
    setting = experiment.arms["mst"].setting
    assert (setting.collaborate_epochs, setting.specialise_epochs, setting.distil_epochs) == (1, 1, 100)
    assert experiment.training.batch_size == 512
    assert experiment.training.optimizer == Optim("adam", lr=1e-4, schedule="constant")
    trio = paper_networks({"image": (1, 28, 28), "sound": (1, 32, 40)}, "image", "sound", 10)
    inputs = {"image": torch.rand(2, 1, 28, 28), "sound": torch.rand(2, 1, 32, 40)}
    method = MSTDistill(
        trio.student, trio.teacher, auxiliary=trio.auxiliary, probe=inputs,
        teacher_taps=setting.teacher_taps[1:], auxiliary_taps=setting.auxiliary_taps,
    )  # fmt: skip
    assert [mask.mask.mask.channels if hasattr(mask.mask, "mask") else mask.mask.channels for mask in method.masks] == [
        298, 64, 128,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="596 channels"):
        MSTDistill(
            trio.student, trio.teacher, auxiliary=trio.auxiliary, probe=inputs, teacher_taps=setting.teacher_taps
        )
    small = Splits(
        *(
            TensorSamples(
                {"image": torch.rand(90, 1, 28, 28), "sound": torch.rand(90, 1, 32, 40)}, torch.arange(90) % 3
            )
            for _ in range(2)
        ),
        classes=list("abc"),
        name="small",
    )
    experiment = paper(small, epochs=(1, 1, 1))
    arms = {name: arm for name, arm in experiment.arms.items() if name in ("alone", "no-masks")}
    results = (
        replace(experiment, arms=arms, claims=(), controls=("no-masks",), rivals=(), method=None)
        .tiny()
        .run(seeds=(0,), progress=False)
    )
    assert set(results["arms"]) == {"alone", "no-masks"}
