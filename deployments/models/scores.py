"""What makes scores of a classifier's logits."""

import numpy as np
from numpy.typing import NDArray

from deployments.models.base import Scores


def scores_of(logits: NDArray[np.float32], by: Scores) -> NDArray[np.float32]:
    """Scores float32[n, labels]; `sigmoid` is for labels that do not exclude each other."""
    match by:
        case "none":
            return logits
        case "sigmoid":
            halved: NDArray[np.float32] = 0.5 * (1 + np.tanh(0.5 * logits))  # which cannot overflow
            return halved
        case "softmax":
            # The row maximum is taken off first so that nothing overflows.
            powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
            probabilities: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
            return probabilities
