"""Which layer of the student learns from which of the teacher."""

from __future__ import annotations

from collections.abc import Mapping

from hfdistill.errors import HfDistillError

Layers = str | Mapping[int, int]
UNIFORM, LAST, SKIP = "uniform", "last", "skip:"
EXPECTED = "'last', 'uniform', 'skip:k' or {student's layer: teacher's layer}"


def checked_layers(layers: Layers) -> Layers:
    """The choice of layers; raises HfDistillError for a form that does not exist."""
    if isinstance(layers, str):
        step = layers.removeprefix(SKIP)
        if layers in (UNIFORM, LAST) or (step != layers and step.isdigit() and int(step)):
            return layers
    elif isinstance(layers, Mapping) and layers:
        pairs = {_number(key): _number(value) for key, value in layers.items()}
        if None not in pairs and None not in pairs.values():
            return {key: value for key, value in pairs.items() if key is not None and value is not None}
    raise HfDistillError(f"layers={layers!r}; expected {EXPECTED}. 0 is the embeddings' output, -1 the last layer.")


def _number(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else None


def layer_pairs(layers: Layers, student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs of places among so many hidden states of student and teacher, the first being the embeddings' output.

    `uniform` spreads the teacher's layers evenly over the student's, from its first layer to the last of both; `skip:k`
    takes every k-th of the teacher's (TinyBERT's mapping, arXiv 1909.10351, section 3.1).
    Errors: HfDistillError for a layer that a model does not have.
    """
    deepest_s, deepest_t = student - 1, teacher - 1
    if layers == LAST:
        return [(deepest_s, deepest_t)]
    if layers == UNIFORM:
        return [(place, (2 * place * deepest_t + deepest_s) // (2 * deepest_s)) for place in range(1, deepest_s + 1)]
    if isinstance(layers, str):
        step = int(layers.removeprefix(SKIP))
        if step * deepest_s > deepest_t:
            raise HfDistillError(
                f"layers={layers!r} asks for the teacher's layer {step * deepest_s}, and it has {deepest_t}, the "
                f"student {deepest_s}; expected at most 'skip:{deepest_t // max(deepest_s, 1)}', or 'uniform'."
            )
        return [(place, step * place) for place in range(1, deepest_s + 1)]
    return [(_place(key, student, "student"), _place(value, teacher, "teacher")) for key, value in layers.items()]


def _place(layer: int, count: int, role: str) -> int:
    if not -count <= layer < count:
        raise HfDistillError(
            f"layers names layer {layer} of the {role}, which has {count - 1}; expected 0 (the embeddings' output) to "
            f"{count - 1}, or -1 for the last."
        )
    return layer % count
