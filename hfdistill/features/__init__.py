"""Knowledge inside the models: hidden states, attention, named modules, relations, and projectors between widths."""

from __future__ import annotations

from hfdistill.features.adversarial import Adversarial
from hfdistill.features.attentions import Attentions
from hfdistill.features.regions import Labelled, Span, Window
from hfdistill.features.relations import Relations
from hfdistill.features.terms import FeatureTerm, HiddenStates, Module
from hfdistill.features.watch import FeatureStep, FeatureWatch

__all__ = [
    "Adversarial",
    "Attentions",
    "FeatureStep",
    "FeatureTerm",
    "FeatureWatch",
    "HiddenStates",
    "Labelled",
    "Module",
    "Relations",
    "Span",
    "Window",
]
