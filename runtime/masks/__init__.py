"""Exact per-example, per-band gradient masks.

With per-example losses l_i and a weight w[i, b] for every example and band, the gradient of every parameter p
of band b is the sum over i of w[i, b] * dl_i/dp, over a constant normaliser: as if each example had been
back-propagated alone and weighted. Back-propagation through a masked layer stays exact.
"""

from gradwarden.runtime.masks.covering import LayerRules
from gradwarden.runtime.masks.engine import Engine, make_engine
from gradwarden.runtime.masks.pieces import LayerGradients

__all__ = ["Engine", "LayerGradients", "LayerRules", "make_engine"]
