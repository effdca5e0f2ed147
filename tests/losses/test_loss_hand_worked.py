"""One value a loss, or more, worked by hand as plain arithmetic."""

from __future__ import annotations

from math import exp, log, sqrt

import pytest
import torch

from hfdistill.losses import LOSSES

F64 = torch.float64

# Logits chosen so that softmax gives the teacher (1/2, 1/4, 1/4) and the student (1/6, 1/3, 1/2).
TEACHER = [log(2), 0.0, 0.0]
STUDENT = [0.0, log(2), log(3)]
FORWARD = 1 / 2 * log(3) + 1 / 4 * log(3 / 4) + 1 / 4 * log(1 / 2)
REVERSE = 1 / 6 * log(1 / 3) + 1 / 3 * log(4 / 3) + 1 / 2 * log(2)
HALF = [1 / 3, 7 / 24, 3 / 8]  # the even mixture of both
TENTH = [1 / 20 + 9 / 60, 1 / 40 + 9 / 30, 1 / 40 + 9 / 20]  # a tenth of the teacher, nine tenths of the student
TENTH_REVERSED = [1 / 60 + 9 / 20, 1 / 30 + 9 / 40, 1 / 20 + 9 / 40]
# The label is class 0: label or not is (1/2, 1/2) against (1/6, 5/6), the others (1/2, 1/2) against (2/5, 3/5).
TARGET = 1 / 2 * log(3) + 1 / 2 * log(3 / 5)
OTHERS = 1 / 2 * log(5 / 4) + 1 / 2 * log(5 / 6)
# Centred: teacher (1/6, -1/12, -1/12), student (-1/6, 0, 1/6).
PEARSON = (-1 / 36 - 1 / 72) / (sqrt(1 / 36 + 2 / 144) * sqrt(2 / 36))

HAND_WORKED = [
    ("bernoulli_kl", [log(3)], [0.0], {}, 1 / 2 * log(2 / 3) + 1 / 2 * log(2)),
    ("bernoulli_kl", [2 * log(3), 2.0], [0.0, 2.0], {"temperature": 2.0}, 4 * (1 / 2 * log(2 / 3) + 1 / 2 * log(2))),
    ("decoupled_kl", STUDENT, TEACHER, {"temperature": 1.0}, TARGET + 8 * OTHERS),
    ("decoupled_kl", STUDENT, TEACHER, {"temperature": 1.0, "alpha": 3.0, "beta": 0.5}, 3 * TARGET + 0.5 * OTHERS),
    ("dist", STUDENT, TEACHER, {"gamma": 0.0}, 1 - PEARSON),
    ("dist", STUDENT, TEACHER, {"gamma": 0.0, "beta": 2.0}, 2 * (1 - PEARSON)),
    ("forward_kl", STUDENT, TEACHER, {"temperature": 1.0}, FORWARD),
    ("forward_kl", [2 * z for z in STUDENT], [2 * z for z in TEACHER], {}, 4 * FORWARD),
    ("hard_label", STUDENT, TEACHER, {}, log(6)),
    (
        "jensen_shannon",
        STUDENT,
        TEACHER,
        {},
        1 / 2 * (1 / 2 * log(1 / 2 / HALF[0]) + 1 / 4 * log(1 / 4 / HALF[1]) + 1 / 4 * log(1 / 4 / HALF[2]))
        + 1 / 2 * (1 / 6 * log(1 / 6 / HALF[0]) + 1 / 3 * log(1 / 3 / HALF[1]) + 1 / 2 * log(1 / 2 / HALF[2])),
    ),
    (
        "jensen_shannon",
        STUDENT,
        TEACHER,
        {"beta": 0.1},
        1 / 10 * (1 / 2 * log(1 / 2 / TENTH[0]) + 1 / 4 * log(1 / 4 / TENTH[1]) + 1 / 4 * log(1 / 4 / TENTH[2]))
        + 9 / 10 * (1 / 6 * log(1 / 6 / TENTH[0]) + 1 / 3 * log(1 / 3 / TENTH[1]) + 1 / 2 * log(1 / 2 / TENTH[2])),
    ),
    ("jensen_shannon", STUDENT, TEACHER, {"beta": 0.0}, FORWARD),
    ("jensen_shannon", STUDENT, TEACHER, {"beta": 1.0}, REVERSE),
    ("logit_mse", [1.0, 2.0, 3.0], [1.0, 4.0, -1.0], {}, (0 + 4 + 16) / 3),
    ("normalized_kd", STUDENT, TEACHER, {}, 1 / 2 * log(6) + 1.5 * (1 / 2 * log(5 / 2) + 1 / 2 * log(5 / 3))),
    (
        "normalized_kd",  # at T = 2 the others are (1/2, 1/2) against (sqrt 2, sqrt 3); the label stays at T = 1
        STUDENT,
        TEACHER,
        {"gamma": 1.0, "temperature": 2.0},
        1 / 2 * log(6) + 4 * (log(sqrt(2) + sqrt(3)) - 1 / 2 * log(sqrt(2)) - 1 / 2 * log(sqrt(3))),
    ),
    ("reverse_kl", STUDENT, TEACHER, {}, REVERSE),
    ("reverse_kl", [3 * z for z in STUDENT], [3 * z for z in TEACHER], {"temperature": 3.0}, 9 * REVERSE),
    (
        "skew_kl",
        STUDENT,
        TEACHER,
        {},
        1 / 2 * log(1 / 2 / TENTH[0]) + 1 / 4 * log(1 / 4 / TENTH[1]) + 1 / 4 * log(1 / 4 / TENTH[2]),
    ),
    (
        "skew_kl",
        STUDENT,
        TEACHER,
        {"reverse": True},
        1 / 6 * log(1 / 6 / TENTH_REVERSED[0])
        + 1 / 3 * log(1 / 3 / TENTH_REVERSED[1])
        + 1 / 2 * log(1 / 2 / TENTH_REVERSED[2]),
    ),
    ("skew_kl", STUDENT, TEACHER, {"skew": 0.0}, FORWARD),
    (
        "top_k_kl",  # keeps class 0; the rest is 1/2 against 5/6
        STUDENT,
        [1 / 2],
        {"indices": [0]},
        1 / 2 * log(3) + 1 / 2 * log(3 / 5),
    ),
    (
        "top_k_kl",  # keeps 1/4 and 1/4 in another order
        [2 * z for z in STUDENT],
        [1 / 4, 1 / 4],
        {"indices": [2, 1], "temperature": 2.0},
        4 * (1 / 4 * log(1 / 2) + 1 / 4 * log(3 / 4) + 1 / 2 * log(3)),
    ),
]


@pytest.mark.parametrize(("name", "student", "teacher", "options", "expected"), HAND_WORKED)
def test_hand_worked_value(name, student, teacher, options, expected):
    options = {key: torch.tensor([value]) if key == "indices" else value for key, value in options.items()}
    if name in ("decoupled_kl", "normalized_kd"):
        options["labels"] = torch.tensor([0])
    value = LOSSES[name](torch.tensor([student], dtype=F64), torch.tensor([teacher], dtype=F64), **options)
    assert value.tolist() == [pytest.approx(expected, rel=1e-12)]


# Student features, teacher features, options, one value a row.
HAND_WORKED_FEATURES = [
    (
        "attention_map_kl",  # the second query agrees
        [[[[1 / 2, 1 / 2], [1 / 4, 3 / 4]]]],
        [[[[3 / 4, 1 / 4], [1 / 4, 3 / 4]]]],
        {},
        [1 / 2 * (3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2))],
    ),
    (
        "attention_map_kl",  # the last position is padding; what looks at it is shared out
        [[[[1 / 4, 1 / 4, 1 / 2], [1 / 8, 3 / 8, 1 / 2], [1 / 3, 1 / 3, 1 / 3]]]],
        [[[[3 / 4, 1 / 4, 0.0], [1 / 4, 3 / 4, 0.0], [1.0, 0.0, 0.0]]]],
        {"attention_mask": [[1, 1, 0]]},
        [1 / 2 * (3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2))],
    ),
    (
        "attention_map_kl",  # two heads of the student against one: their mean is 1/2, 1/2
        [[[[1.0, 0.0], [1 / 4, 3 / 4]], [[0.0, 1.0], [1 / 4, 3 / 4]]]],
        [[[[3 / 4, 1 / 4], [1 / 4, 3 / 4]]]],
        {},
        [1 / 2 * (3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2))],
    ),
    (
        "attention_relation",  # one head of width 1: scores are m_i m_j
        [[[0.0], [sqrt(log(2))]]],
        [[[sqrt(log(3))], [0.0]]],
        {"relation_heads": 1},
        [1 / 2 * (3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2)) + 1 / 2 * (1 / 2 * log(3 / 2) + 1 / 2 * log(3 / 4))],
    ),
    (
        "attention_relation",  # two heads; the teacher's have width 4, so its scores are 4 m_i m_j / 2; one head agrees
        [[[0.0, 0.0], [0.0, 0.0]]],
        [[[sqrt(log(3) / 2)] * 4 + [0.0] * 4, [0.0] * 8]],
        {"relation_heads": 2},
        [1 / 4 * (3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2))],
    ),
    (
        "attention_relation",  # the last position is padding
        [[[0.0], [sqrt(log(2))], [7.0]]],
        [[[sqrt(log(3))], [0.0], [9.0]]],
        {"relation_heads": 1, "attention_mask": [[1, 1, 0]]},
        [1 / 2 * (3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2)) + 1 / 2 * (1 / 2 * log(3 / 2) + 1 / 2 * log(3 / 4))],
    ),
    (
        "attention_score_mse",  # two heads: differences 1, 0, 0, 2 and 0, 0, 3, 0
        [[[[1.0, 2.0], [0.0, 5.0]], [[1.0, 1.0], [4.0, 1.0]]]],
        [[[[0.0, 2.0], [0.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]]],
        {},
        [(1 + 4 + 9) / 8],
    ),
    (
        "attention_score_mse",  # the last position is padding: four of nine pairs count
        [[[[1.0, 2.0, 9.0], [0.0, 5.0, 9.0], [9.0, 9.0, 9.0]]]],
        [[[[0.0, 2.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]]]],
        {"attention_mask": [[1, 1, 0]]},
        [(1 + 4) / 4],
    ),
    (
        "attention_score_mse",  # pairs named one by one, as of a causal model; what is outside may be the least number
        [[[[1.0, -torch.finfo(F64).max], [4.0, 5.0]]]],
        [[[[0.0, torch.finfo(F64).max], [1.0, 3.0]]]],
        {"attention_mask": [[[1, 0], [1, 1]]]},
        [(1 + 9 + 4) / 3],
    ),
    (
        "attention_score_mse",  # two heads of the student against one: their mean is 2
        [[[[1.0]], [[3.0]]]],
        [[[[5.0]]]],
        {},
        [9.0],
    ),
    (
        "attention_transfer",  # strengths (3, 4) and (4, 3), both of length 5
        [[[sqrt(6), 0.0], [0.0, -sqrt(8)]]],
        [[[2.0], [-sqrt(3)]]],
        {},
        [1 / 2 * ((3 / 5 - 4 / 5) ** 2 + (4 / 5 - 3 / 5) ** 2)],
    ),
    (
        "channel_wise_kl",  # channel 0 is (1/2, 1/2) for (3/4, 1/4), channel 1 is (1/4, 3/4) for (1/2, 1/2)
        [[[0.0, 0.0], [0.0, 2 * log(3)]]],
        [[[2 * log(3), 0.0], [0.0, 0.0]]],
        {"temperature": 2.0},
        [4 / 2 * (3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2) + 1 / 2 * log(2) + 1 / 2 * log(2 / 3))],
    ),
    (
        "contrastive",
        [[1.0, 0.0], [0.0, 5.0]],
        [[2.0, 0.0], [3.0, 4.0]],
        {"temperature": 0.5},
        [log(exp(2) + exp(1.2)) - 2, log(exp(0) + exp(1.6)) - 1.6],
    ),
    (
        "contrastive",  # a third teacher row is a negative only
        [[1.0, 0.0], [0.0, 5.0]],
        [[2.0, 0.0], [3.0, 4.0], [-1.0, 0.0]],
        {"temperature": 1.0},
        [log(exp(1) + exp(0.6) + exp(-1)) - 1, log(exp(0) + exp(0.8) + exp(0)) - 0.8],
    ),
    ("cosine_distance", [[3.0, 4.0], [1.0, 0.0]], [[4.0, 3.0], [-2.0, 0.0]], {}, [1 - 24 / 25, 2.0]),
    ("cosine_distance", [[[3.0, 4.0], [1.0, 0.0]]], [[[4.0, 3.0], [0.0, 2.0]]], {}, [(1 / 25 + 1) / 2]),
    ("hint", [[1.0, 2.0], [0.0, 0.0]], [[3.0, 2.0], [1.0, 2.0]], {}, [4 / 2, (1 + 4) / 2]),
    ("hint", [[[1.0], [2.0]]], [[[3.0], [5.0]]], {}, [(4 + 9) / 2]),
    (
        "pkd",  # centred (-1, 0, 1) and (-1, -1, 2), of variance 2/3 and 2
        [[0.0], [1.0], [2.0]],
        [[0.0], [0.0], [3.0]],
        {},
        [(1 / sqrt(2) - sqrt(3 / 2)) ** 2 / 2, 1 / 4, (sqrt(3 / 2) - 2 / sqrt(2)) ** 2 / 2],
    ),
    (
        "probabilistic_transfer",  # cosines 0 and 1/2: kernels 1/2 and 3/4 beside the 1 of a row with itself
        [[1.0, 0.0], [0.0, 2.0]],
        [[1.0, 0.0], [1.0, sqrt(3)]],
        {},
        [(4 / 7 * log(6 / 7) + 3 / 7 * log(9 / 7)) / 2] * 2,
    ),
    (
        "relational_angle",  # on a line, 0 - 1 - 3; a right angle at row 0
        [[0.0], [1.0], [3.0]],
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
        {},
        [2 / 9 * 1 / 2, 2 / 9 * (1 + 1 / sqrt(2) - 1 / 2), 2 / 9 * (1 - 1 / sqrt(2)) ** 2 / 2],
    ),
    (
        "relational_distance",  # distances 3, 4, 1 with mean 8/3, and 1, 2, 1 with mean 4/3
        [[0.0], [3.0], [4.0]],
        [[0.0, 0.0], [3 / 5, 4 / 5], [6 / 5, 8 / 5]],
        {},
        [1 / 3 * (3 / 8) ** 2 / 2, 2 / 3 * (3 / 8) ** 2 / 2, 1 / 3 * (3 / 8) ** 2 / 2],
    ),
    (
        "similarity_preserving",  # rows of G: (1, 0), (0, 1), and (1, 1), (1, 2)
        [[1.0, 0.0], [0.0, 1.0]],
        [[1.0, 0.0], [1.0, 1.0]],
        {},
        [((1 - 1 / sqrt(2)) ** 2 + 1 / 2) / 2, (1 / 5 + (1 - 2 / sqrt(5)) ** 2) / 2],
    ),
]


def test_every_loss_is_worked_by_hand():
    assert {name for name, *_ in HAND_WORKED + HAND_WORKED_FEATURES} == set(LOSSES)


@pytest.mark.parametrize(("name", "student", "teacher", "options", "expected"), HAND_WORKED_FEATURES)
def test_hand_worked_rows(name, student, teacher, options, expected):
    options = {key: torch.tensor(value) if key == "attention_mask" else value for key, value in options.items()}
    value = LOSSES[name](torch.tensor(student, dtype=F64), torch.tensor(teacher, dtype=F64), **options)
    assert value.tolist() == pytest.approx(expected, rel=1e-12)
