"""`report.html`: one self-contained page with the curves, the confusion matrix and the most confident mistakes."""

import base64
import html
import io
import warnings

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from tfpar import files, schedule
from tfpar.results import reading

MISTAKES = 24
MEANS = ("loss", "accuracy", "top5_accuracy")
_CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Noto Sans CJK JP", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS", "Microsoft YaHei", "SimHei",
)  # fmt: skip
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } img { max-width: 100%; height: auto; }
.mistakes { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; width: 8rem; font-size: .8rem; overflow-wrap: anywhere; }
figure img { width: 8rem; height: 8rem; object-fit: contain; image-rendering: pixelated; background: #eee; }
"""


def write(run: reading.Run, split) -> None:
    """Write `report.html` of a run; `split` holds the validation images its predictions are of."""
    name = html.escape(run.facts["data"]["name"])
    model = html.escape(run.settings["model"])
    body = [
        f"<h1>{name}: {model}</h1>",
        f"<p>{html.escape(run.facts['devices'])}</p>",
        "<h2>Stages</h2>", _stages(run),
        "<h2>Curves</h2>", _image(curves(run), "loss, accuracy and learning rate by epoch"),
        "<h2>Confusion matrix</h2>", _image(confusion(run), "true class against predicted class"),
        "<h2>Most confident mistakes</h2>", _mistakes(run, split),
    ]  # fmt: skip
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><style>{_STYLE}</style>{''.join(body)}</html>\n"
    files.write(run.directory / "report.html", page)


def curves(run: reading.Run) -> Figure:
    """Draw loss, accuracy and learning rate by epoch; a line marks where a stage begins."""
    history = run.history.to_pydict()
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = (("loss", "val_loss"), ("accuracy", "val_accuracy"), ("learning_rate",))
    for axes, names in zip(figure.subplots(1, 3), panels, strict=True):
        for name in names:
            label = {"val_": "validation"}.get(name[:4], "training") if len(names) > 1 else name.replace("_", " ")
            axes.plot(history["epoch"], history[name], marker=".", label=label)
        for i in range(1, len(history["stage"])):
            if history["stage"][i] != history["stage"][i - 1]:
                axes.axvline(history["epoch"][i] - 0.5, color="gray", linewidth=0.8, linestyle=":")
        axes.set_title(names[0].replace("_", " "))
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(names) > 1:
            axes.legend(frameon=False)
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
    if classes <= 12:
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


def _stages(run: reading.Run) -> str:
    rows = ["<table><tr><th>stage<th>epochs<th>rate as given<th>trains<th>examples<th>loss<th>accuracy<th>top 5"]
    stages = [schedule.checked(stage) for stage in run.settings["stages"]]
    for stage in range(1, run.stages + 1):
        computed = run.metrics(stage=stage)
        given = stages[stage - 1]
        trains = schedule.trained(schedule.trainable_at(stages, stage - 1)) or "-"
        shown = ("not finite" if computed[name] is None else f"{computed[name]:.4f}" for name in MEANS)
        cells = (stage, given.epochs, schedule.rates(given), trains, computed["examples"], *shown)
        rows.append("<tr><td>" + "<td>".join(map(str, cells)))
    return "".join(rows) + "</table>"


def _mistakes(run: reading.Run, split) -> str:
    predictions = run.predictions().drop(["probabilities"]).to_pydict()
    wrong = [i for i in predictions["index"] if predictions["label"][i] != predictions["predicted"][i]]
    wrong.sort(key=lambda i: -predictions["confidence"][i])
    if not wrong:
        return "<p>None: every validation image is labelled correctly.</p>"
    shown = []
    for i in wrong[:MISTAKES]:
        pixels = split[0][i]
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        said, true = (html.escape(run.class_names[predictions[key][i]]) for key in ("predicted", "label"))
        caption = f"<b>{said}</b> {predictions['confidence'][i]:.0%}, is <b>{true}</b><br>{html.escape(predictions['source'][i])}"
        shown.append(f"<figure>{_image(picture, 'mistake')}<figcaption>{caption}</figcaption></figure>")
    return f"<p>{len(wrong)} of {len(predictions['index'])} are wrong.</p><div class=mistakes>{''.join(shown)}</div>"


def _image(picture: Figure | Image.Image, text: str) -> str:
    content = io.BytesIO()
    if isinstance(picture, Figure):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # no installed font has the character
            picture.savefig(content, format="png", dpi=110, metadata={"Software": None})
    else:
        picture.save(content, format="png")
    return f'<img alt="{text}" src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}">'
