"""What an example is known by: all that its teacher reads of it, and nothing of the batch around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hfdistill.cache.keys import DECODER, input_keys


def tokens(*rows: list[int], length: int) -> dict[str, torch.Tensor]:
    """A batch padded to a length."""
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def test_a_key_does_not_depend_on_the_batch() -> None:
    """Other neighbours, another place and more padding."""
    one = input_keys(tokens([5, 6, 7], [8, 9], length=3))
    other = input_keys(tokens([1, 2, 3, 4], [8, 9], [5, 6, 7], length=6))
    assert (one[0] == other[2]).all()
    assert (one[1] == other[1]).all()


@pytest.mark.parametrize(
    "changed",
    [
        {"input_ids": torch.tensor([[5, 6, 8]])},
        {"attention_mask": torch.tensor([[1, 1, 0]])},
        {"input_ids": torch.tensor([[5, 6, 7]], dtype=torch.int32)},
        {"token_type_ids": torch.tensor([[0, 0, 1]])},
        {"pixel_values": torch.zeros(1, 3, 2, 2)},
    ],
)
def test_whatever_the_teacher_reads_is_part_of_the_key(changed: dict[str, torch.Tensor]) -> None:
    """A token, the mask, a type, and inputs more or less."""
    batch = tokens([5, 6, 7], length=3)
    assert (input_keys(batch) != input_keys({**batch, **changed})).any()


def test_the_last_bit_of_a_picture_counts_in_every_type() -> None:
    """bfloat16 has no type of numpy's."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.uint8):
        picture = torch.ones(1, 3, 4, 4, dtype=dtype)
        other = picture.clone()
        other[0, 2, 3, 3] = 0
        assert (input_keys({"pixel_values": picture}) != input_keys({"pixel_values": other})).any()
        assert (input_keys({"pixel_values": picture}) == input_keys({"pixel_values": picture.clone()})).all()


def test_padding_at_the_beginning_is_part_of_the_key() -> None:
    """There it shifts the places of the tokens."""
    left = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    assert (input_keys(left) != input_keys(tokens([5, 6], length=2))).any()


def test_where_outputs_depend_on_padding_so_do_keys() -> None:
    """Frames and maps."""
    short, long = tokens([5, 6], length=2), tokens([5, 6], length=4)
    assert (input_keys(short) == input_keys(long)).all()
    assert (input_keys(short, padded=True) != input_keys(long, padded=True)).any()


def test_the_places_that_count_are_part_of_the_key() -> None:
    """Other labelled tokens of the same text ask for other rows."""
    batch = tokens([5, 6, 7], length=4)
    first, second = (torch.tensor([row]) for row in ([True, False, True, False], [True, True, False, False]))
    assert (input_keys(batch, first) != input_keys(batch, second)).any()
    longer = torch.cat([first, torch.zeros(1, 2, dtype=torch.bool)], 1)
    assert (input_keys(batch, first) == input_keys(tokens([5, 6, 7], length=6), longer)).all()


def test_what_follows_the_last_counted_token_of_a_decoder_is_padding() -> None:
    """A decoder's inputs come without a mask."""

    def batch(*ids: int) -> dict[str, torch.Tensor]:
        return {**tokens([5, 6, 7, 8], length=4), "decoder_input_ids": torch.tensor([ids])}

    counted = torch.tensor([[True, True, False, False]])
    one = input_keys(batch(1, 2, 0, 0), counted, causal=(DECODER,))
    assert (one == input_keys(batch(1, 2), counted[:, :2], causal=(DECODER,))).all()
    assert (one != input_keys(batch(1, 3, 0, 0), counted, causal=(DECODER,))).any()


def test_choices_of_a_question_are_padded_together() -> None:
    """A mask for each of them."""
    ids = torch.tensor([[[5, 6, 0], [7, 8, 9]]])
    mask = (ids != 0).long()
    wider = torch.nn.functional.pad(ids, (0, 2)), torch.nn.functional.pad(mask, (0, 2))
    one = input_keys({"input_ids": ids, "attention_mask": mask})
    assert (one == input_keys({"input_ids": wider[0], "attention_mask": wider[1]})).all()


def test_keys_are_the_same_everywhere() -> None:
    """A cache outlives the process, the machine and the version that filled it."""
    (key,) = input_keys({"pixel_values": torch.arange(4.0).reshape(1, 1, 2, 2)})
    assert key.dtype == np.uint64
    assert f"{key[0]:016x}{key[1]:016x}" == "11cdb992f29a282169843e1b1b4634ed"
