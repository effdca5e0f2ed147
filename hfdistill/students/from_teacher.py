"""A student made of some of its teacher's layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast, overload

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from hfdistill.contract import check_trained
from hfdistill.errors import HfDistillError
from hfdistill.loading import why_not_loaded
from hfdistill.students.layers import check_same_layers, chosen_stacks, layer_lists, network_with_layers

Model = TypeVar("Model", bound=PreTrainedModel)


Layers = int | Sequence[int] | None


@overload
def student_from_teacher(teacher: Model, *, layers: Layers = None, decoder_layers: Layers = None) -> Model: ...
@overload
def student_from_teacher(teacher: str, *, layers: Layers = None, decoder_layers: Layers = None) -> PreTrainedModel: ...
def student_from_teacher(
    teacher: PreTrainedModel | str, *, layers: Layers = None, decoder_layers: Layers = None
) -> PreTrainedModel:
    """Return a student of the teacher's architecture that has fewer layers, all its weights copied from the teacher.

    Embeddings, norms and head are the teacher's own, so are the chosen layers. A student that starts so needs far fewer
    steps than one that starts from random weights: DistilBERT took every other layer of BERT in this way (Sanh et al.,
    2019, https://arxiv.org/abs/1910.01108), Patient Knowledge Distillation compares which layers to take (Sun et al.,
    2019, https://arxiv.org/abs/1908.09355). The teacher is not changed and shares no memory with the student.

    Args:
        teacher: a Transformers encoder or decoder with a stack of like layers (BERT, RoBERTa, ModernBERT, ViT, DeiT,
            BEiT, DINOv2, Llama, GPT-2, ...), or both (BART, T5, Whisper, ...), or the Hub id or folder of one, loaded
            as what it was saved as.
        layers: how many layers to keep, spread evenly from the first to the last (12 layers, ``layers=6``: 0, 2, 4, 7,
            9, 11; ``layers=1``: the first, which knows the embeddings); or which ones, from 0 upwards, ascending. Of an
            encoder-decoder those of the encoder, by default all.
        decoder_layers: the same for the decoder of an encoder-decoder: 2 of them and the whole encoder make a
            Distil-Whisper (Gandhi et al., 2023, https://arxiv.org/abs/2311.00430).

    Returns:
        The student in evaluation mode, on the teacher's device and in its dtype. With all layers it computes exactly
        what the teacher does.

    Raises:
        HfDistillError: if the layers are not the teacher's, if it has no such stack (ResNet, Swin, ALBERT), or if
            a layer works differently at its new place.

    """
    network = _loaded(teacher) if isinstance(teacher, str) else teacher
    stacks = chosen_stacks(network, layers, decoder_layers)
    student = network_with_layers(network, stacks)
    lists = layer_lists(network, student, stacks)
    _copy(network, student, lists)
    check_same_layers(network, student, lists)
    if network.can_generate():
        student.generation_config = copy.deepcopy(network.generation_config)
    student.train(mode=False)
    return student


def _loaded(name: str) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(name)
        architecture = (config.architectures or ["(none)"])[0]
        # By its class and not by an auto class: a masked-language model or a bare encoder has layers to give as well.
        network_class: Any = getattr(transformers, architecture)
        network, info = network_class.from_pretrained(name, output_loading_info=True)
    except AttributeError as error:
        raise HfDistillError(
            f"The config of {name!r} names the architecture {architecture}, which Transformers does not have; load the "
            "teacher yourself and pass the module."
        ) from error
    except (OSError, ValueError) as error:
        raise HfDistillError(f"The teacher {name!r} could not be loaded: {why_not_loaded(error)}") from error
    check_trained(network, sorted(info["missing_keys"]))
    return cast("PreTrainedModel", network)


def _copy(teacher: nn.Module, student: nn.Module, lists: Mapping[str, Sequence[int]]) -> None:
    """Fill the student's tensors from the teacher's; neither may have one that the other lacks."""
    given = _chosen_tensors(teacher.state_dict(), lists)
    shapes = {name: tensor.shape for name, tensor in given.items()}
    wanted = {name: tensor.shape for name, tensor in student.state_dict().items()}
    strangers = sorted(name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name))
    if strangers:
        kept = " and ".join(str(list(chosen)) for chosen in lists.values())
        # ModernBERT's first layer, which alone has no norm before its attention, is such a case.
        raise HfDistillError(
            f"The layers {kept} of {type(teacher).__name__} do not make a student of the same kind: "
            f"{len(strangers)} of its tensors do not fit, such as {strangers[0]!r}. Expected layers that may stand "
            "at any place; where the first layers differ from the others, keep them: layers=[0, ...]."
        )
    # A teacher may hold norms or its head in another dtype than the rest.
    tensors = dict(student.named_parameters(remove_duplicate=False)) | dict(
        student.named_buffers(remove_duplicate=False)
    )
    for name, tensor in given.items():
        tensors[name].data = tensors[name].data.to(tensor.dtype)
    student.load_state_dict(given, strict=True)


def _chosen_tensors(tensors: Mapping[str, torch.Tensor], lists: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return the tensors outside the layers and of the chosen layers, the latter under their new numbers."""
    kept = {}
    for name, tensor in tensors.items():
        stack = next((stack for stack in lists if name.startswith(f"{stack}.")), None)
        if stack is None:
            kept[name] = tensor
            continue
        layer, _, rest = name.removeprefix(f"{stack}.").partition(".")
        if int(layer) in lists[stack]:
            kept[f"{stack}.{lists[stack].index(int(layer))}.{rest}"] = tensor
    return kept
