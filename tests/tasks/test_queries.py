"""Detectors and universal segmenters: queries matched, classes, boxes and masks distilled."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfdistill import (
    Boxes,
    DistillationTrainer,
    HfDistillError,
    Logits,
    Masks,
    Objective,
    TaskLoss,
)
from hfdistill.boxes import with_pairs
from hfdistill.knowledge import StepContext
from hfdistill.recipe.objective import terms_of
from hfdistill.rows import RowCounts
from hfdistill.tasks import TASKS, Queries, TeacherLogits, task_of
from hfdistill.tasks.objects import collated
from hfdistill.teachers import Targets
from tests import by_sgd, tiny_queries
from tests.trainer.trajectory import freeze_batch_norm


def trainer(
    architecture: str, folder: Path, student: Any = None, teacher: Any = None, objective: Any = None, **arguments: Any
) -> DistillationTrainer:
    """A trainer of tiny models on eight pictures."""
    own = {"max_steps": 2, "learning_rate": 0.01, "per_device_eval_batch_size": 3}
    examples = tiny_queries.examples(architecture)
    return DistillationTrainer(
        student or tiny_queries.model(architecture, seed=1),
        by_sgd.arguments(folder, **{**own, **arguments}),
        teacher_model=teacher or tiny_queries.model(architecture, seed=2),
        objective=objective,
        train_dataset=examples,
        eval_dataset=examples,
    )


def sets(seed: int, queries: int = 5, classes: int = 4) -> dict[str, torch.Tensor]:
    """What a head of detection and segmentation gives for two pictures."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "logits": 3 * torch.randn(2, queries, classes, generator=generator),
        "pred_boxes": 0.2 + 0.4 * torch.rand(2, queries, 4, generator=generator),
        "pred_masks": 3 * torch.randn(2, queries, 4, 4, generator=generator),
    }


def paired(student: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor], no_object: bool = True) -> StepContext:
    """The context of a micro-batch with these outputs."""
    row = TASKS["instance_segmentation"]
    task = replace(row, layout=replace(row.layout, no_object=no_object))
    rows = task.rows({"pixel_values": torch.zeros(2, 3, 4, 4)})
    return with_pairs(StepContext(student["logits"], Targets(teacher["logits"], teacher), rows, task), student)


# ---- matching ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("no_object", [True, False])
def test_the_same_queries_in_another_order_are_at_distance_zero(no_object: bool) -> None:
    teacher = sets(0)
    order = torch.tensor([3, 0, 4, 1, 2])
    context = paired({name: value[:, order] for name, value in teacher.items()}, teacher, no_object)
    loss = "forward_kl" if no_object else "bernoulli_kl"
    for term in (Logits(loss), Boxes(), Masks()):
        torch.testing.assert_close(term.values(context), torch.zeros(2), rtol=0, atol=1e-5)


def test_classes_are_weighed_by_the_teachers_confidence() -> None:
    # Two queries of which the teacher is sure: one holds an object (c = 1), one none (c = 0).
    teacher = sets(0, queries=2) | {"logits": torch.tensor([[[30.0, 0, 0, 0], [0, 0, 0, 30.0]]] * 2)}
    # The student is undecided about both, so each is log 4 away: (1 * log 4 + 0.1 * log 4) / 1.1.
    student = teacher | {"logits": torch.zeros(2, 2, 4)}
    context = paired(student, teacher)
    torch.testing.assert_close(context.pairs.shares, torch.tensor([[10 / 11, 1 / 11]] * 2))
    expected = torch.full((2,), 4.0).log()
    torch.testing.assert_close(Logits(temperature=1.0).values(context), expected, rtol=1e-4, atol=1e-4)
    # An error in the one that holds an object counts ten times as much as one in the other.
    shown = torch.tensor([[0.0, 30.0, 0, 0], [0, 0, 0, 30.0]])
    wrong = torch.stack([shown, torch.tensor([[30.0, 0, 0, 0], [0, 30.0, 0, 0]])])
    values = Logits(temperature=1.0).values(paired(teacher | {"logits": wrong}, teacher))
    torch.testing.assert_close(values, torch.tensor([300 / 11, 30 / 11]), rtol=1e-3, atol=1e-3)


def test_boxes_are_a_mean_over_the_objects_that_the_teacher_expects() -> None:
    # Three objects with c = 1, and no others: the boxes are a mean over three.
    logits = torch.full((1, 3, 4), 0.0)
    logits[..., 0] = 60.0
    boxes = torch.tensor([[[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]]])
    moved = boxes + torch.tensor([0.0, 0.1, 0.0, 0.0])
    teacher = {"logits": logits, "pred_boxes": boxes, "pred_masks": torch.zeros(1, 3, 2, 2)}
    task = TASKS["object_detection"]
    rows = task.rows({"pixel_values": torch.zeros(1, 3, 4, 4)})
    student = teacher | {"pred_boxes": moved}
    context = with_pairs(StepContext(logits, Targets(logits, teacher), rows, task), student)
    # L1 0.1; half of each box is shared: IoU 1/3, and the hull is the union.
    expected = 5 * 0.1 + 2 * (1 - 1 / 3)
    assert Boxes().values(context).item() == pytest.approx(expected, rel=1e-4)
    # With one expected object in ten (c = 0.1) nothing is blown up to a whole one.
    faint = torch.tensor([[[0.1, 1e-9, 1e-9, 0.9]]]).log()
    student = {"logits": faint, "pred_boxes": moved[:, :1], "pred_masks": torch.zeros(1, 1, 2, 2)}
    targets = Targets(faint, student | {"pred_boxes": boxes[:, :1]})
    context = with_pairs(StepContext(faint, targets, rows, task), student)
    assert Boxes().values(context).item() == pytest.approx(0.1 * expected, rel=1e-4)


def test_of_many_queries_the_teachers_most_confident_are_taught() -> None:
    teacher = sets(0, queries=6)
    teacher["logits"][:, [1, 4], 0] += 40.0
    student = {name: value[:, [4, 1]] for name, value in teacher.items()}
    context = paired(student, teacher)
    assert context.logits.shape == context.targets.logits.shape == (2, 2, 4)
    torch.testing.assert_close(Boxes().values(context), torch.zeros(2), rtol=0, atol=1e-5)
    # The other way round the rest of the student's queries stay free.
    context = paired(teacher, student)
    torch.testing.assert_close(Boxes().values(context), torch.zeros(2), rtol=0, atol=1e-5)


def test_background_never_pulls_an_object_away() -> None:
    # One object and one background query of the teacher, the student's boxes beside them, all of one size; x only.
    logits = torch.tensor([[[60.0, 0, 0, 0], [0, 0, 0, 60.0]]])

    def at(*places: float) -> dict[str, torch.Tensor]:
        return {"logits": logits, "pred_boxes": torch.tensor([[[x, 0.5, 0.2, 0.2] for x in places]])}

    student, teacher = at(0.45, 0.6) | {"logits": torch.zeros(1, 2, 4)}, at(0.5, 0.2)
    # 0.45 to the object and 0.6 to nothing move 0.05 + 0.4, the other way 0.1 + 0.25: less, but not where it counts.
    pairs = TASKS["object_detection"].layout.pairs(student["logits"], student, logits, teacher)
    torch.testing.assert_close(pairs.boxes[0][0, :, 0], torch.tensor([0.45, 0.6]))


def test_only_the_queries_of_inference_are_kept() -> None:
    numbers = torch.arange(6)[None, :, None]
    noise = {"denoising_meta_values": {"dn_num_split": [4, 2]}}
    assert Queries().kept(numbers, noise).flatten().tolist() == [4, 5]
    assert Queries(queries=2).kept(numbers, {}).flatten().tolist() == [0, 1]
    assert Queries().kept(numbers, {"denoising_meta_values": None}).shape == (1, 6, 1)


@pytest.mark.parametrize("architecture", ["rt_detr", "lw_detr"])
def test_training_matches_the_queries_of_inference(architecture: str, tmp_path: Path) -> None:
    job = trainer(architecture, tmp_path)
    batch = collated([dict(reversed(row.items())) for row in job.train_dataset])
    assert next(iter(batch)) == "pixel_values"
    job.model.train()
    outputs, context = job.outputs_and_context(job.model, batch)
    assert outputs.logits.shape[1] > 5 and context.logits.shape[1] == 5
    kept = outputs.logits[:, -5:] if architecture == "rt_detr" else outputs.logits[:, :5]
    assert torch.equal(context.logits.sum(), kept.sum()) or torch.allclose(context.logits.sum(1), kept.sum(1))


def test_masks_of_another_size_are_resized() -> None:
    teacher = sets(0)
    large = teacher | {"pred_masks": teacher["pred_masks"].repeat_interleave(2, -1).repeat_interleave(2, -2)}
    torch.testing.assert_close(Masks().values(paired(teacher, large)), torch.zeros(2), rtol=0, atol=1e-5)


def test_predictions_of_other_queries_do_not_reach_the_gradient() -> None:
    student = {name: value.requires_grad_() for name, value in sets(1).items()}
    context = paired(student, sets(0))
    sum(term.values(context).sum() for term in (Logits(), Boxes(), Masks())).backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in student.values())


# ---- classes ----------------------------------------------------------------------------------------------------


def test_a_class_that_the_student_lacks_is_no_object_to_it() -> None:
    shares = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    read = TeacherLogits(Queries(), Queries(), torch.tensor([2, 0]))
    torch.testing.assert_close(read({"logits": shares.log()}, {}).softmax(-1), torch.tensor([[[0.3, 0.1, 0.6]]]))
    reordered = TeacherLogits(Queries(), Queries(), torch.tensor([2, 0, 1]))
    torch.testing.assert_close(reordered({"logits": shares.log()}, {}), shares.log()[..., [2, 0, 1, 3]])
    sigmoids = TeacherLogits(Queries(no_object=False), Queries(no_object=False), torch.tensor([2, 0]))
    torch.testing.assert_close(sigmoids({"logits": shares}, {}), shares[..., [2, 0]])


def test_a_softmax_teacher_gives_its_probabilities_to_a_student_with_sigmoids() -> None:
    shares = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    read = TeacherLogits(Queries(no_object=False), Queries())
    torch.testing.assert_close(read({"logits": shares.log()}, {}).sigmoid(), shares[..., :3])
    assert read({"logits": torch.tensor([[[300.0, 0, 0, 0]]])}, {}).isfinite().all()
    with pytest.raises(HfDistillError, match="no-object class, which such a teacher"):
        TeacherLogits(Queries(), Queries(no_object=False))


@pytest.mark.parametrize(("architecture", "no_object"), [("detr", True), ("yolos", True), ("mask2former", True),
    ("conditional_detr", False), ("rt_detr", False), ("lw_detr", False)])  # fmt: skip
def test_the_model_tells_whether_it_has_a_no_object_class(architecture: str, no_object: bool) -> None:
    model = tiny_queries.model(architecture, seed=0)
    task = task_of(model).bound(model)
    assert task.layout.no_object is no_object
    assert task.default_loss.__name__ == ("forward_kl" if no_object else "bernoulli_kl")
    assert task.layout.queries == (5 if architecture == "lw_detr" else None)


# ---- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["detr", "detr_with_masks", "yolos", "rt_detr", "lw_detr", "mask2former"])
def test_heads_train_evaluate_predict_and_are_saved(architecture: str, tmp_path: Path) -> None:
    job = trainer(architecture, tmp_path)
    before = copy.deepcopy(job.model.state_dict())
    job.train()
    second = "masks" if architecture in tiny_queries.SEGMENTING else "boxes"
    logged = [row for row in job.state.log_history if "loss/kd" in row]
    assert len(logged) == 2 and {"loss/task", f"loss/{second}", "grad_norm"} <= logged[0].keys()
    heads = [name for name in before if ("class" in name or "bbox" in name) and not torch.equal(
        before[name], job.model.state_dict()[name])]  # fmt: skip
    assert heads
    scores = job.evaluate()
    for name in ("task", "kd", second):
        assert np.isfinite(scores[f"eval_loss/{name}"])
    predicted = job.predict(tiny_queries.examples(architecture))
    assert [len(each) for each in predicted.predictions] == [8] * len(job.task.predictions)
    assert predicted.predictions[0].shape[1] == 5  # training's denoised queries and groups are not there
    pixels = {"pixel_values": torch.stack([row["pixel_values"] for row in tiny_queries.examples(architecture)])}
    with torch.no_grad():
        outputs = job.model.eval()(**pixels)
    for name, value in zip(job.task.predictions, predicted.predictions, strict=True):
        torch.testing.assert_close(torch.tensor(value), outputs[name], rtol=1e-3, atol=1e-3)
    classes = predicted.label_ids[1 if second == "masks" else 0]
    assert classes.shape[0] == 8 and (classes == -100).any() and (classes >= 0).any()
    job.save_model(str(tmp_path / "saved"))
    again = type(job.model).from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        reloaded = again(**pixels)
    for name in job.task.predictions:
        torch.testing.assert_close(reloaded[name], outputs[name])


@pytest.mark.parametrize("architecture", ["detr", "rt_detr", "mask2former"])
def test_what_comes_from_the_teacher_does_not_depend_on_the_cut(architecture: str, tmp_path: Path) -> None:
    second = Masks() if architecture in tiny_queries.SEGMENTING else Boxes()
    seen = []
    for size in (8, 2):
        student = tiny_queries.model(architecture, seed=1)
        freeze_batch_norm(student)
        loss = Logits("bernoulli_kl" if architecture == "rt_detr" else "forward_kl", temperature=2.0)
        job = trainer(architecture, tmp_path, student, objective=Objective([loss, second]),
            per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)  # fmt: skip
        for row in job.train_dataset if architecture == "rt_detr" else ():
            row.pop("labels")  # it draws denoising queries at random for each batch
        job.train()
        logged = [row for row in job.state.log_history if "loss/kd" in row]
        parts = [[row["loss/kd"], row[f"loss/{second.name}"], row["grad_norm"]] for row in logged]
        seen.append((torch.tensor(parts), dict(job.model.named_parameters())))
    (parts, whole), (cut_parts, cut) = seen
    torch.testing.assert_close(parts, cut_parts, rtol=1e-3, atol=1e-6)
    for name, value in whole.items():
        torch.testing.assert_close(
            value, cut[name], rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_batch_without_labels_learns_from_the_teacher_alone(tmp_path: Path) -> None:
    job = trainer("detr", tmp_path)
    batch = {"pixel_values": torch.stack([row["pixel_values"] for row in job.train_dataset])}
    counts = RowCounts.of([job.task.rows(batch)], torch.device("cpu"))
    _, context = job.outputs_and_context(job.model, batch)
    total, parts = job.distillation_objective(context, counts)
    assert parts.keys() == {"kd", "boxes"} and total.requires_grad


def test_the_teacher_itself_as_the_student_is_at_distance_zero(tmp_path: Path) -> None:
    teacher = tiny_queries.model("detr", seed=2)
    job = trainer("detr", tmp_path, copy.deepcopy(teacher), teacher)
    scores = job.evaluate()
    assert scores["eval_loss/kd"] == pytest.approx(0, abs=1e-5)
    assert scores["eval_loss/boxes"] == pytest.approx(0, abs=1e-5)


def test_families_queries_and_classes_may_differ(tmp_path: Path) -> None:
    names = {0: "cat", 1: "dog", 2: "owl"}
    more = {0: "owl", 1: "elk", 2: "cat", 3: "dog"}
    teacher = tiny_queries.model("detr", 2, num_queries=7, num_labels=4, id2label=more)
    student = tiny_queries.model("conditional_detr", 1, num_queries=4, id2label=names)
    job = trainer("detr", tmp_path, student, teacher, max_steps=1)
    assert job.teacher.read.columns.tolist() == [2, 3, 0]
    job.train()
    assert np.isfinite(job.state.log_history[0]["loss/kd"])


def test_one_class_is_enough_beside_no_object(tmp_path: Path) -> None:
    one = {"num_labels": 1}
    job = trainer("yolos", tmp_path, tiny_queries.model("yolos", 1, **one), tiny_queries.model("yolos", 2, **one))
    assert [term.name for term in job.distillation_objective.terms] == ["task", "kd", "boxes"]


def test_recipes_name_the_terms() -> None:
    boxes, masks = terms_of([{"boxes": {"l1": 3}}, {"masks": {"weight": 0.5, "dice": 0}}], "objective")
    assert repr(boxes) == "Boxes(weight=1, l1=3, giou=2)"
    assert repr(masks) == "Masks(weight=0.5, pixels=5, dice=0)"
    with pytest.raises(HfDistillError, match="did you mean"):
        terms_of([{"boxes": {"gious": 3}}], "objective")


# ---- what a user can get wrong ----------------------------------------------------------------------------------


def detection_batch(**labels: Any) -> dict[str, Any]:
    good = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
    return {"pixel_values": torch.zeros(1, 3, 4, 4), "labels": [{**good, **labels}]}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (detection_batch() | {"labels": torch.tensor([1])}, "expected a list with a dict for each"),
        (detection_batch() | {"labels": []}, "for 1 pictures"),
        (detection_batch() | {"labels": [{"class_labels": torch.tensor([1])}]}, "no 'boxes'"),
        (detection_batch(boxes=torch.tensor([[50.0, 40.0, 20.0, 20.0]])), "coordinate 50 came; .* from 0 to 1"),
        (detection_batch(boxes=torch.tensor([0.5, 0.5, 0.2, 0.2])), r"expected \(objects, 4\)"),
        (detection_batch(class_labels=torch.tensor([3])), "expected class indices from 0 to 2"),
    ],
)
def test_labels_that_the_model_cannot_read_are_named(batch: dict[str, Any], message: str) -> None:
    row = TASKS["object_detection"]
    task = replace(row, layout=replace(row.layout, classes=3))
    with pytest.raises(HfDistillError, match=message):
        task.rows(batch)
    assert len(task.rows(detection_batch()).labelled) == 1


@pytest.mark.parametrize(
    ("masks", "classes", "message"),
    [
        (torch.zeros(1, 4, 4), torch.tensor([0]), "expected two lists"),
        ([torch.zeros(2, 4, 4)], [torch.tensor([0])], "expected a mask"),
        ([torch.zeros(1, 4)], [torch.tensor([0])], "expected a mask"),
    ],
)
def test_masks_that_the_model_cannot_read_are_named(masks: Any, classes: Any, message: str) -> None:
    batch = {"pixel_values": torch.zeros(1, 3, 4, 4), "mask_labels": masks, "class_labels": classes}
    with pytest.raises(HfDistillError, match=message):
        TASKS["universal_segmentation"].rows(batch)


def test_terms_refuse_tasks_without_boxes_or_masks(tmp_path: Path) -> None:
    for term, name in ((Boxes(), "universal_segmentation"), (Masks(), "object_detection"), (Boxes(), "causal_lm")):
        with pytest.raises(HfDistillError, match="leave the term out"):
            Objective([TaskLoss(), term]).check(3, TASKS[name])
    with pytest.raises(HfDistillError, match="weight of 'l1'"):
        Boxes(l1=-1)
    with pytest.raises(HfDistillError, match="sigmoid for each class and the student a softmax"):
        trainer("detr", tmp_path, teacher=tiny_queries.model("conditional_detr", seed=2))


def test_outputs_that_are_no_set_an_example_are_named() -> None:
    outputs = sets(0)
    rows = TASKS["instance_segmentation"].rows({"pixel_values": torch.zeros(1, 3, 4, 4)})
    context = StepContext(outputs["logits"], Targets(outputs["logits"], outputs), rows, TASKS["instance_segmentation"])
    with pytest.raises(HfDistillError, match="1 examples came, for which the student gives 2"):
        with_pairs(context, outputs)
    with pytest.raises(HfDistillError, match="gives 4 class logits a query for 5 classes"):
        Queries(classes=5).logits(outputs, {})
    with pytest.raises(HfDistillError, match="needs a teacher"):
        Boxes().values(context)


def test_pictures_of_different_sizes_are_named(tmp_path: Path) -> None:
    job = trainer("detr", tmp_path)
    job.train_dataset[0]["pixel_values"] = torch.zeros(3, 16, 16)
    with pytest.raises(HfDistillError, match="expected one size"):
        job.train()
