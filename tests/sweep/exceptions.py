"""What single families of models need beside the rules of `tiny_configs`: settings that depend on each other."""

from __future__ import annotations

from typing import Any

RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
LAST = RESNET | {"out_features": ["stage4"]}
LAST_THREE = RESNET | {"out_features": ["stage2", "stage3", "stage4"]}
ALL_FOUR = RESNET | {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
SWIN: dict[str, Any] = {
    "embed_dim": 8,
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 1, 1, 1),
    "window_size": 2,
    "patch_size": 4,
    "image_size": 64,
}

MROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}

# By model_type: settings that replace what the rules say; a dict for a nested config replaces only what it names.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "align": {"projection_dim": 64, "vision_config": {"hidden_dim": 64}},
    "blip-2": {"image_token_index": 60},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}}
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 1, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "instructblip": {"image_token_index": 60},
    "bros": {"hidden_size": 64, "num_attention_heads": 4},
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "conditional_detr": {"backbone_config": LAST},
    "cvt": {"depth": (1, 2, 3)},
    "dab-detr": {"backbone_config": LAST},
    "deformable_detr": {"backbone_config": LAST_THREE},
    "depth_pro": {"patch_size": 32},
    "detr": {"backbone_config": LAST},
    "donut-swin": {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 2},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_qk_rope_head_dim": 8,
        "swa_v_head_dim": 16,
        "swa_q_lora_rank": 8,
        "swa_kv_lora_rank": 8,
    },
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": (0, 1, 2, 3)},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320},
    "focalnet": {"embed_dim": 16, "depths": (1, 1), "focal_levels": (2, 2), "focal_windows": (3, 3)},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "chmv2": {"backbone_config": {"return_class_token": True}},
    "glm4v_moe_text": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 1, 2],
        }
    },
    "glm4v_text": MROPE,
    "glm_ocr_text": MROPE,
    "hunyuan_vl_text": MROPE,
    "qwen2_5_omni_text": MROPE,
    "paddleocr_vl_text": MROPE,
    "qwen2_5_omni_thinker": {"vision_start_token_id": 50, "vision_end_token_id": 51},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 50, "vision_end_token_id": 51},
    "step3p5": {"sliding_window": 8},
    "qwen2_5_vl_text": MROPE,
    "qwen2_vl_text": MROPE,
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "levit": {"image_size": 64, "patch_size": 16},
    "lilt": {"hidden_size": 24, "channel_shrink_ratio": 2},
    "longcat_flash": {"head_dim": 8, "zero_expert_num": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4},
    "lw_detr": {"projector_scale_factors": [1.0]},
    "lw_detr_vit": {"num_windows": 4, "window_block_indices": [0], "patch_size": 4},
    "markuplm": {"max_xpath_tag_unit_embeddings": 256, "max_xpath_subs_unit_embeddings": 1024, "max_depth": 4},
    "mimi": {"num_filters": 4},
    "mimo_v2_flash": {
        "num_key_value_heads": 1,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "mobilebert": {"embedding_size": 16},
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.25},
    "moonshine_streaming": {"num_key_value_heads": 2},
    "nystromformer": {"num_landmarks": 12, "segment_means_seq_len": 12},
    "perceiver": {
        "image_size": 16,
        "d_latents": 32,
        "d_model": 32,
        "num_cross_attention_heads": 1,
        "num_self_attention_heads": 1,
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 2,
        "ngram_vocab_size_base": 64,
    },
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8), "attn_layers": ["local", "lsh"]},
    "swin": SWIN,
    "swinv2": {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 2},
    "table-transformer": {"backbone_config": LAST},
    "upernet": {"backbone_config": ALL_FOUR},
    "vibevoice_acoustic_tokenizer": {"num_filters": 2},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 2},
    "vibevoice_acoustic_tokenizer_decoder": {"num_filters": 2},
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 3200},
    "zoedepth": {"bottleneck_features": 32},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_head_dim": 32,
        "attention_hidden_size": 64,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
}

# By class: settings that one head needs and the other heads of its family do not.
OF_CLASS: dict[str, dict[str, Any]] = {
    "BeitForSemanticSegmentation": {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3]},
    "Data2VecVisionForSemanticSegmentation": {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3]},
    "Blip2ForImageTextRetrieval": {"qformer_config": {"use_qformer_text_input": True}},
    "DetrForSegmentation": {
        "backbone_config": ALL_FOUR,
        "d_model": 128,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
    },
    "ReformerModelWithLMHead": {"is_decoder": True},
}

# By model_type: tokens in a text, where the model reads no fewer.
TEXT_LENGTH: dict[str, int] = {"blip-2": 16, "instructblip": 16, "perceiver": 64, "reformer": 64}

# By model_type: width of a frame of sound, where it is not the number of its mel bins.
FRAME: dict[str, int] = {"granite_speech5_ctc": 64, "granite_speech5": 64}

# By model_type: height and width of a picture, where a smaller one leaves a single pixel to a norm.
PICTURE: dict[str, int] = {
    "deformable_detr": 128,
    "depth_pro": 64,
    "mask2former": 64,
    "maskformer": 64,
    "oneformer": 64,
}

# By model_type: readers of texts that cannot do without a picture, though their forward would let it be left out.
NEEDS_PICTURE = {"idefics", "kosmos-2", "pp_formulanet"}
