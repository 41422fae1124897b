import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn import metrics
from torch import nn

from stillroom.blocks.frozen import Frozen
from stillroom.data.batch import Batch
from stillroom.task import (
    TASKS,
    Classification,
    Embeddings,
    Measured,
    MultiLabel,
    Regression,
    Segmentation,
    multi_label_metrics,
    nearest,
    spearman_without,
    task_for,
    teacher_beats_chance,
)


def measure(task, outputs, labels, teacher=None, parts=3):
    """Feed fixed outputs through `evaluate` in several batches."""
    rows = torch.arange(len(outputs))
    batches = [Batch(r.unsqueeze(1), None if labels is None else labels[r], r) for r in rows.chunk(parts)]
    look_up = Frozen(lambda batch: outputs[batch.index])
    ask = None if teacher is None else Frozen(lambda batch: teacher[batch.index])
    return task.evaluate(look_up, batches, teacher=ask)


def test_classification_metrics_agree_with_scikit_learn():
    logits, labels = torch.randn(50, 4), torch.arange(50) % 4
    found = measure(Classification(), logits, labels)
    assert math.isclose(found["accuracy"], metrics.accuracy_score(labels, logits.argmax(1)))
    assert math.isclose(found["macro_f1"], metrics.f1_score(labels, logits.argmax(1), average="macro"), rel_tol=1e-5)
    assert math.isclose(found["nll"], metrics.log_loss(labels, logits.double().softmax(1)), rel_tol=1e-5)


def test_rows_without_a_label_are_not_measured():
    logits, labels = torch.randn(40, 4), torch.arange(40) % 4
    hidden = labels.clone()
    hidden[::2] = -100
    whole = measure(Classification(), logits[1::2], labels[1::2])
    assert measure(Classification(), logits, hidden) == pytest.approx(whole)


def test_agreement_with_the_teacher():
    logits, labels = torch.randn(30, 5), torch.arange(30) % 5
    itself = measure(Classification(), logits, labels, teacher=logits)
    assert itself["agreement"] == 1
    assert itself["rank_agreement"] == pytest.approx(1)
    assert itself["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    other = torch.randn(30, 5)
    found = measure(Classification(), logits, labels, teacher=other)
    rows = []
    for mine, theirs, label in zip(logits.numpy(), other.numpy(), labels.numpy(), strict=True):
        rows.append(stats.spearmanr(np.delete(mine, label), np.delete(theirs, label)).statistic)
    assert found["rank_agreement"] == pytest.approx(np.mean(rows), abs=1e-6)


def test_spearman_of_a_reversed_order_is_minus_one():
    scores = torch.tensor([[5.0, 1.0, 2.0, 3.0]])
    assert float(spearman_without(scores, -scores, torch.tensor([0]))) == -1


def test_multi_label_metrics_agree_with_scikit_learn_and_skip_absent_classes():
    logits = torch.randn(60, 5)
    labels = (torch.rand(60, 5) > 0.6).float()
    labels[:, 4] = 0
    with pytest.warns(UserWarning, match=r"1 of 5 classes have no positive label .*: \[4\]"):
        found = measure(MultiLabel(), logits, labels)
    expected = metrics.average_precision_score(labels[:, :4], logits[:, :4].sigmoid(), average="macro")
    assert found["mean_average_precision"] == pytest.approx(expected, abs=1e-5)
    assert found["micro_f1"] == pytest.approx(metrics.f1_score(labels, logits > 0, average="micro"), abs=1e-5)
    macro = metrics.f1_score(labels[:, :4], logits[:, :4] > 0, average="macro")
    assert found["macro_f1"] == pytest.approx(macro, abs=1e-5)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.filterwarnings("ignore:2 of 3 classes have no positive")
def test_multi_label_metrics_of_a_single_class_with_positives(classes):
    logits, labels = torch.randn(60, classes), torch.zeros(60, classes)
    labels[:, 0] = (torch.rand(60) > 0.6).float()
    labels[:5, 0] = torch.nan
    found = measure(MultiLabel(), logits, labels)
    own = labels[5:, 0], logits[5:, 0]
    assert found["mean_average_precision"] == pytest.approx(metrics.average_precision_score(*own), abs=1e-5)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(own[0], own[1] > 0), abs=1e-5)


def test_logits_far_from_zero_are_still_ranked():
    labels = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    found = measure(MultiLabel(), torch.tensor([[18.0], [20.0], [17.0], [19.0]]), labels)
    assert found["mean_average_precision"] == 1.0  # in float32 all four probabilities are 1


def test_f1_at_k_gives_every_image_as_many_labels_as_it_has():
    logits, labels = torch.randn(40, 4), (torch.rand(40, 4) > 0.4).float()
    labels[0], labels[1] = 1, 0  # all of them, and none
    labels[2] = torch.tensor([1.0, 0.0, 0.0, torch.nan])  # the last is unknown and takes no place
    logits[2] = torch.tensor([1.0, 0.0, -1.0, 9.0])
    predicted = torch.zeros(40, 4)
    for row in range(40):
        known = [column for column in range(4) if not labels[row, column].isnan()]
        best = sorted(known, key=lambda column: -float(logits[row, column]))
        predicted[row, best[: int(labels[row].nansum())]] = 1
    found = multi_label_metrics(logits, labels)
    truth = labels.nan_to_num()
    assert found["micro_f1_at_k"] == pytest.approx(metrics.f1_score(truth, predicted, average="micro"), abs=1e-6)
    assert found["macro_f1_at_k"] == pytest.approx(metrics.f1_score(truth, predicted, average="macro"), abs=1e-6)


def test_segmentation_metrics_agree_with_a_count_by_hand():
    # prediction  0 0 1 1   truth  0 1 1 -   class 0: 1 of 2, class 1: 1 of 2; class 2 occurs nowhere
    prediction = torch.tensor([[[0, 0, 1, 1]]])
    logits = 9.0 * nn.functional.one_hot(prediction, 3).movedim(-1, 1).float()
    truth = torch.tensor([[[0, 1, 1, -100]]])
    found = measure(Segmentation(), logits, truth, teacher=logits, parts=1)
    assert found["mean_iou"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert found["pixel_accuracy"] == pytest.approx(2 / 3)
    assert found["agreement"] == 1


def test_regression_metrics_agree_with_scikit_learn():
    outputs, labels = torch.randn(40, 3), torch.randn(40, 3)
    found = measure(Regression(), outputs, labels, teacher=labels)
    assert found["r2"] == pytest.approx(metrics.r2_score(labels, outputs), abs=1e-5)
    expected = metrics.root_mean_squared_error(labels.flatten(), outputs.flatten())
    assert found["rmse"] == pytest.approx(expected, rel=1e-5)
    assert found["rmse_to_teacher"] == pytest.approx(found["rmse"])


def test_embeddings_are_measured_by_who_is_near_whom():
    vectors = torch.randn(40, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    found = measure(Embeddings(), vectors @ rotation, None, teacher=3 * vectors)
    assert found["neighbour_overlap"] == 1
    wider = measure(Embeddings(), torch.randn(40, 9), None, teacher=vectors)
    assert 0 < wider["neighbour_overlap"] < 0.6
    assert "cosine_to_teacher" not in wider


def test_nearest_leaves_the_sample_itself_out():
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    assert nearest(vectors, 1).flatten().tolist() == [1, 0, 3, 2]


def test_the_embeddings_distillation_loss_ignores_length_and_refuses_other_widths():
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    loss = Embeddings().distillation_loss(student, teacher)
    torch.testing.assert_close(loss, Embeddings().distillation_loss(3 * student, 0.5 * teacher))
    with pytest.raises(ValueError, match=r"\(5, 4\), teacher embeddings \(5, 7\).*rkd"):
        Embeddings().distillation_loss(student, torch.randn(5, 7))


@pytest.mark.parametrize(
    ("task", "labels", "outputs", "message"),
    [
        (
            Classification(),
            torch.tensor([0.5, 1.0]),
            torch.zeros(2, 3),
            "int64 class numbers, given dtype torch.float32",
        ),
        (Classification(), torch.tensor([0, 3]), torch.zeros(2, 3), "labels run from 0 to 3, but the network has 3"),
        (Classification(), torch.tensor([-1, 2]), torch.zeros(2, 3), "labels run from -1 to 2"),
        (MultiLabel(), torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2), "must be 0 or 1"),
        (MultiLabel(), torch.zeros(1, 3), torch.zeros(1, 2), r"\(1, 3\), but the network gives \(1, 2\)"),
        (Regression(), torch.zeros(2, 1), torch.zeros(2, 2), r"\(2, 1\), but the network gives \(2, 2\)"),
        (Classification(), torch.tensor([0, 1]), torch.full((2, 3), torch.nan), "NaN or infinite outputs"),
        (Classification(), torch.tensor([0, 1]), torch.zeros(3), r"outputs of shape \(3,\) for 2 samples"),
    ],
)
def test_first_batches_that_cannot_be_right_are_refused(task, labels, outputs, message):
    with pytest.raises(ValueError, match=message):
        task.check(Batch(torch.zeros(len(labels), 4), labels), outputs)


def test_unknown_labels_pass_the_check():
    Classification().check(Batch(torch.zeros(2, 4), torch.tensor([-100, 1])), torch.zeros(2, 3))
    MultiLabel().check(Batch(torch.zeros(1, 4), torch.tensor([[torch.nan, 1.0]])), torch.zeros(1, 2))


def test_an_empty_batch_and_nan_inputs_are_refused():
    with pytest.raises(ValueError, match="batch is empty"):
        Classification().check(Batch(torch.zeros(0, 4)))
    with pytest.raises(ValueError, match="NaN"):
        Classification().check(Batch(torch.full((1, 4), torch.nan)))


def test_chance_is_what_the_commonest_answer_scores():
    labels = torch.tensor([0, 0, 0, 1, -100])
    assert Classification().chance(labels) == {"accuracy": 0.75}
    masks = torch.tensor([[0, 0, 0, 1]])
    assert Segmentation().chance(masks) == {"mean_iou": 0.375}
    assert MultiLabel().chance(torch.tensor([[1.0, 0.0], [0.0, 0.0]])) == {"mean_average_precision": 0.5}


def test_a_teacher_must_beat_chance_by_two_standard_errors():
    labels = torch.arange(100) % 2
    assert "is 0.590, not clearly better than guessing (0.500)" in teacher_beats_chance(
        {"accuracy": 0.59}, Classification(), labels, 100
    )
    assert "is 0.400, no better than guessing (0.500)" in teacher_beats_chance(
        {"accuracy": 0.4}, Classification(), labels, 100
    )
    alike = torch.zeros(30, dtype=torch.int64)
    assert "all 30 samples" in teacher_beats_chance({"accuracy": 1.0}, Classification(), alike, 30)
    assert teacher_beats_chance({"accuracy": 0.61}, Classification(), labels, 100) == ""


def test_a_module_is_measured_in_eval_mode_and_set_back():
    network = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 3)).train()
    batches = [Batch(torch.randn(20, 4), torch.arange(20) % 3)]
    assert Classification().evaluate(network, batches) == Classification().evaluate(network, batches)
    assert network.training


def test_measured_inputs_that_are_not_finite_are_named():
    batches = [Batch(torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([7, 5]))]
    batches.append(Batch(torch.tensor([[0.0] * 4, [math.nan] * 4]), torch.tensor([0, 1]), torch.tensor([3, 9])))
    with pytest.raises(ValueError, match=r"NaN .*\(of the samples numbered 9\)"):
        Classification().evaluate(nn.Linear(4, 3), batches)
    with pytest.raises(ValueError, match="NaN or infinite values: repair"):
        Classification().evaluate(nn.Linear(4, 3), [Batch(batches[1].inputs, batches[1].labels)])


def test_one_number_per_sample_may_stand_in_a_row_or_in_a_column():
    task, labels = Regression(), torch.tensor([0.0, 1.0, math.nan, 3.0])
    outputs = torch.tensor([0.5, 1.0, 2.0, 5.0], requires_grad=True)
    expected = (0.25 + 0 + 4) / 3
    for given in (outputs, outputs.unsqueeze(1)):
        for wanted in (labels, labels.unsqueeze(1)):
            loss = task.supervised_loss(given, wanted)
            assert float(loss.detach()) == pytest.approx(expected)
            (gradient,) = torch.autograd.grad(3 * loss, outputs)
            assert gradient.tolist() == pytest.approx([1, 0, 0, 4])
            task.check(Batch(torch.zeros(4, 2), wanted), given)
            found = measure(task, given.detach(), wanted, teacher=given.detach() + 1)
            assert found["rmse"] == pytest.approx(expected**0.5)
            assert found["rmse_to_teacher"] == pytest.approx(1)
        assert task.width_of(given) == 1
        assert float(task.distillation_loss(given.detach(), outputs.detach() + 2)) == pytest.approx(4)
    assert task.supervised_loss(outputs, labels, reduction="none").shape == (4,)
    with pytest.raises(ValueError, match=r"\(8,\) for 4 samples"):
        task.check(Batch(torch.zeros(4, 2), labels), torch.zeros(8))
    with pytest.raises(ValueError, match=r"\(4,\).*one row per sample.*unsqueeze"):
        Classification().width_of(torch.zeros(4))


def test_logits_and_masks_must_have_one_size():
    task, masks = Segmentation(), torch.zeros(2, 8, 8, dtype=torch.int64)
    batch = Batch(torch.zeros(2, 3, 8, 8), masks)
    task.check(batch, torch.zeros(2, 5, 8, 8))
    with pytest.raises(ValueError, match=r"masks are \(8, 8\).*logits of \(4, 4\).*interpolate"):
        task.check(batch, torch.zeros(2, 5, 4, 4))
    with pytest.raises(ValueError, match=r"masks are \(8, 8\).*logits of \(4, 4\).*interpolate"):
        measure(task, torch.zeros(2, 5, 4, 4), masks, parts=1)
    with pytest.raises(ValueError, match=r"student's logits.*\(8, 8\).*teacher's.*\(4, 4\).*interpolate"):
        task.distillation_loss(torch.zeros(2, 5, 8, 8), torch.zeros(2, 5, 4, 4))


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="evaluation split is empty"):
        Classification().evaluate(nn.Linear(4, 3), [])


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"detection"}))  # it distils inside the detector
def test_a_perfect_student_has_no_distillation_loss_and_no_gradient(name):
    shapes = {"segmentation": (2, 3, 4, 4)}
    teacher = torch.randn(shapes.get(name, (6, 5)))
    student = teacher.clone().requires_grad_()
    loss = task_for(name).distillation_loss(student, teacher, temperature=2.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert float(student.grad.abs().max()) == pytest.approx(0, abs=1e-6)


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown task 'clasification'; known tasks: classification, multi-label"):
        task_for("clasification")


def test_a_teacher_that_is_built_for_classes_says_why_there_are_none(tmp_path):
    for row in range(3):
        Image.new("L", (4, 4)).save(tmp_path / f"{row}.png")
    for data, why in ((tmp_path, "has no folder per class"), (torch.zeros(9, 2), "the data have no labels")):
        with pytest.raises(ValueError, match=rf"{why}.*'conv-16-32' is built for a number of classes: give labels"):
            Embeddings(data).for_models("conv-16-32", "conv-4-8")
        for trained in (nn.Linear(2, 2), "timm/resnet18", str(tmp_path)):
            task = Embeddings(data)
            assert task.for_models(trained, "conv-4-8") is task
    assert isinstance(Embeddings("digits").for_models("conv-16-32", None), Embeddings)


def test_a_task_without_data_cannot_be_loaded():
    with pytest.raises(ValueError, match="has no data"):
        Classification().load()


def test_arms_that_measure_themselves_need_only_the_name_of_their_number():
    task = Measured("regret", higher_is_better=False)
    assert (task.metric, task.higher_is_better, task.name) == ("regret", False, "measured")
    with pytest.raises(ValueError, match="metric must name a number that the arms return, given ''"):
        Measured("")
