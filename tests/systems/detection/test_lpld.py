"""LPLD: the adapted detector, its slow teacher, and the recipe."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stillroom import Training, check_method, fit, hub
from stillroom.data import Batch, TensorSamples
from stillroom.losses import lpld_loss
from stillroom.systems.detection.lpld import LPLD, EqualWeights, Shuffled, follow, paper, recipe
from stillroom.task import Detection
from stillroom.training import Optim
from tests.golden_cases import golden_cases


def as_they_are(images):
    return images


def moved(images):
    return images.roll(1, -1)


@pytest.fixture(scope="module")
def source():
    """A fresh detector: it scores all classes nearly alike, so low thresholds make boxes of some of its proposals."""
    torch.manual_seed(0)
    return hub.load("detector-4", classes=3, channels=1, image_size=32).eval()


def squares(count):
    images, targets = 0.1 * torch.rand(count, 1, 32, 32), []
    for row in range(count):
        x, y = (int(place) for place in torch.randint(0, 20, (2,)))
        label = 1 + row % 3
        images[row, 0, y : y + 10, x : x + 10] = 0.2 + 0.25 * label
        targets.append({"boxes": torch.tensor([[x, y, x + 10, y + 10]]).float(), "labels": torch.tensor([label])})
    return images, targets


def built(source, kind=LPLD, **options):
    return kind(copy.deepcopy(source), **({"confident": 0.26, "foreground": 0.34, "strong_view": moved} | options))


def test_the_papers_numbers_are_the_defaults(source):
    method = LPLD(copy.deepcopy(source))
    assert (method.confident, method.scale, method.keep_rate, method.proposals) == (0.7, 0.1, 0.75, 300)
    assert method.mining == {"iou": 0.4, "foreground": 0.9, "background": 0.99}
    assert method.require_confident
    assert method.needs.labels == "none"


def test_it_is_the_loss_of_both_networks_regions(source):
    method, batch = built(source), Batch(squares(2)[0])
    losses = method(batch)
    assert sum(method.kept) > 0
    _, boxes, taught, sizes = method.ask_teacher(batch.inputs)
    confident = method.ask_teacher(batch.inputs)[0]
    mined = method.mine(taught, boxes, confident, sizes)
    from stillroom.blocks import TwoStage

    detector = TwoStage(method.student)
    images = detector.prepare(moved(batch.inputs))
    said = detector.regions(detector.features(images), boxes, images.image_sizes)
    expected = []
    for mine, theirs, found in zip(said.per_image(), taught.per_image(), mined, strict=True):
        rows = found.kept
        weights = 1 - torch.nn.functional.cosine_similarity(mine.features[rows], theirs.features[rows])
        expected.append(lpld_loss(mine.logits[rows], theirs.logits[rows], weights.detach()))
    torch.testing.assert_close(losses["lpld"], torch.stack(expected).mean(), rtol=1e-4, atol=1e-7)


def test_one_image_as_it_is_gives_weights_of_0(source):
    losses = built(source, strong_view=as_they_are)(Batch(squares(1)[0]))
    assert float(losses["lpld"].detach()) == pytest.approx(0, abs=1e-6)
    assert float(built(source, EqualWeights, strong_view=as_they_are)(Batch(squares(1)[0]))["lpld"].detach()) > 1e-3


def test_an_image_without_confident_boxes_distils_nothing(source):
    batch = Batch(squares(2)[0])
    without = built(source, confident=1.0)
    assert float(without(batch)["lpld"].detach()) == 0
    assert without.kept == [0, 0]
    all_the_same = built(source, confident=1.0, require_confident=False)
    assert float(all_the_same(batch)["lpld"].detach()) > 0


def test_scale_0_is_a_mean_teacher(source):
    assert sorted(built(source, scale=0.0)(Batch(squares(1)[0]))) == ["detect", "propose"]


def test_gradients_reach_the_student_and_never_the_teacher(source):
    method = built(source)
    method(Batch(squares(2)[0]))["lpld"].backward()
    touched = {
        name.split(".")[2] for name, p in method.student.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {"0", "box_head", "box_predictor"} <= touched
    assert not any(
        "rpn" in name for name, p in method.student.named_parameters() if p.grad is not None and p.grad.any()
    )
    assert all(not p.requires_grad and p.grad is None for p in method.average.parameters())
    assert not {id(p) for p in method.average.parameters()} & {id(p) for p in method.players()["student"]}


def test_the_teacher_stands_still_within_an_epoch_and_moves_a_quarter_after_it(source):
    method = built(source)
    before = copy.deepcopy(method.average.state_dict())
    optimizer = torch.optim.SGD(method.players()["student"], lr=0.01)
    for _ in range(2):
        method(Batch(squares(2)[0])).total.backward()
        optimizer.step()
        method.after_step("student")
    assert all(torch.equal(value, before[name]) for name, value in method.average.state_dict().items())
    student = method.student.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in student.items())
    method.end_epoch()
    for name, value in method.average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * student[name], rtol=0, atol=1e-7)
        else:
            assert torch.equal(value, student[name])


@pytest.mark.parametrize("case", golden_cases("lpld", "ema_update"), ids=str)
def test_averages_match_the_authors_code(case):
    networks = {}
    for who in ("student", "teacher"):
        networks[who] = nn.Module()
        for name, value in case.inputs[who].items():
            networks[who].register_buffer(name, value.double())
    follow(networks["teacher"], networks["student"], keep_rate=case.params["keep_rate"])
    case.check(teacher=networks["teacher"].state_dict())


@pytest.mark.parametrize(("keep_rate", "batch_size"), [(1.0, 2), (0.0, 2), (0.0, 4)])
def test_fit_ends_epochs(source, keep_rate, batch_size):
    method = built(source, keep_rate=keep_rate)
    before = copy.deepcopy(method.average.state_dict())
    training = Training(
        epochs=3, batch_size=batch_size, optimizer=Optim("sgd", lr=0.01, schedule="constant"), keep="last"
    )
    fitted = fit(method, TensorSamples(squares(4)[0]), training, task=Detection(), progress=False)
    assert int(method.epochs) == 3
    assert fitted.product is method.average
    expected = before if keep_rate else method.student.state_dict()
    for name, value in method.average.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-7)


def test_batch_norm_is_frozen(source):
    method = built(source)
    norm = next(module for module in method.student.modules() if isinstance(module, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    method.train()(Batch(squares(2)[0])).total.backward()
    assert torch.equal(norm.running_mean, before)
    assert norm.weight.grad is None
    assert not norm.training


def test_images_of_several_sizes_are_adapted_to(source):
    from stillroom.data import Ragged

    images = Ragged([torch.rand(1, 32, 40), torch.rand(1, 36, 32)])
    method = LPLD(copy.deepcopy(source), confident=0.1, foreground=0.34)  # with its own strong view
    method(Batch(images)).total.backward()


def test_the_control_distils_as_many_others(source):
    batch = Batch(squares(2)[0])
    real, control = built(source), built(source, Shuffled)
    real(batch), control(batch)
    assert real.kept == control.kept
    assert control.choose(torch.tensor([0, 1, 2]), 9).shape == (3,)


def test_background_first_and_last_give_the_same_loss(source):
    class Last(nn.Module):
        """The same scores and boxes, background last."""

        def __init__(self, first):
            super().__init__()
            self.first = first
            self.cls_score, self.bbox_pred = first.cls_score, first.bbox_pred

        def forward(self, regions):
            logits, deltas = self.first(regions)
            return logits.roll(-1, 1), deltas.unflatten(1, (-1, 4)).roll(-1, 1).flatten(1)

    from stillroom.blocks import TwoStage

    images = squares(2)[0]
    first = TwoStage(source)
    other = copy.deepcopy(source)
    other.net.roi_heads.box_predictor = Last(other.net.roi_heads.box_predictor)
    last = TwoStage(other, background="last")
    prepared = first.prepare(images)
    features = first.features(prepared)
    boxes = first.propose(prepared, features, most=6)
    one, two = (opened.regions(features, boxes, prepared.image_sizes) for opened in (first, last))
    torch.testing.assert_close(one.logits, two.logits)
    torch.testing.assert_close(one.deltas, two.deltas)
    weights = torch.ones(len(one.logits))
    teacher = torch.randn_like(one.logits)
    torch.testing.assert_close(lpld_loss(one.logits, teacher, weights), lpld_loss(two.logits, teacher, weights))


def test_wrong_arguments_are_refused(source):
    with pytest.raises(ValueError, match=r"keep_rate must lie in .0, 1., given 1.5"):
        LPLD(copy.deepcopy(source), keep_rate=1.5)
    with pytest.raises(ValueError, match=r"keep_rate must lie in .0, 1., given -0.1"):
        follow(source, source, keep_rate=-0.1)
    with pytest.raises(ValueError, match=r"confident must lie in .0, 1., given 7"):
        LPLD(copy.deepcopy(source), confident=7)
    with pytest.raises(ValueError, match="needs a detector of 2 classes or more, given one of 1"):
        LPLD(hub.load("detector-4", classes=1, channels=1, image_size=32))
    with pytest.raises(TypeError, match="Linear is no two-stage detector"):
        LPLD(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="proposals must be 1 or more, given 0"):
        LPLD(copy.deepcopy(source), proposals=0)
    with pytest.raises(ValueError, match=r'"teacher" or "student", given \'both\''):
        LPLD(copy.deepcopy(source), ships="both")
    with pytest.raises(ValueError, match="they must be one architecture"):
        follow(source, nn.Linear(2, 2))


def test_nan_scores_are_refused(source):
    broken = copy.deepcopy(source)
    with torch.no_grad():
        broken.net.roi_heads.box_predictor.cls_score.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="must be finite, given NaN"):
        built(broken)(Batch(squares(1)[0]))


def test_the_battery(source):
    report = check_method(
        built(source, confident=0.2), Batch(squares(4)[0], index=torch.arange(4)), task=Detection(), processes=False
    )
    assert report.ok


def test_the_recipe_runs_in_its_tiny_form():
    experiment = recipe(detector="detector-4", source_images=8, source_steps=2, images=2, test_size=3, confident=0.2)
    results = experiment.tiny().run([100], progress=False)
    assert set(results["arms"]) == set(experiment.arms)
    assert results["arms"]["shuffled"]["role"] == "control"
    assert len(results["claims"]) == 8
    assert set(results["arms"]["lpld"]["metrics"]) >= {"map_50", "recall_small", "mined_images", "mined_lift"}


def test_the_papers_form_runs_on_small_data(tmp_path):
    from tests.data.test_boxes import coco_folder

    coco_folder(tmp_path / "source", images=4)
    coco_folder(tmp_path / "target", images=4)
    torch.manual_seed(0)
    detector = hub.load("detector-4", classes=2, channels=3, image_size=32)
    hub.save(detector, tmp_path / "detector")
    experiment = paper(str(tmp_path / "target"), detector=str(tmp_path / "detector"), epochs=1)
    results = experiment.tiny().run([100], progress=False)
    assert set(results["arms"]) == {"source", "mean-teacher", "lpld"}
