"""Knowledge inside the models: hidden states, named modules, relations between examples; projectors between widths."""

from __future__ import annotations

from hfdistill.features.regions import Labelled, Span, Window
from hfdistill.features.relations import Relations
from hfdistill.features.terms import FeatureTerm, HiddenStates, Module
from hfdistill.features.watch import FeatureStep, FeatureWatch
from hfdistill.sight import Seen, Sight

__all__ = [
    "FeatureStep",
    "FeatureTerm",
    "FeatureWatch",
    "HiddenStates",
    "Labelled",
    "Module",
    "Relations",
    "Seen",
    "Sight",
    "Span",
    "Window",
]
