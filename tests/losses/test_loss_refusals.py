"""What the losses refuse, and that each message says what came, what was expected and what to do instead."""

from __future__ import annotations

from inspect import signature

import pytest
import torch

from hfdistill.losses import LOSSES, check_classes, decoupled_kl, dist, forward_kl, standardize, top_k_kl

LABELS = {"decoupled_kl", "normalized_kd"}
FEATURE_LOSSES = {
    "attention_map_kl",
    "attention_relation",
    "attention_score_mse",
    "attention_transfer",
    "channel_wise_kl",
    "contrastive",
    "cosine_distance",
    "hint",
    "pkd",
    "probabilistic_transfer",
    "relational_angle",
    "relational_distance",
    "similarity_preserving",
}
LOGIT_LOSSES = sorted(set(LOSSES) - {"top_k_kl"} - FEATURE_LOSSES)

TOO_FEW_CLASSES = [
    ("decoupled_kl", 2, "forward_kl"),
    ("dist", 2, "forward_kl"),
    ("forward_kl", 1, "bernoulli_kl"),
    ("hard_label", 1, "bernoulli_kl"),
    ("jensen_shannon", 1, "bernoulli_kl"),
    ("normalized_kd", 2, "forward_kl"),
    ("reverse_kl", 1, "bernoulli_kl"),
    ("skew_kl", 1, "bernoulli_kl"),
    ("top_k_kl", 1, "bernoulli_kl"),
]
ANY_CLASSES = ["bernoulli_kl", "logit_mse"]


def call(name, classes, rows=4, **options):
    student = torch.randn(rows, classes, generator=torch.Generator().manual_seed(1))
    if name == "top_k_kl":
        return top_k_kl(student, torch.ones(rows, 1), indices=torch.zeros(rows, 1, dtype=torch.long), **options)
    if name in LABELS:
        options.setdefault("labels", torch.zeros(rows, dtype=torch.long))
    if name == "channel_wise_kl":
        student = student.unsqueeze(2)
    return LOSSES[name](student, student.flip(0), **options)


def test_every_loss_has_a_stated_least_number_of_classes():
    assert sorted([name for name, *_ in TOO_FEW_CLASSES] + ANY_CLASSES) == sorted(set(LOSSES) - FEATURE_LOSSES)


@pytest.mark.parametrize(("name", "classes", "remedy"), TOO_FEW_CLASSES)
def test_too_few_classes_are_refused_before_and_in_training(name, classes, remedy):
    message = f"{name} got {classes} class.*expected at least {classes + 1}.*use .*{remedy}"
    with pytest.raises(ValueError, match=message):
        check_classes(name, classes)
    with pytest.raises(ValueError, match=message):
        check_classes(LOSSES[name], classes)
    with pytest.raises(ValueError, match=message):
        call(name, classes)
    check_classes(name, classes + 1)
    assert call(name, classes + 1).isfinite().all()


@pytest.mark.parametrize("name", ANY_CLASSES)
def test_one_output_is_enough_for_sigmoid_and_regression_heads(name):
    check_classes(name, 1)
    assert call(name, 1).shape == (4,)


@pytest.mark.parametrize("name", ["dist", "forward_kl", "jensen_shannon", "logit_mse", "reverse_kl", "skew_kl"])
def test_standardising_two_classes_is_refused(name):
    with pytest.raises(ValueError, match=r"got 2 class.*expected at least 3"):
        check_classes(name, 2, standardized=True)
    with pytest.raises(ValueError, match=r"got 2 class.*expected at least 3"):
        call(name, 2, standardized=True)
    check_classes(name, 3, standardized=True)


def test_two_standardised_logits_would_be_constant_and_are_refused():
    with pytest.raises(ValueError, match=r"got 2 class.*expected at least 3.*0\.7071.*plain logits"):
        standardize(torch.randn(4, 2))


def test_check_classes_leaves_your_own_loss_alone_and_refuses_unknown_names():
    check_classes(lambda student, teacher: student[:, 0], 1)
    with pytest.raises(ValueError, match=r"got 'kl', expected one of .*forward_kl"):
        check_classes("kl", 3)


@pytest.mark.parametrize("rows", [1, 2])
def test_dist_refuses_a_batch_whose_intra_class_part_is_constant(rows):
    with pytest.raises(
        ValueError, match=rf"dist.* got a batch of {rows} row.*expected at least 3.*dataloader_drop_last"
    ):
        call("dist", 5, rows=rows)
    assert call("dist", 5, rows=rows, gamma=0.0).shape == (rows,)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_shapes_that_do_not_fit(name):
    options = {"labels": torch.zeros(4, dtype=torch.long)} if name in LABELS else {}
    for student, teacher in ((torch.zeros(4, 5), torch.zeros(4, 6)), (torch.zeros(2, 2, 5), torch.zeros(2, 2, 5))):
        with pytest.raises(ValueError, match=r"got student logits .* expected two equal shapes .*select"):
            LOSSES[name](student, teacher, **options)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_class_indices_instead_of_logits(name):
    options = {"labels": torch.zeros(4, dtype=torch.long)} if name in LABELS else {}
    with pytest.raises(TypeError, match=r"teacher logits got dtype torch.int64, expected a floating dtype.*labels="):
        LOSSES[name](torch.zeros(4, 5), torch.zeros(4, 5, dtype=torch.long), **options)
    with pytest.raises(TypeError, match=r"student logits got dtype torch.int64"):
        LOSSES[name](torch.zeros(4, 5, dtype=torch.long), torch.zeros(4, 5), **options)


WITH_TEMPERATURE = sorted(name for name, loss in LOSSES.items() if "temperature" in signature(loss).parameters)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_temperature_out_of_range(name, temperature):
    with pytest.raises(ValueError, match=f"temperature got {temperature}, expected a finite number above 0"):
        call(name, 5, temperature=temperature)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("jensen_shannon", {"beta": -0.1}, r"beta got -0\.1, expected 0"),
        ("jensen_shannon", {"beta": 1.1}, r"beta got 1\.1, expected 0"),
        ("jensen_shannon", {"beta": float("nan")}, "beta got nan"),
        ("skew_kl", {"skew": 1.0}, r"skew got 1\.0, expected 0 to below 1"),
        ("skew_kl", {"skew": -0.1}, r"skew got -0\.1"),
        ("decoupled_kl", {"alpha": -1.0}, r"alpha got -1\.0, expected a finite number, 0 or above"),
        ("decoupled_kl", {"beta": float("inf")}, "beta got inf"),
        ("decoupled_kl", {"alpha": 0.0, "beta": 0.0}, "alpha and beta got only 0"),
        ("dist", {"beta": 0.0, "gamma": 0.0}, "beta and gamma got only 0"),
        ("dist", {"gamma": -1.0}, r"gamma got -1\.0"),
        ("normalized_kd", {"gamma": -1.0}, r"gamma got -1\.0"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        call(name, 5, **options)


@pytest.mark.parametrize("name", sorted(LABELS))
def test_labels_that_do_not_fit(name):
    with pytest.raises(TypeError, match="labels"):
        LOSSES[name](torch.zeros(4, 5), torch.zeros(4, 5))
    with pytest.raises(TypeError, match=r"labels got NoneType, expected a tensor of class indices.*pass labels="):
        call(name, 5, labels=None)
    with pytest.raises(TypeError, match=r"labels got dtype torch.float32, expected integer.*forward_kl"):
        call(name, 5, labels=torch.zeros(4))
    with pytest.raises(ValueError, match=r"labels got shape \(3,\), expected \(4,\)"):
        call(name, 5, labels=torch.zeros(3, dtype=torch.long))
    for outside in (5, -1, -100):
        with pytest.raises(RuntimeError, match="out of bounds"):
            call(name, 5, labels=torch.full((4,), outside))


def test_top_k_inputs_that_do_not_fit():
    student, teacher, indices = torch.zeros(4, 5), torch.full((4, 2), 0.4), torch.zeros(4, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"got student \(4, 5\), teacher \(4, 2\), indices \(4, 3\)"):
        top_k_kl(student, teacher, indices=torch.zeros(4, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="select the same rows"):
        top_k_kl(student[:3], teacher, indices=indices)
    with pytest.raises(TypeError, match=r"indices got torch.float32, expected"):
        top_k_kl(student, teacher, indices=indices.float())
    with pytest.raises(TypeError, match="indices got NoneType"):
        top_k_kl(student, teacher, indices=None)
    with pytest.raises(TypeError, match=r"teacher probabilities got dtype torch.int64"):
        top_k_kl(student, indices, indices=indices)
    with pytest.raises(ValueError, match=r"k = 6 kept classes, expected 1 to the student's 5"):
        top_k_kl(student, torch.zeros(4, 6), indices=torch.zeros(4, 6, dtype=torch.long))


def test_own_option_names_are_refused_by_python_itself():
    with pytest.raises(TypeError, match="unexpected keyword"):
        forward_kl(torch.zeros(2, 3), torch.zeros(2, 3), T=2.0)
    with pytest.raises(TypeError, match="positional"):
        dist(torch.zeros(2, 3), torch.zeros(2, 3), 1.0)
    with pytest.raises(TypeError, match="positional"):
        decoupled_kl(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
