"""Diagnostics of the hidden activations on a fixed probe batch.

A layer's activations are its *inputs*: after the non-linearity, norms and pooling before it. So each name here is that
of the layer that receives the units. Each diagnostic takes the activations by layer, ``(members…, rows, units)``, and
returns its values by layer, with the whole network's value under ``""``. For a network without hidden layers it returns
nothing.
"""

import torch
from torch import Tensor

from supple.diagnostics import spectra
from supple.diagnostics.facts import ByLayer, diagnostic, means_of
from supple.kernels.power_iteration import working_dtype
from supple.network.units import redo_scores


@diagnostic(title="share of dormant units", higher_is_better=False, usual=True)
def dormant_units(activations: ByLayer, threshold: float = 0.1) -> dict[str, Tensor]:
    r"""The fraction of units with a ReDo score of at most τ = 0.1; for the network, among the units of all layers.

    .. math:: s_i = \frac{\operatorname{mean} |h_i|}{\operatorname{mean}_j \operatorname{mean} |h_j| + 10^{-9}} \le \tau

    Args:
        activations: by layer.
        threshold: τ, 0.1 in all of the paper's settings; the cautious default of ReDo is 0.025.

    Source: Sokar et al., *The Dormant Neuron Phenomenon in Deep Reinforcement Learning*, 2023, definition 3.1. There a
    channel of a convolution is one unit, as for :class:`supple.ReDo`; here, after it is flattened, each of its places
    is.
    """
    return _shares({name: redo_scores(size) for name, size in _magnitudes(activations).items()}, threshold)


@diagnostic(title="share of dead units", higher_is_better=False, usual=True)
def dead_units(activations: ByLayer) -> dict[str, Tensor]:
    """The fraction of units that are zero on all probe examples; for the network, among the units of all layers.

    A network with one dead layer learns nothing, however small this fraction is: look at each layer's, too.
    """
    return _shares(_magnitudes(activations), 0.0)


@diagnostic(title="rank of the last hidden activations", higher_is_better=True, usual=True)
def feature_rank(activations: ByLayer) -> dict[str, Tensor]:
    r"""How many of the largest singular values of the last hidden activations make up 99 % of their sum.

    .. math:: \min \left\{ k : \sum_{i \le k} \sigma_i(H) \ge 0.99 \sum_i \sigma_i(H) \right\}

    H is the input of the layer that runs last, rows × units, not centred; with twin critics, the second critic's. The
    rank is 0 if all of H is zero.

    Source: Kumar et al., *Implicit Under-Parameterization Inhibits Data-Efficient Deep Reinforcement Learning*, 2021,
    with δ = 0.01.
    """
    if not activations:
        return {}
    last = list(activations.values())[-1]
    return {"": spectra.rank_of_share(spectra.singular_values(last))}


@diagnostic(title="relative change of activations", scale="symlog", usual=True)
def representation_change(activations: ByLayer, previous: ByLayer) -> dict[str, Tensor]:
    r"""How far the activations on the same probe have moved since the last measurement; the mean over layers.

    .. math:: \frac{\lVert H - H' \rVert_F}{\lVert H' \rVert_F}

    The spectral regularization paper (§5.2) uses the distance from the beginning of one task to that of the next and
    does not say how it is normalized. Here it is divided by the norm of the previous activations H', so that wide
    layers and large activations do not count more: 0 for no change, infinite if a layer was all zero and is not now.

    Layers whose input was absent, or had another number of rows, at one of the two measurements are left out: an expert
    of a mixture receives only the tokens that the router sends to it.

    Args:
        activations: by layer, now.
        previous: the same at the last measurement.
    """
    changes = {}
    for name, now in activations.items():
        if name not in previous or previous[name].shape != now.shape:
            continue
        then = previous[name].to(now.device)
        distance, size = (torch.linalg.vector_norm(h, dim=(-2, -1), dtype=torch.float64) for h in (now - then, then))
        changes[name] = (distance / size).where(distance != 0, 0)
    if activations and not changes:
        raise ValueError(
            "expected the layers and the probe of the last measurement, got activations of other shapes: measure with "
            "the same probe each time, and build another monitor for another network"
        )
    return {"": torch.stack(list(changes.values()), -1).mean(-1), **changes} if changes else {}


def _magnitudes(activations: ByLayer) -> dict[str, Tensor]:
    return {name: h.abs().mean(-2, dtype=working_dtype(h)) for name, h in activations.items()}


def _shares(values: ByLayer, threshold: float) -> dict[str, Tensor]:
    if not values:
        return {}
    below = {name: (units <= threshold).double().where(units.isfinite(), torch.nan) for name, units in values.items()}
    return means_of(below)
