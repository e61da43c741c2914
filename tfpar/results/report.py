"""`report.html`: one self-contained page with what a run found and how to repeat it; and a page that compares runs."""

import base64
import html
import io
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from tfpar import files, schedule
from tfpar.results import predictions, reading, tables

MISTAKES = 24
LIKELY = 3  # answers that are shown of a mistake
PANELS = (("loss", "val_loss"), ("accuracy", "val_accuracy"), ("learning_rate",))
VERSIONS = ("tfpar", "tensorflow", "keras", "numpy", "python")
MEANS = ("loss", "accuracy", "top5_accuracy")
_CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Noto Sans CJK JP", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS", "Microsoft YaHei", "SimHei",
)  # fmt: skip


def write(run: reading.Run, split) -> None:
    """Write `report.html` of a run; `split` holds the validation images its predictions are of."""
    found, names = run.predictions(), run.class_names
    body = [
        f"<p class=result>{tables.result(run)}</p>",
        f"<pre>{html.escape(run.facts['command'] or 'train.run(...)')}</pre>",
        _facts(run),
        "<h2>Stages</h2>", tables.markup(_stages(run)),
        "<h2>Curves</h2>", _curves({"": run}),
        "<h2>Classes, worst first</h2>", tables.markup(tables.of_classes(found, names)),
        "<h2>Confusion matrix</h2>", f"<div class=matrix>{_image(confusion(run), 'true class against predicted class')}</div>",
        "<h2>Most confident mistakes</h2>", _mistakes(found, names, split),
    ]  # fmt: skip
    title = f"{run.directory.name}: {run.settings['model']} on {run.facts['data']['name']}"
    files.write(run.directory / "report.html", _page(title, body))


def write_comparison(runs: Mapping[str, reading.Run], place: Path) -> None:
    """Write a page with what several runs differ in, and their curves over each other."""
    note = "<h2>Curves</h2><p>Solid: validation; dotted: training.</p>"
    files.write(place, _page(" and ".join(runs), [tables.markup(tables.of_runs(runs)), note, _curves(runs)]))


def _page(title: str, body: list[str]) -> str:
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{html.escape(title)}</title>"
    return f"<!doctype html><html lang=en>{head}<style>{Path(__file__).with_suffix('.css').read_text()}</style><h1>{html.escape(title)}</h1>{''.join(body)}</html>\n"


def _facts(run: reading.Run) -> str:
    """Return what a run was: its data, machine, versions and time; its settings, folded."""
    data, environment = run.facts["data"], run.facts["environment"]
    splits = ", ".join(f"{count:,} {name}" for name, count in data["examples"].items())
    images = f"{splits} images {'x'.join(map(str, data['image_shape']))}, {len(run.class_names):,} classes"
    facts = {
        "data": f"{data['directory']}: {images}",
        "machine": ", ".join([environment["processor"], f"{environment['cores']} cores", *environment["gpus"]]),
        "devices": run.facts["devices"],
        "versions": ", ".join(f"{name} {environment[name]}" for name in VERSIONS),
        "finished": time.strftime("%Y-%m-%d %H:%M"),
        **tables.speed(run),
    }
    shown = [tables.markup([("", ""), *each.items()]) for each in (facts, tables.flat(run.settings))]
    return f"<div class=facts>{shown[0]}<details><summary>Settings</summary>{shown[1]}</details></div>"


def _curves(runs: Mapping[str, reading.Run]) -> str:
    drawn = [_image(panel(runs, names), f"{names[0]} by epoch") for names in PANELS]
    return f"<div class=curves>{''.join(drawn)}</div>"


def panel(runs: Mapping[str, reading.Run], names: tuple[str, ...]) -> Figure:
    """Draw columns of the histories of runs by epoch, the last one solid; a line marks where a stage begins."""
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    for number, (title, run) in enumerate(runs.items()):
        history = run.history.to_pydict()
        for name in names:
            line, kind = (".-", "validation") if name == names[-1] else (".:", "training")
            label = kind if len(runs) == 1 else _short(title) if kind == "validation" else "_"  # that one has no label
            axes.plot(history["epoch"], history[name], line, color=f"C{number + (label == 'validation')}", label=label)
        for epoch in np.flatnonzero(np.diff(history["stage"])):
            axes.axvline(epoch + 1.5, color="gray", linewidth=0.8, linestyle=":")
    axes.set(xlabel="epoch", ylabel=names[0].replace("_", " "))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(names) > 1:
        axes.legend(frameon=False, prop={"family": _families()})
    return figure


def confusion(run: reading.Run, *, stage: int | None = None) -> Figure:
    """Draw how often each true class (rows) was given each answer (columns), in percent of the class."""
    predictions = run.predictions(stage=stage)
    classes = len(run.class_names)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (predictions["label"].to_numpy(), predictions["predicted"].to_numpy()), 1)
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(12, max(4, 0.42 * classes + 1.5))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(shown, ax=axes, label="percent of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true")
    if classes <= 50:
        names = [_short(name) for name in run.class_names]
        axes.set_xticks(range(classes), names, rotation=90, fontfamily=_families())
        axes.set_yticks(range(classes), names, fontfamily=_families())
    if classes <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if percent[row, column] > 50 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    return figure


def _families() -> list[str]:
    """Return the fonts of class names: Matplotlib's own, then those of this machine that have Chinese characters."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _CHINESE_FONTS if name in installed)]


def _short(name: str) -> str:
    text = name.replace("$", r"\$")  # no mathematics in class names
    return text if len(text) <= 20 else text[:19] + "…"


def _stages(run: reading.Run) -> list[tuple]:
    rows = [("stage", "accuracy", "loss", "top 5", "gained", "lost", "epochs", "rate as given", "trains")]
    stages = [schedule.checked(stage) for stage in run.settings["stages"]]
    for stage in range(1, run.stages + 1):
        computed = run.metrics(stage=stage)
        given = stages[stage - 1]
        trains = schedule.trained(schedule.trainable_at(stages, stage - 1)) or "-"
        means = {name: "not finite" if computed[name] is None else f"{computed[name]:.4f}" for name in MEANS}
        compared = reading.compare(run, run, stages=(max(1, stage - 1), stage))  # the first one with itself
        shown = (means["accuracy"], means["loss"], means["top5_accuracy"], compared["gained"], compared["lost"])
        rows.append((stage, *shown, given.epochs, schedule.rates(given), trains))
    return rows


def _mistakes(table, names: list[str], split) -> str:
    labels, confidence = table["label"].to_numpy(), table["confidence"].to_numpy()
    wrong = np.flatnonzero(labels != table["predicted"].to_numpy())
    if not len(wrong):
        return "<p>None: every validation image is labelled correctly.</p>"
    probabilities, shown = predictions.probabilities_of(table), []
    for i in wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]:
        pixels = split[0][i]
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture.thumbnail((192, 192))  # it is shown at 128
        likely = np.argsort(-probabilities[i], kind="stable")[:LIKELY]
        said = ", ".join(f"{html.escape(names[answer])} {probabilities[i, answer]:.0%}" for answer in likely)
        caption = f"{said}; is <b>{html.escape(names[labels[i]])}</b><br>{html.escape(table['source'][i].as_py())}"
        shown.append(f"<figure>{_image(picture, 'mistake')}<figcaption>{caption}</figcaption></figure>")
    return f"<p>{len(wrong)} of {len(labels)} are wrong.</p><div class=mistakes>{''.join(shown)}</div>"


def _image(picture: Figure | Image.Image, text: str) -> str:
    content = io.BytesIO()
    if isinstance(picture, Figure):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # no installed font has the character
            picture.savefig(content, format="png", dpi=110, metadata={"Software": None})
    else:
        picture.save(content, format="png")
    return f'<img alt="{text}" src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}">'
