"""Several worker processes: they find each other, check their connection and agree on what one alone knows.

A worker is one process with its devices; all workers run the same program. TensorFlow reads from `TF_CONFIG` where the
others are; on Kubernetes, and below `tfpar launch`, these variables say the same, and the host names follow a pattern:

    TFPAR_NUM_WORKERS=2  JOB_COMPLETION_INDEX=0  TFPAR_HOST_TEMPLATE=train-{i}.train  TFPAR_PORT=12345

The first worker is the chief: it alone prints, logs and writes. When a worker never comes, TensorFlow
hangs and prints nothing, so the workers meet before it starts, with a deadline.

Example:
    >>> strategy = devices.strategy()                  # meets the other workers, where there are some
    >>> with strategy.scope():
    ...     model = models.small_cnn(data.image_shape, data.num_classes)
"""

from tfpar.workers.rendezvous import cluster

__all__ = ["cluster"]
