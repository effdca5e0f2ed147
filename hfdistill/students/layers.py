"""Which layers a model has, which are chosen, and whether a layer is still itself at another place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfdistill.errors import HfDistillError

# Config fields that hold one value a layer, as Transformers 5 names them.
PER_LAYER_FIELDS = (
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
    "indexer_types",
    "layer_rope_theta",
    "no_rope_layers",
    "num_attention_heads_per_layer",
    "attention_window",
)
# Config fields that count or name layers for use as a backbone; the config works them out again.
BACKBONE_FIELDS = ("stage_names", "out_features", "out_indices")
# What a layer may know of its place without computing anything else: its number, and the rate of its own dropping.
PLACE_WORDS = ("idx", "index", "layer_id", "drop")
# How encoder-decoders name their two counts: T5's family, and all others.
ENCODER_DECODER_FIELDS = (("num_layers", "num_decoder_layers"), ("encoder_layers", "decoder_layers"))
EXPECTED = "expected a Transformers encoder or decoder with a stack of like layers (BERT, ViT, Llama, GPT-2, ...)"


Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class Stack:
    """The layers of a model, or of its encoder or decoder: how many the teacher has and which are kept.

    `field` counts them in the config, and their modules' names begin with `within`.
    """

    field: str
    count: int
    chosen: Sequence[int]
    within: str = ""


def chosen_stacks(
    teacher: nn.Module, layers: int | Sequence[int] | None, decoder_layers: int | Sequence[int] | None
) -> list[Stack]:
    """Return which layers to keep: of the only stack, or of encoder and decoder, each whole where nothing is said.

    Raises:
        HfDistillError: if the model's layers cannot be chosen from, if the layers are not the teacher's, and if
            ``decoder_layers`` came for a model with one stack.

    """
    settings = _settings_of(teacher)
    assert isinstance(teacher, PreTrainedModel)
    if not settings.get("is_encoder_decoder"):
        if decoder_layers is not None or layers is None:
            raise HfDistillError(
                f"layers={layers} and decoder_layers={decoder_layers} came for {type(teacher).__name__}, which has one "
                "stack of layers; expected layers alone."
            )
        count = settings.get(field := _count_field(teacher.config))
        if not isinstance(count, int):
            raise _refusal(teacher, "its config has no num_hidden_layers")
        return [Stack(field, count, chosen_layers(layers, count))]
    if layers is None and decoder_layers is None:
        raise HfDistillError("Neither layers (the encoder's) nor decoder_layers came; expected one of them at least.")
    fields = next((each for each in ENCODER_DECODER_FIELDS if set(each) <= settings.keys()), None)
    if fields is None:
        raise _refusal(teacher, "its config does not count the layers of its encoder and its decoder")
    names = {id(module): name for name, module in teacher.named_modules()}
    halves: Any = teacher  # Transformers has no types for these two
    parts = [names[id(part)] for part in (halves.get_encoder(), halves.get_decoder())]
    wanted = [
        settings[field] if given is None else given
        for field, given in zip(fields, (layers, decoder_layers), strict=True)
    ]
    return [
        Stack(field, settings[field], chosen_layers(given, settings[field]), f"{part}.")
        for field, given, part in zip(fields, wanted, parts, strict=True)
    ]


def _settings_of(teacher: nn.Module) -> dict[str, Any]:
    if not isinstance(teacher, PreTrainedModel):
        raise HfDistillError(
            f"The teacher is a {type(teacher).__name__}; {EXPECTED}. Unwrap it first (PEFT: "
            "teacher.merge_and_unload()), or build the student yourself."
        )
    settings = teacher.config.to_dict()
    if "quantization_config" in settings:
        raise _refusal(teacher, "it is quantised; load it without quantization_config")
    if "depths" in settings:
        raise _refusal(teacher, "its layers come in stages of different shapes (depths)")
    return settings


def chosen_layers(layers: int | Sequence[int], count: int) -> list[int]:
    """Return which of ``count`` layers to keep: the given ones, or that many, spread from the first to the last.

    Raises:
        HfDistillError: if the number or one of the indices is out of range, or the indices do not ascend.

    """
    if isinstance(layers, int):
        if not 1 <= layers <= count:
            raise HfDistillError(f"layers={layers}, but the teacher has {count} layers; expected 1 to {count}.")
        steps = max(layers - 1, 1)
        return [(2 * place * (count - 1) + steps) // (2 * steps) for place in range(layers)]
    chosen = list(layers)
    if not chosen or not all(isinstance(layer, int) and 0 <= layer < count for layer in chosen):
        raise HfDistillError(
            f"layers={chosen}, but the teacher has {count} layers; expected at least one index from 0 to {count - 1}."
        )
    if chosen != sorted(set(chosen)):
        raise HfDistillError(
            f"layers={chosen}; expected each layer at most once and in the teacher's order: {sorted(set(chosen))}."
        )
    return chosen


def network_with_layers(teacher: Model, stacks: Sequence[Stack]) -> Model:
    """Return a network like the teacher with fewer layers, its weights random, on the teacher's device.

    Raises:
        HfDistillError: if the architecture does not admit it.

    """
    config = teacher.config
    settings = {name: value for name, value in config.to_dict().items() if name not in BACKBONE_FIELDS}
    for stack in stacks:
        settings[stack.field] = len(stack.chosen)
    if len(stacks) > 1 and "num_hidden_layers" in settings:  # the encoder's, once more
        settings["num_hidden_layers"] = len(stacks[0].chosen)
    for name in PER_LAYER_FIELDS if len(stacks) == 1 else ():
        values = settings.get(name)
        if isinstance(values, list | tuple) and len(values) == stacks[0].count:
            settings[name] = [values[layer] for layer in stacks[0].chosen]
    try:
        # Built from the fields, as from_pretrained will do with the saved student, not from an edited copy.
        fewer = type(config).from_dict(settings)
        fewer._attn_implementation = config._attn_implementation
        with teacher.device:
            return type(teacher)(fewer)
    except (ValueError, AssertionError) as error:
        kept = " and ".join(str(len(stack.chosen)) for stack in stacks)
        raise _refusal(teacher, f"its config does not admit {kept} layers ({error})") from error


def layer_lists(teacher: PreTrainedModel, student: nn.Module, stacks: Sequence[Stack]) -> dict[str, Sequence[int]]:
    """Return the kept layers by the name of each module list that holds one entry a layer: those that shrank.

    Raises:
        HfDistillError: if there is none, as where all layers share their weights.

    """
    lengths = {name: len(module) for name, module in student.named_modules() if isinstance(module, nn.ModuleList)}
    found: dict[str, Sequence[int]] = {}
    for stack in stacks:
        own: list[str] = []
        for name, module in teacher.named_modules():
            inside = any(name.startswith(f"{outer}.") for outer in own) or not name.startswith(stack.within)
            fits = isinstance(module, nn.ModuleList) and len(module) == stack.count
            if fits and not inside and lengths.get(name) == len(stack.chosen):
                own.append(name)
        if not own and len(stack.chosen) < stack.count:
            raise _refusal(
                teacher, f"no list of its modules has one entry for each of the {stack.count} layers in its config"
            )
        found |= dict.fromkeys(own, stack.chosen)
    if not found:
        raise _refusal(teacher, f"no list of its modules has one entry for each of the {stacks[0].count} layers")
    return found


def check_same_layers(teacher: nn.Module, student: nn.Module, lists: Mapping[str, Sequence[int]]) -> None:
    """Refuse a student one of whose layers computes something else than the teacher's layer that it was copied from.

    Tensors alone do not tell: whether attention is local or global, or by how much it is scaled, may hang on the place.
    """
    for stack, chosen in lists.items():
        for place, layer in enumerate(chosen):
            pairs = zip(
                teacher.get_submodule(f"{stack}.{layer}").named_modules(),
                student.get_submodule(f"{stack}.{place}").named_modules(),
                strict=True,
            )
            for (name, ours), (_, theirs) in pairs:
                before, after = _settings(ours), _settings(theirs)
                changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
                if changed:
                    key = changed[0]
                    raise HfDistillError(
                        f"Layer {layer} of the teacher cannot become layer {place} of the student: "
                        f"{'.'.join(filter(None, (name, key)))} would change from {before.get(key)!r} to "
                        f"{after.get(key)!r} with its place. Choose layers for which it stays, or build the student "
                        "yourself."
                    )


def _settings(module: nn.Module) -> dict[str, object]:
    """Return the plain values that a module keeps beside its tensors, less those that only tell its place."""
    values = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
    # GPT-2 and ImageGPT may divide attention by the layer's number, in Transformers 5.0 in their forward only.
    place_words = () if values.get("scale_attn_by_inverse_layer_idx") else PLACE_WORDS
    kept = {name: value for name, value in values.items() if not any(word in name for word in place_words)}
    return {"class": type(module).__name__} | {name: value for name, value in kept.items() if name != "training"}


def _count_field(config: PreTrainedConfig) -> str:
    return config.attribute_map.get("num_hidden_layers", "num_hidden_layers")


def _refusal(teacher: PreTrainedModel, reason: str) -> HfDistillError:
    return HfDistillError(
        f"{type(teacher).__name__} cannot be cut by layers: {reason}; {EXPECTED}. Give a smaller model as the student."
    )
