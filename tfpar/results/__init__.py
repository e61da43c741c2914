"""The files of a run: read them, compare runs.

```
RUN/run.json                        settings, data, command, devices, threads, versions; written first
RUN/history.csv                     one row per epoch
RUN/stages/01/predictions.parquet   one row per validation image
RUN/stages/01/metrics.json          computed from the predictions, so exact
RUN/stages/01/model.keras           the model at the end of the stage
RUN/checkpoints/                    see train/checkpoint.py
RUN/model.keras                     the final model
RUN/report.html                     see results/report.py
RUN/tensorboard/                    what TensorBoard shows
```

Example:
    >>> run = results.Run("runs/digits")
    >>> run.metrics(stage=2)["accuracy"]
    0.9...
    >>> sorted(results.compare(run, run, stages=(1, 2)))
    ['accuracy', 'agreed', 'gained', 'lost', 'same_bits']
"""

from tfpar.results.reading import Run, compare

__all__ = ["Run", "compare"]
