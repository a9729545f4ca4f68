"""The methods that keep a network plastic, one file a published method."""

from supple.mitigators.base import Mitigator
from supple.mitigators.continual_backprop import ContinualBackprop
from supple.mitigators.fire import FIRE
from supple.mitigators.hare_and_tortoise import HareAndTortoise
from supple.mitigators.kernels import Strength as Strength
from supple.mitigators.kernels import Update as Update
from supple.mitigators.kernels import per_member as per_member
from supple.mitigators.l2 import L2Regularizer
from supple.mitigators.l2_init import L2InitRegularizer
from supple.mitigators.network_reset import NetworkReset
from supple.mitigators.normalize_and_project import NormalizeAndProject
from supple.mitigators.parseval import ParsevalRegularizer
from supple.mitigators.redo import ReDo
from supple.mitigators.self_normalized_resets import SelfNormalizedResets
from supple.mitigators.shrink_and_perturb import ShrinkAndPerturb
from supple.mitigators.spectral import SpectralRegularizer
from supple.mitigators.spectral_norm import SpectralNormRegularizer
from supple.mitigators.states import State as State
from supple.mitigators.states import Tensors as Tensors
from supple.mitigators.streaming_ewc import StreamingEWC
from supple.mitigators.upgd import UPGD
from supple.mitigators.wasserstein import WassersteinRegularizer
from supple.mitigators.weight_clipping import WeightClipping

__all__ = [
    "FIRE",
    "UPGD",
    "ContinualBackprop",
    "HareAndTortoise",
    "L2InitRegularizer",
    "L2Regularizer",
    "Mitigator",
    "NetworkReset",
    "NormalizeAndProject",
    "ParsevalRegularizer",
    "ReDo",
    "SelfNormalizedResets",
    "ShrinkAndPerturb",
    "SpectralNormRegularizer",
    "SpectralRegularizer",
    "StreamingEWC",
    "WassersteinRegularizer",
    "WeightClipping",
]
