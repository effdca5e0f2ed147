"""Feature and relation losses against plain implementations with a loop or a cube in memory, and their refusals."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from torch.nn.functional import kl_div, log_softmax, normalize, smooth_l1_loss, softmax

from hfdistill.losses import (
    LOSSES,
    angle,
    attention,
    attention_relation,
    attention_transfer,
    contrastive,
    cosine_distance,
    hint,
    pkd,
    probabilistic_transfer,
    relational_angle,
    relational_distance,
)

F64 = torch.float64


@pytest.fixture
def features():
    """Student (7, 5) and teacher (7, 8): widths differ."""
    generator = torch.Generator().manual_seed(11)
    student = torch.randn(7, 5, dtype=F64, generator=generator)
    return student.requires_grad_(), torch.randn(7, 8, dtype=F64, generator=generator)


def plain_angles(features):
    arrows = normalize(features.unsqueeze(1) - features.unsqueeze(0), dim=2)  # i, j: from j to i
    return torch.einsum("ijw,kjw->jik", arrows, arrows)


def plain_distances(features):
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    return distance / distance[distance > 0].mean()


def same_values_and_gradients(value, expected, student):
    weights = torch.linspace(1.0, 2.0, len(value), dtype=value.dtype)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad((weights * rows).sum(), student)[0] for rows in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("triples", [1, 100, 2**20])
def test_relational_angle_agrees_with_the_cube_for_any_block(features, monkeypatch, triples):
    monkeypatch.setattr(angle, "_TRIPLES_ON_CPU", triples)
    student, teacher = features
    expected = smooth_l1_loss(plain_angles(student), plain_angles(teacher), reduction="none").mean((1, 2))
    same_values_and_gradients(relational_angle(student, teacher), expected, student)


def test_relational_distance_agrees_with_cdist(features):
    student, teacher = features
    expected = smooth_l1_loss(plain_distances(student), plain_distances(teacher), reduction="none").mean(1)
    same_values_and_gradients(relational_distance(student, teacher), expected, student)


def test_distances_keep_their_digits_under_a_common_offset(features):
    student, teacher = (side.detach().float() for side in features)
    for loss in (relational_distance, relational_angle):
        torch.testing.assert_close(loss(student + 1000, teacher), loss(student, teacher), rtol=2e-3, atol=2e-4)


def test_rows_that_coincide_have_no_distance_and_no_angle(features):
    student, teacher = features
    twins = torch.cat([student, student[:2]])
    teacher_twins = torch.cat([teacher, teacher[:2]])
    for loss in (relational_distance, relational_angle):
        value = loss(twins, teacher_twins)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
    expected = smooth_l1_loss(plain_angles(twins), plain_angles(teacher_twins), reduction="none").mean((1, 2))
    torch.testing.assert_close(relational_angle(twins, teacher_twins), expected)


@pytest.mark.parametrize("scores", [1, 2**20])
def test_attention_relation_agrees_with_all_heads_at_once(monkeypatch, scores):
    monkeypatch.setattr(attention, "_SCORES_ON_CPU", scores)
    generator = torch.Generator().manual_seed(5)
    student = torch.randn(3, 4, 6, dtype=F64, generator=generator).requires_grad_()
    teacher = torch.randn(3, 4, 12, dtype=F64, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]])

    def plain(features):
        heads = features.unflatten(2, (3, -1)).transpose(1, 2)
        scores = heads @ heads.mT / heads.shape[-1] ** 0.5
        return log_softmax(scores.masked_fill(mask[:, None, None] == 0, -1e300), -1)

    divergence = kl_div(plain(student), plain(teacher), log_target=True, reduction="none").sum(-1)
    expected = (divergence.mean(1) * mask).sum(1) / mask.sum(1)
    same_values_and_gradients(
        attention_relation(student, teacher, relation_heads=3, attention_mask=mask), expected, student
    )


def test_attention_relation_of_padding_alone_is_zero():
    student = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.tensor([[True, True, True], [False, False, False]])
    value = attention_relation(student, torch.ones(2, 3, 4), relation_heads=2, attention_mask=mask)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value[0] > 0
    assert value[1] == 0
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0


def test_attention_relation_ignores_what_padding_holds():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 4, 6, generator=generator)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    value = attention_relation(student, teacher, relation_heads=2, attention_mask=mask)
    noise = 50 * torch.randn(2, 2, 4, 6, generator=generator) * (1 - mask)[..., None]
    torch.testing.assert_close(
        attention_relation(student + noise[0], teacher + noise[1], relation_heads=2, attention_mask=mask), value
    )
    cut = attention_relation(student[:1, :3], teacher[:1, :3], relation_heads=2)
    torch.testing.assert_close(value[:1], cut)


def test_no_gradient_is_computed_where_none_is_asked_for():
    student, teacher = torch.ones(1, 2, 2, requires_grad=True), torch.zeros(1, 2, 2)
    with torch.no_grad():
        assert not attention_relation(student, teacher, relation_heads=1).requires_grad
    assert not attention_relation(student.detach(), teacher, relation_heads=1).requires_grad


def test_mean_of_pkd_is_one_minus_the_correlation_of_channels(features):
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 3, 4, 6, dtype=F64, generator=generator)
    correlations = scipy.stats.pearsonr(student.reshape(12, 6).numpy(), teacher.reshape(12, 6).numpy(), axis=0)
    assert pkd(student, teacher).mean().item() == pytest.approx(1 - correlations.statistic.mean(), rel=1e-12)


def test_channel_wise_kl_agrees_with_torch():
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 3, 4, 6, dtype=F64, generator=generator)  # N 3, positions 4, C 6
    expected = kl_div(log_softmax(student / 4, 1), softmax(teacher / 4, 1), reduction="sum") * 16 / (3 * 6)
    torch.testing.assert_close(LOSSES["channel_wise_kl"](student, teacher).mean(), expected)


def test_probabilistic_transfer_is_the_mean_over_all_pairs(features):
    student, teacher = (side.detach() for side in features)
    p_s, p_t = ((torch.cosine_similarity(side[:, None], side[None], dim=2) + 1) / 2 for side in (student, teacher))
    p_s, p_t = p_s / p_s.sum(1, keepdim=True), p_t / p_t.sum(1, keepdim=True)
    torch.testing.assert_close(probabilistic_transfer(student, teacher).mean(), (p_t * (p_t / p_s).log()).mean())


def test_probabilistic_transfer_stays_finite_for_opposite_rows():
    opposite, alike = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    for student, teacher in ((opposite, alike), (alike, opposite), (opposite, opposite)):
        student = student.clone().requires_grad_()
        value = probabilistic_transfer(student, teacher)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert value.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "name", ["relational_distance", "relational_angle", "similarity_preserving", "probabilistic_transfer"]
)
def test_relations_take_sequences_and_maps_flattened(features, name):
    student, teacher = features
    value = LOSSES[name](student[:, :4].reshape(7, 2, 2), teacher.reshape(7, 4, 2))
    torch.testing.assert_close(value, LOSSES[name](student[:, :4], teacher))


@pytest.mark.parametrize(
    "name", ["attention_transfer", "cosine_distance", "contrastive", "probabilistic_transfer", "pkd"]
)
def test_a_zero_or_constant_student_has_no_wild_gradient(name):
    student = (
        torch.zeros(3, 4, 5, requires_grad=True)
        if name == "attention_transfer"
        else torch.zeros(3, 5, requires_grad=True)
    )
    teacher = torch.randn(student.shape, generator=torch.Generator().manual_seed(1))
    value = LOSSES[name](student, teacher)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.isfinite().all()
    assert gradient.abs().max() == 0


def test_dead_inputs_are_refused():
    with pytest.raises(ValueError, match=r"attention_transfer got 1 position.*expected at least 2.*use hint"):
        attention_transfer(torch.zeros(3, 1, 4), torch.zeros(3, 1, 4))
    with pytest.raises(ValueError, match=r"relational_distance got a batch of 2 row.*expected at least 3.*larger"):
        relational_distance(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"contrastive got a batch of 1 row.*expected at least 2"):
        contrastive(torch.zeros(1, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"pkd got 2 value.*expected at least 3.*dataloader_drop_last"):
        pkd(torch.zeros(2, 4), torch.zeros(2, 4))
    assert contrastive(torch.ones(1, 4), torch.eye(3, 4)).shape == (1,)


@pytest.mark.parametrize("name", ["hint", "cosine_distance", "pkd", "channel_wise_kl"])
def test_widths_that_differ_need_a_projector(name):
    with pytest.raises(ValueError, match=rf"{name} got student features \(3, 4, 5\) .* \(3, 4, 6\).*project"):
        LOSSES[name](torch.zeros(3, 4, 5), torch.zeros(3, 4, 6))


@pytest.mark.parametrize("name", ["attention_transfer", "channel_wise_kl", "attention_relation"])
def test_maps_are_rows_positions_width(name):
    with pytest.raises(ValueError, match=rf"{name} got student features .*pool the larger map.*flatten\(2\)"):
        LOSSES[name](torch.zeros(3, 4, 5), torch.zeros(3, 6, 5))
    with pytest.raises(ValueError, match=r"flatten\(2\)\.transpose\(1, 2\)"):
        LOSSES[name](torch.zeros(3, 5, 2, 2), torch.zeros(3, 5, 2, 2))


def test_features_that_do_not_fit():
    with pytest.raises(ValueError, match="select the same rows from both"):
        relational_angle(torch.zeros(3, 4), torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"contrastive got .*\(rows or more, width\).*project"):
        contrastive(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"contrastive got .*project"):
        contrastive(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(TypeError, match=r"student features got dtype torch\.int64"):
        hint(torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 4))
    with pytest.raises(TypeError, match=r"teacher features got dtype torch\.int64"):
        cosine_distance(torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.long))


def test_attention_relation_options_that_do_not_fit():
    student, teacher = torch.zeros(2, 3, 6), torch.zeros(2, 3, 8)
    with pytest.raises(ValueError, match=r"relation_heads got 3 for widths 6 and 8.*divides both"):
        attention_relation(student, teacher, relation_heads=3)
    with pytest.raises(ValueError, match="relation_heads got 0"):
        attention_relation(student, teacher, relation_heads=0)
    with pytest.raises(ValueError, match=r"attention_mask got shape \(2, 4\), expected \(2, 3\)"):
        attention_relation(student, teacher, relation_heads=2, attention_mask=torch.ones(2, 4))
