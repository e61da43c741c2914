"""What is computed from the predictions of a validation set: probabilities, exact metrics, and their table."""

import math

import numpy as np
import pyarrow as pa

TOP = 5


def table(logits: np.ndarray, split) -> pa.Table:
    """Return what `predictions.parquet` holds, one row per image in the split's order.

    Args:
        logits: `float32[N, classes]`.
        split: `(images, labels, sources)`.
    """
    probabilities = softmax(logits)
    predicted = logits.argmax(axis=1).astype(np.int32)
    columns = {
        "index": np.arange(len(logits), dtype=np.int64),
        "source": pa.array(split[2], pa.string()),
        "label": np.asarray(split[1], np.int32),
        "predicted": predicted,
        "confidence": probabilities[np.arange(len(logits)), predicted],
        "probabilities": pa.FixedSizeListArray.from_arrays(probabilities.ravel(), logits.shape[1]),
    }
    return pa.table(columns)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of `float32[N, classes]` logits, as `float32`, computed in 64 bits."""
    wide = logits.astype(np.float64)
    exponents = np.exp(wide - wide.max(axis=1, keepdims=True))
    return (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)


def metrics(predictions: pa.Table, losses: np.ndarray, class_names: list[str]) -> dict:
    """Compute a stage's metrics from its predictions.

    Args:
        predictions: from `table`.
        losses: `float32[N]`, the compiled loss of each image.
        class_names: by label.

    Returns:
        `examples`, `loss`, `accuracy`, `top5_accuracy`, and `per_class` {name: {`examples`, `correct`}}.
    """
    labels, predicted = predictions["label"].to_numpy(), predictions["predicted"].to_numpy()
    probabilities = probabilities_of(predictions)
    own = probabilities[np.arange(len(labels)), labels][:, np.newaxis]
    # Ties count by position, as a sort would put them.
    smaller_label = np.arange(probabilities.shape[1]) < labels[:, np.newaxis]
    before = (probabilities > own) | ((probabilities == own) & smaller_label)
    correct = predicted == labels
    return {
        "examples": len(labels),
        "loss": mean(losses) if np.isfinite(losses).all() else None,  # JSON has no word for what a diverged run gives
        "accuracy": float(correct.mean()),
        "top5_accuracy": float(((before.sum(axis=1) < TOP) & np.isfinite(own[:, 0])).mean()),
        "per_class": {
            name: {"examples": int((labels == label).sum()), "correct": int(correct[labels == label].sum())}
            for label, name in enumerate(class_names)
        },
    }


def probabilities_of(predictions: pa.Table) -> np.ndarray:
    """Return the probabilities of a predictions table as `float32[N, classes]`."""
    column = predictions["probabilities"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(predictions), -1)


def mean(values: np.ndarray) -> float:
    """Return the mean of float32 numbers, summed without a rounding error."""
    return math.fsum(values.tolist()) / len(values)
