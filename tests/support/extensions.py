"""Methods of one's own, as a user may write them."""

import supple


class Bare(supple.Mitigator):
    """Without a constructor, and so without a default strength."""


class Dialless(supple.Mitigator):
    """Without a strength."""

    def __init__(self, network) -> None:
        super().__init__(network, 1.0)


class Free(supple.L2Regularizer):
    """A regularizer with a keyword of any kind."""

    def __init__(self, network, strength=0.1, *, anything=None):
        super().__init__(network, strength)
        self.anything = anything
