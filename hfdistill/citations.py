"""What each loss and each term with a distance of its own is in one line, and whom to cite for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A formula in plain text (p, q: teacher's and student's probabilities) and the keys of its papers."""

    formula: str
    papers: tuple[str, ...]


DISTILLATION = "hinton2015distilling"

SOURCES: dict[str, Source] = {
    "attention_map_kl": Source("KL of the attention maps, mean over heads and queries", ("wang2020minilm",)),
    "attention_relation": Source(
        "KL of softmax(M Mᵀ/√d) between relation heads of queries, keys, values", ("wang2021minilmv2",)
    ),
    "attention_score_mse": Source("mean squared distance of the attention scores Q Kᵀ/√d", ("jiao2020tinybert",)),
    "attention_transfer": Source(
        "squared distance of the normalised mean squared activation maps", ("zagoruyko2017paying",)
    ),
    "channel_wise_kl": Source("T² KL over positions, channel by channel", ("shu2021channel",)),
    "contrastive": Source(
        "InfoNCE: the teacher's features of the same example against others", ("tian2020contrastive",)
    ),
    "cosine_distance": Source("1 − cosine of the features", ("sanh2019distilbert",)),
    "hint": Source("mean squared distance of the features", ("romero2015fitnets",)),
    "pkd": Source("half the squared distance of features standardised channel by channel", ("cao2022pkd",)),
    "probabilistic_transfer": Source("KL of the cosine similarities within the batch", ("passalis2018learning",)),
    "relational_angle": Source(
        "smooth-L1 of the cosines of the angles between triples of examples", ("park2019relational",)
    ),
    "relational_distance": Source(
        "smooth-L1 of the scaled distances between pairs of examples", ("park2019relational",)
    ),
    "similarity_preserving": Source(
        "squared distance of the batch's normalised Gram matrices", ("tung2019similarity",)
    ),
    "bernoulli_kl": Source("T² Σ_c KL(Bernoulli(p_c) ‖ Bernoulli(q_c)), p = σ(z/T)", (DISTILLATION,)),
    "decoupled_kl": Source("T² (α TCKD + β NCKD)", ("zhao2022decoupled",)),
    "dist": Source("T² (β (1 − Pearson over classes) + γ (1 − Pearson over the batch))", ("huang2022knowledge",)),
    "forward_kl": Source("T² KL(p ‖ q), p = softmax(z/T)", (DISTILLATION,)),
    "hard_label": Source("cross-entropy against the teacher's most likely class", ("touvron2021training",)),
    "jensen_shannon": Source("T² (β KL(p ‖ m) + (1 − β) KL(q ‖ m)), m = β p + (1 − β) q", ("agarwal2024onpolicy",)),
    "logit_mse": Source("mean over classes of (z_student − z_teacher)²", ("ba2014deep", "kim2021comparing")),
    "normalized_kd": Source(
        "−p_y log q_y − γ T² Σ over c ≠ y of p̂_c log q̂_c, p̂ and q̂ without the label's class", ("yang2023knowledge",)
    ),
    "reverse_kl": Source("T² KL(q ‖ p), q = softmax(z/T)", ("gu2024minillm",)),
    "skew_kl": Source("T² KL(p ‖ λ p + (1 − λ) q) with λ = skew, or its reverse", ("ko2024distillm",)),
    "top_k_kl": Source("T² KL(p ‖ q) over the teacher's k best classes and one bucket for the rest", (DISTILLATION,)),
}

TERM_SOURCES: dict[str, Source] = {
    "adversarial": Source(
        "mean cross-entropy of a discriminator between pooled features, its gradient reversed for the student",
        ("xu2018training", "ganin2015unsupervised"),
    ),
    "boxes": Source(
        "over pairs of queries, weighed by the teacher's confidence: l1 |b − b'|₁ + giou (1 − GIoU(b, b'))",
        ("carion2020end", "wang2024kddetr"),
    ),
    "masks": Source(
        "over pairs of queries, weighed by the teacher's confidence: pixels · Bernoulli KL + dice · dice distance",
        ("cheng2022masked", "milletari2016vnet"),
    ),
}
"""Terms that bring their own distance, by the name that recipes call them."""

STANDARDIZED = Source("logits first standardised over the classes", ("sun2024logit",))

BIBTEX: dict[str, str] = {
    DISTILLATION: """@article{hinton2015distilling,
  title   = {Distilling the Knowledge in a Neural Network},
  author  = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal = {arXiv preprint arXiv:1503.02531},
  year    = {2015}
}""",
    "agarwal2024onpolicy": """@inproceedings{agarwal2024onpolicy,
  title     = {On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes},
  author    = {Agarwal, Rishabh and Vieillard, Nino and Zhou, Yongchao and Stanczyk, Piotr and Ramos Garea, Sabela
               and Geist, Matthieu and Bachem, Olivier},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2306.13649}
}""",
    "ba2014deep": """@inproceedings{ba2014deep,
  title     = {Do Deep Nets Really Need to be Deep?},
  author    = {Ba, Jimmy and Caruana, Rich},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2014},
  note      = {arXiv:1312.6184}
}""",
    "ganin2015unsupervised": """@inproceedings{ganin2015unsupervised,
  title     = {Unsupervised Domain Adaptation by Backpropagation},
  author    = {Ganin, Yaroslav and Lempitsky, Victor},
  booktitle = {International Conference on Machine Learning},
  year      = {2015}
}""",
    "xu2018training": """@inproceedings{xu2018training,
  title     = {Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional
               Adversarial Networks},
  author    = {Xu, Zheng and Hsu, Yen-Chang and Huang, Jiawei},
  booktitle = {International Conference on Learning Representations, Workshop Track},
  year      = {2018}
}""",
    "gu2024minillm": """@inproceedings{gu2024minillm,
  title     = {{MiniLLM}: Knowledge Distillation of Large Language Models},
  author    = {Gu, Yuxian and Dong, Li and Wei, Furu and Huang, Minlie},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2306.08543}
}""",
    "huang2022knowledge": """@inproceedings{huang2022knowledge,
  title     = {Knowledge Distillation from A Stronger Teacher},
  author    = {Huang, Tao and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022},
  note      = {arXiv:2205.10536}
}""",
    "kim2021comparing": """@inproceedings{kim2021comparing,
  title     = {Comparing {Kullback-Leibler} Divergence and Mean Squared Error Loss in Knowledge Distillation},
  author    = {Kim, Taehyeon and Oh, Jaehoon and Kim, NakYil and Cho, Sangwook and Yun, Se-Young},
  booktitle = {International Joint Conference on Artificial Intelligence},
  year      = {2021},
  note      = {arXiv:2105.08919}
}""",
    "jiao2020tinybert": """@inproceedings{jiao2020tinybert,
  title     = {{TinyBERT}: Distilling {BERT} for Natural Language Understanding},
  author    = {Jiao, Xiaoqi and Yin, Yichun and Shang, Lifeng and Jiang, Xin and Chen, Xiao and Li, Linlin
               and Wang, Fang and Liu, Qun},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP},
  year      = {2020},
  note      = {arXiv:1909.10351}
}""",
    "ko2024distillm": """@inproceedings{ko2024distillm,
  title     = {{DistiLLM}: Towards Streamlined Distillation for Large Language Models},
  author    = {Ko, Jongwoo and Kim, Sungnyun and Chen, Tianyi and Yun, Se-Young},
  booktitle = {International Conference on Machine Learning},
  year      = {2024},
  note      = {arXiv:2402.03898}
}""",
    "sun2024logit": """@inproceedings{sun2024logit,
  title     = {Logit Standardization in Knowledge Distillation},
  author    = {Sun, Shangquan and Ren, Wenqi and Li, Jingzhi and Wang, Rui and Cao, Xiaochun},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024},
  note      = {arXiv:2403.01427}
}""",
    "touvron2021training": """@inproceedings{touvron2021training,
  title     = {Training Data-Efficient Image Transformers \\& Distillation through Attention},
  author    = {Touvron, Hugo and Cord, Matthieu and Douze, Matthijs and Massa, Francisco and Sablayrolles, Alexandre
               and J{\\'e}gou, Herv{\\'e}},
  booktitle = {International Conference on Machine Learning},
  year      = {2021},
  note      = {arXiv:2012.12877}
}""",
    "yang2023knowledge": """@inproceedings{yang2023knowledge,
  title     = {From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss
               and Customized Soft Labels},
  author    = {Yang, Zhendong and Zeng, Ailing and Li, Zhe and Zhang, Tianke and Yuan, Chun and Li, Yu},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year      = {2023},
  note      = {arXiv:2303.13005}
}""",
    "zhao2022decoupled": """@inproceedings{zhao2022decoupled,
  title     = {Decoupled Knowledge Distillation},
  author    = {Zhao, Borui and Cui, Quan and Song, Renjie and Qiu, Yiyu and Liang, Jiajun},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  note      = {arXiv:2203.08679}
}""",
    "carion2020end": """@inproceedings{carion2020end,
  title     = {End-to-End Object Detection with Transformers},
  author    = {Carion, Nicolas and Massa, Francisco and Synnaeve, Gabriel and Usunier, Nicolas and Kirillov, Alexander
               and Zagoruyko, Sergey},
  booktitle = {European Conference on Computer Vision},
  year      = {2020},
  note      = {arXiv:2005.12872}
}""",
    "cheng2022masked": """@inproceedings{cheng2022masked,
  title     = {Masked-attention Mask Transformer for Universal Image Segmentation},
  author    = {Cheng, Bowen and Misra, Ishan and Schwing, Alexander G. and Kirillov, Alexander and Girdhar, Rohit},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  note      = {arXiv:2112.01527}
}""",
    "milletari2016vnet": """@inproceedings{milletari2016vnet,
  title     = {{V-Net}: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation},
  author    = {Milletari, Fausto and Navab, Nassir and Ahmadi, Seyed-Ahmad},
  booktitle = {International Conference on 3D Vision},
  year      = {2016},
  note      = {arXiv:1606.04797}
}""",
    "wang2024kddetr": """@inproceedings{wang2024kddetr,
  title     = {{KD-DETR}: Knowledge Distillation for Detection Transformer with Consistent Distillation Points
               Sampling},
  author    = {Wang, Yu and Li, Xin and Weng, Shengzhao and Zhang, Gang and Yue, Haixiao and Feng, Haocheng
               and Han, Junyu and Ding, Errui},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024},
  note      = {arXiv:2211.08071}
}""",
    "cao2022pkd": """@inproceedings{cao2022pkd,
  title     = {{PKD}: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient},
  author    = {Cao, Weihan and Zhang, Yifan and Gao, Jianfei and Cheng, Anda and Cheng, Ke and Cheng, Jian},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022},
  note      = {arXiv:2207.02039}
}""",
    "park2019relational": """@inproceedings{park2019relational,
  title     = {Relational Knowledge Distillation},
  author    = {Park, Wonpyo and Kim, Dongju and Lu, Yan and Cho, Minsu},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2019},
  note      = {arXiv:1904.05068}
}""",
    "passalis2018learning": """@inproceedings{passalis2018learning,
  title     = {Learning Deep Representations with Probabilistic Knowledge Transfer},
  author    = {Passalis, Nikolaos and Tefas, Anastasios},
  booktitle = {European Conference on Computer Vision},
  year      = {2018},
  note      = {arXiv:1803.10837}
}""",
    "romero2015fitnets": """@inproceedings{romero2015fitnets,
  title     = {{FitNets}: Hints for Thin Deep Nets},
  author    = {Romero, Adriana and Ballas, Nicolas and Kahou, Samira Ebrahimi and Chassang, Antoine and Gatta, Carlo
               and Bengio, Yoshua},
  booktitle = {International Conference on Learning Representations},
  year      = {2015},
  note      = {arXiv:1412.6550}
}""",
    "sanh2019distilbert": """@article{sanh2019distilbert,
  title   = {{DistilBERT}, a Distilled Version of {BERT}: Smaller, Faster, Cheaper and Lighter},
  author  = {Sanh, Victor and Debut, Lysandre and Chaumond, Julien and Wolf, Thomas},
  journal = {arXiv preprint arXiv:1910.01108},
  year    = {2019}
}""",
    "shu2021channel": """@inproceedings{shu2021channel,
  title     = {Channel-wise Knowledge Distillation for Dense Prediction},
  author    = {Shu, Changyong and Liu, Yifan and Gao, Jianfei and Yan, Zheng and Shen, Chunhua},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year      = {2021},
  note      = {arXiv:2011.13256}
}""",
    "tian2020contrastive": """@inproceedings{tian2020contrastive,
  title     = {Contrastive Representation Distillation},
  author    = {Tian, Yonglong and Krishnan, Dilip and Isola, Phillip},
  booktitle = {International Conference on Learning Representations},
  year      = {2020},
  note      = {arXiv:1910.10699}
}""",
    "tung2019similarity": """@inproceedings{tung2019similarity,
  title     = {Similarity-Preserving Knowledge Distillation},
  author    = {Tung, Frederick and Mori, Greg},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year      = {2019},
  note      = {arXiv:1907.09682}
}""",
    "wang2020minilm": """@inproceedings{wang2020minilm,
  title     = {{MiniLM}: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers},
  author    = {Wang, Wenhui and Wei, Furu and Dong, Li and Bao, Hangbo and Yang, Nan and Zhou, Ming},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2020},
  note      = {arXiv:2002.10957}
}""",
    "wang2021minilmv2": """@inproceedings{wang2021minilmv2,
  title     = {{MiniLMv2}: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers},
  author    = {Wang, Wenhui and Bao, Hangbo and Huang, Shaohan and Dong, Li and Wei, Furu},
  booktitle = {Findings of the Association for Computational Linguistics: ACL-IJCNLP},
  year      = {2021},
  note      = {arXiv:2012.15828}
}""",
    "zagoruyko2017paying": """@inproceedings{zagoruyko2017paying,
  title     = {Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via
               Attention Transfer},
  author    = {Zagoruyko, Sergey and Komodakis, Nikos},
  booktitle = {International Conference on Learning Representations},
  year      = {2017},
  note      = {arXiv:1612.03928}
}""",
}
