"""Any Transformers config made tiny by the names of its settings, with a short list of what single families need.

The rules know what a setting called `hidden_size` or `num_experts` means, not which model it belongs to. A setting that
holds one entry a layer (`layer_types`, ...) keeps one layer of every kind that the default has.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.sweep.exceptions import EXCEPTIONS

WIDTH = 32
HEADS = 2
HEAD_WIDTH = WIDTH // HEADS
LAYERS = 2
VOCABULARY = 64
POSITIONS = 64
IMAGE = 32
PATCH = 8
LABELS = 3
EXPERTS = 4

# The first pattern that matches the whole name decides. A number is an upper bound, so that what is small already stays
# as it is; a value in a tuple is set whatever the default was.
RULES: list[tuple[str, int | tuple[Any]]] = [
    (r"type_vocab_size|.*_feature_layers?", 10**9),
    (r"\w*vocab_size\w*|\w+_group_vocab", VOCABULARY),
    (r"num_kv_shared_layers", (0,)),
    (r"hidden_size_per_layer_input", 8),
    (r"use_cache|apply_spec_augment|output_router_logits|use_mamba_kernels", (False,)),
    (r".*(dropout|drop_rate|drop_path|pdrop|layerdrop|jitter)\w*|mask_(time|feature)_prob|drop_path_rate", (0.0,)),
    (r"depth_multiplier", (0.1,)),
    (r"layer_?scale(_init)?_value|layer_scale_initial_scale|initializer_range|init_std", (0.5,)),
    # Layers, heads and what lies in them.
    (r"(num_)?(\w+_)?layers?|n_layers?|depth|num_blocks|num_hidden_groups|num_layers_per_stack", LAYERS),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"mamba_n_heads|mamba_num_heads", 4),
    (r"mamba_d_ssm", 64),
    (r"upsample_groups|hidden_size_global", WIDTH),
    (r"d_kv|d_head|dim_head|kv_channels|mamba_d_head", HEAD_WIDTH),
    (r"(num_)?(\w+_)?(key_value|kv)_heads|n_head_kv|num_query_groups", HEADS),
    (r"(num_)?(\w+_)?heads?|n_heads?|num_attention_heads_\w+", HEADS),
    (r"rotary_dim|qk_(rope|nope)_head_dim|\w*lora_rank|\w+_rank", 8),
    (r"(\w+_)?head_?(dim|size)", HEAD_WIDTH),
    (r"(n_routed|num_local|moe_num|num)_experts", EXPERTS),
    (r"(num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts)", 2),
    (r"n_group|topk_group|num_expert_group|n_groups|mamba_n_?groups|num_conv_pos_embedding_groups|num_groups", 1),
    (r"(n|num|moe_num)_shared_experts", 1),
    (r"(\w+_)?(d_state|state_size)", 8),
    (r"(\w+_)?chunk_size(_\w+)?|sliding_window(_size)?|attention_window(_size)?|(\w+_)?block_size", 8),
    (r"index_topk|max_window_layers|local_attention", 16),
    # Lengths and pictures.
    (r"(\w+_)?max_\w*(position|positions|position_embeddings|seq_len|length)|n_positions|n_ctx", POSITIONS),
    (r"max_(2d|source|target|text|speech)_\w+|model_max_length|(seq|context|image_seq|train)_length", POSITIONS),
    (r"(pretrain_)?(image|img)_size|crop_size|eval_size|train_size", IMAGE),
    (r"patch_size", PATCH),
    (r"num_conv_pos_embeddings", 4),
    (r"num_denoising", (0,)),
    (r"group_detr", 2),
    (r"train_num_points|num_feature_points", 16),
    (r"num_mel_bins|num_codevectors_per_group", 16),
    (r"num_frames|frames_per_clip", 4),
    (r"(num_)?(query_tokens|queries|latents|landmarks|image_tokens)|resampler_num_latents|num_buckets", 8),
    # Everything else that is wide, but not the shape of a convolution.
    (r"\w*(kernel|stride|pad|dilat|grid|merge|compress|window|tubelet|temporal_patch)\w*", 10**9),
    (
        r"(\w+_)?(intermediate|ffn|feed_forward|inner)_?(size|dim|hidden_size)?|d_ff|d_inner|dff|dim_ff|n_inner|mlp_dim",
        48,
    ),
    (
        r"(\w+_)?(hidden|embed|embedding|emb|proj|projection|model|width|channels?|filters)(_(size|dim|width|units))?s?",
        WIDTH,
    ),
    (r"d_\w+|\w+_(dim|size|hidden_size|channels|units|width)|dim|n_embd|embed_dims?|hidden_sizes|tdnn_dim", WIDTH),
]
# What a default leaves open, to be found in a checkpoint's config.
OPEN = {
    "pad_token_id": 1,
    "head_dim": HEAD_WIDTH,
    "num_key_value_heads": HEADS,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "vocab_size": VOCABULARY,
}
STAGES = re.compile(r"depths|layers|n_attn_blocks|stage_num_blocks|num_block_repeats")
TOKENS = re.compile(r"\w*token_(id|index)|\w+_token|(im_start|im_end|im_newline|eoa?|boa?|image_patch)_(id|index)")


def tiny_config(model_type: str, **settings: Any) -> PreTrainedConfig:
    """A config of a family, small enough for a model of some hundred kB; `settings` win over every rule."""
    return shrunk(CONFIG_MAPPING[model_type], **settings)


def shrunk(
    config_class: type[PreTrainedConfig], default: PreTrainedConfig | None = None, **settings: Any
) -> PreTrainedConfig:
    """The config class with small settings throughout, its nested configs too.

    `default` is what a nested config is by default, which its class alone need not be.
    """
    plain = config_class()
    default = default or plain
    names = field_names(config_class) - {"per_layer_config"}  # made anew from what the other settings say
    told = {name: value for name, value in vars(default).items() if name in names}
    own = {
        name: value
        for name, value in told.items()
        if not isinstance(value, PreTrainedConfig) and value != vars(plain).get(name)
    }
    changes = {**own, **small_settings(default), **EXCEPTIONS.get(config_class.model_type, {}), **settings}
    for name, value in changes.items():
        part = vars(default).get(name)
        if isinstance(value, dict) and isinstance(part, PreTrainedConfig) and "model_type" not in value:
            changes[name] = shrunk(type(part), part, **value)
    return config_class(**changes)


@functools.cache
def field_names(config_class: type[PreTrainedConfig]) -> frozenset[str]:
    """Names of the settings that a config class declares."""
    return frozenset(field.name for field in dataclasses.fields(config_class))


def small_settings(default: PreTrainedConfig) -> dict[str, Any]:
    """What to change in a config, setting by setting."""
    names = field_names(type(default))
    # A setting may be kept under another name than the one that the constructor takes.
    declared = {kept: name for name, kept in default.attribute_map.items() if name in names and kept not in names}
    values = {declared.get(name, name): value for name, value in vars(default).items() if not name.startswith("_")}
    places = layer_places(values)
    changed: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, PreTrainedConfig):
            changed[name] = shrunk(type(value), value)
        elif name in names and name not in {"id2label", "label2id", "num_labels"}:
            small = layered(name, value, places, values)
            if small != value:
                changed[name] = small
    changed |= outputs_kept(default)
    left_open = {name: value for name, value in OPEN.items() if name in names and values.get(name) is None}
    encoder_decoder = vars(default).get("is_encoder_decoder") or "decoder_config" in names
    if encoder_decoder:
        started = {"decoder_start_token_id": 2, "pad_token_id": 1}
        left_open |= {name: value for name, value in started.items() if vars(default).get(name) is None}
    return changed | left_open


def outputs_kept(default: PreTrainedConfig) -> dict[str, Any]:
    """As many feature maps as the default of a backbone gives; of a transformer, one after each of its layers."""
    kept = vars(default).get("_out_indices") or []
    if len(kept) < 2:
        return {}
    if layer_count(vars(default)) == len(vars(default).get("stage_names", ())) - 1:
        return {"num_hidden_layers": len(kept), "out_indices": list(range(1, len(kept) + 1))}
    return {"out_indices": list(kept)}


def layer_count(values: dict[str, Any]) -> int | None:
    """How many layers the default has, by whichever name."""
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if isinstance(values.get(name), int):
            return int(values[name])
    return None


def layer_places(values: dict[str, Any]) -> list[int]:
    """Layers to keep so that each kind that a list names is there, at least `LAYERS` of them; empty without lists."""
    count = layer_count(values)
    lists = [value for value in values.values() if isinstance(value, list) and count and len(value) == count]
    kinds = [[str(each[place]) for each in lists] for place in range(count or 0)] if lists else []
    if not kinds:
        return []
    kept: list[int] = []
    for column in range(len(lists)):
        seen = {kinds[place][column] for place in kept}
        for place, row in enumerate(kinds):
            if row[column] not in seen and len(kept) < 6:
                seen.add(row[column])
                kept.append(place)
    for place in range(len(kinds)):
        if len(kept) < LAYERS and place not in kept:
            kept.append(place)
    return sorted(set(kept))


def layered(name: str, value: Any, places: list[int], values: dict[str, Any]) -> Any:
    """A setting made small, with the lists of layers cut to the same layers."""
    if places:
        if isinstance(value, list) and len(value) == layer_count(values):
            return small_value(name, [value[place] for place in places])
        if name in {"num_hidden_layers", "n_layer", "n_layers", "num_layers"}:
            return len(places)
    return small_value(name, value)


def small_value(name: str, value: Any) -> Any:
    """One setting made small."""
    if TOKENS.fullmatch(name) and not isinstance(value, bool):
        return token(name, value)
    if isinstance(value, dict):
        return small_rope(value) if "rope" in name else value
    if STAGES.fullmatch(name) and isinstance(value, (list, tuple)):
        return type(value)(1 for _ in value)
    if isinstance(value, str):
        return value
    bound = rule(name)
    if isinstance(bound, tuple):
        several = isinstance(value, (list, tuple))
        kept = value is None or isinstance(value, bool) != isinstance(bound[0], bool)
        return type(value)(bound[0] for _ in value) if several else value if kept else bound[0]
    if isinstance(value, (list, tuple)):
        return type(value)(min(each, bound) if type(each) is int else each for each in value)
    return min(value, bound) if type(value) is int else value


@functools.cache
def rule(name: str) -> int | tuple[Any]:
    """The first rule that a name fits."""
    for pattern, bound in RULES:
        if re.fullmatch(pattern, name):
            return bound
    return 10**9


def token(name: str, value: Any) -> Any:
    """A special token inside the vocabulary; those beyond it come from its upper end, each name its own."""
    if isinstance(value, (list, tuple)):
        return type(value)(token(name, each) for each in value[: 1 if name.endswith("_id") else None])
    if isinstance(value, bool) or not isinstance(value, int) or value < VOCABULARY // 4:
        return value
    places = {"image": 1, "video": 2, "audio": 3, "pad": 4, "bos": 5, "eos": 6}
    for word, place in places.items():
        if name.startswith((f"{word}_token", f"{word}_index")):
            return VOCABULARY - place
    return VOCABULARY - 7 - sum(map(ord, name)) % 8


def small_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings for heads of `HEAD_WIDTH`."""
    small = dict(rope)
    for key, value in rope.items():
        if isinstance(value, dict):
            small[key] = small_rope(value)
        elif key == "mrope_section" and isinstance(value, (list, tuple)):
            width = HEAD_WIDTH // 2
            first = [max(1, each * width // sum(value)) for each in value[:-1]]
            small[key] = [*first, width - sum(first)]
        elif key in {"short_factor", "long_factor"}:
            small[key] = [1.0] * (HEAD_WIDTH // 2)
    return small
