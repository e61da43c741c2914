"""The tutorial's pictures: built from their sources, in both languages, readable in light and dark, and true."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tfpar import errors, kubernetes, settings
from tfpar.signals import Interrupted

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "tutorial" / "pictures"
DRAWN = [path for path in sorted((PICTURES / "sources").iterdir()) if path.suffix in (".svg", ".py")]
NAMES = [path.stem for path in DRAWN]
SVG = "{http://www.w3.org/2000/svg}"
HAN = re.compile("[\u4e00-\u9fff]")

each_name = pytest.mark.parametrize("name", NAMES)
each_product = pytest.mark.parametrize(
    "product", [f"{name}{suffix}" for name in NAMES for suffix in (".svg", ".zh.svg")]
)


def _build():
    spec = importlib.util.spec_from_file_location("build_pictures", PICTURES / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = _build()
LABELS = BUILD.labels()
SOURCES = {path.stem: BUILD.source(path) for path in DRAWN}


def words(product: str) -> str:
    return " ".join("".join(text.itertext()) for text in ElementTree.parse(PICTURES / product).iter(f"{SVG}text"))


def test_products_are_up_to_date():
    products = BUILD.products()
    old = [path.name for path, text in products.items() if not path.exists() or path.read_text("utf-8") != text]
    assert not old, "run: python tutorial/pictures/build.py"
    there = {path for path in PICTURES.iterdir() if path.suffix in (".svg", ".html")}
    assert there == set(products), "a picture without a source"


def test_every_label_is_there_in_both_languages_and_used():
    used = set(
        re.findall(
            r"\{(\w+)\}", " ".join(re.sub(r"<style>.*?</style>", "", each, flags=re.S) for each in SOURCES.values())
        )
    )
    page = (PICTURES / "sources" / "shards.html").read_text("utf-8")
    assert {key for key in LABELS["en"] if f'"{key}"' in page} | used == set(LABELS["en"])
    for key, english in LABELS["en"].items():
        chinese = LABELS["zh"][key]
        assert english.strip() and chinese.strip(), key
        assert not HAN.search(english), key
        assert HAN.search(chinese) or key == "try_reason", key  # the message is English in both


@each_name
def test_only_names_and_numbers_are_not_labels(name):
    for attributes, _, text in BUILD.TEXT.findall(SOURCES[name]):
        kind = re.search(r'class="(.*?)"', attributes)
        literal = re.sub(r"\{\w+\}", "", text)
        is_name = "code" in (kind[1].split() if kind else ()) or literal in ("Job", "Service", "NetworkPolicy")
        assert is_name or not re.search(r"[A-Za-z]{3}", literal), text
    assert SOURCES[name].count("<text") == len(BUILD.TEXT.findall(SOURCES[name])), (
        "a text without x, or with a part inside"
    )


@each_product
def test_product_stands_alone(product):
    text = (PICTURES / product).read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg" and root.find(f"{SVG}title").text
    assert bool(HAN.search(root.find(f"{SVG}title").text)) == product.endswith(".zh.svg")
    assert int(root.get("width")) <= 760 and root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert "script" not in {each.tag.removeprefix(SVG) for each in root.iter()}
    assert "//" not in text.replace("http://www.w3.org/2000/svg", "") and "@import" not in text
    assert all(link.startswith("#") for link in re.findall(r'href="(.*?)"|url\((.*?)\)', text) for link in link if link)
    assert not re.search(r"\{\w+\}", words(product))


def test_both_colour_schemes_are_set():
    light, dark = (PICTURES / "style.css").read_text("utf-8").split("@media (prefers-color-scheme: dark)")
    colored = [set(re.findall(r"\.(\w+)(?=[^{}]*\{[^}]*#\w{6})", each)) for each in (light, dark)]
    assert colored[0] == colored[1] and {"c0", "c3", "plain", "paper", "note", "bad"} <= colored[0]
    used = {
        kind for source in SOURCES.values() for kinds in re.findall(r'class="(.*?)"', source) for kind in kinds.split()
    }
    known = set(re.findall(r"\.([a-z]\w*)", light)) | set(re.findall(r"\.([a-z]\w*) \{", SOURCES["ring"]))
    assert used <= known


def test_words_are_those_of_the_glossary():
    rows = (ROOT / "tutorial" / "glossary.md").read_text("utf-8").split("## Not written")[1]
    banned = [word for row in re.findall(r"^\| (.*?) \|", rows, re.M)[2:] for word in re.split(r", |、", row)]
    text = "\n".join(label for each in LABELS.values() for label in each.values())
    assert not [word for word in banned if re.search(rf"\b{word}" if word.isascii() else word, text, re.I)]


# ---- what they say is so


def test_the_moving_picture_rests_where_a_reader_wants_no_motion():
    assert "prefers-reduced-motion: reduce" in SOURCES["ring"]
    sizes = re.findall(r'class="part part(\d)"', SOURCES["ring"])
    assert sorted(set(sizes)) == [str(part) for part in range(8)]  # the beginning, six turns, the end


def test_every_worker_ends_with_every_number():
    cells = re.findall(
        r'<rect class="c(\d)(?: fill\d)? box" x="(\d+)" y="(\d+)" width="20"', SOURCES["ring"].split('class="arrow"')[0]
    )
    assert len(cells) == len(set(cells)) == 4 * 4 * 4  # workers, pieces, numbers of each worker


def test_kubernetes_picture_is_the_manifest():
    service, job, policy = kubernetes.manifests(["train", "digits"], workers=4, gpus=1, image="tfpar:1")
    shown, spec = words("kubernetes.svg"), job["spec"]
    assert all(each["kind"] in shown for each in (service, job, policy))
    for key in ("completionMode", "completions", "backoffLimit"):
        assert f"{key}: {spec[key]}" in shown
    assert f"clusterIP: {service['spec']['clusterIP']}" in shown
    pod = spec["template"]["spec"]
    environment = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    for index in range(4):
        assert f"{environment['TFPAR_HOST_TEMPLATE'].format(i=index)}:{environment['TFPAR_PORT']}" in shown
    claims = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
    mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"] if mount["name"] in claims}
    assert all(mount in shown for mount in mounts) and mounts == {"/tfpar/data", "/tfpar/runs"}
    assert ", ".join(map(str, errors.FINAL)) in shown
    assert f"{Interrupted.exit_code}, {errors.WorkerLost.exit_code}" in shown
    assert f"exit {errors.WorkerLost.exit_code}" in words("workers.svg")


def test_map_names_what_is_there():
    named = re.findall(r"[a-z]\w*(?:/|\.py)", words("map.svg").replace("tfpar/", ""))
    assert len(named) > 8 and all((ROOT / "tfpar" / each).exists() for each in named)


@pytest.mark.parametrize("page", ["en/02_model", "en/08_when_it_fails", "zh/02_model", "zh/08_when_it_fails"])
def test_picture_stands_before_the_first_code(page):
    before = (ROOT / "tutorial" / f"{page}.md").read_text("utf-8").split("\n```python\n")[0]
    (picture,) = re.findall(r"\]\((\.\./pictures/\S+\.svg)\)", before)
    assert (ROOT / "tutorial" / "en" / picture).exists() and (".zh." in picture) == page.startswith("zh")


def test_model_picture_is_the_model():
    keras = pytest.importorskip("keras")
    from tfpar import models

    model, shown = models.small_cnn((8, 8, 1), 10), words("model.svg")
    size = " x ".join(map(str, model.input_shape[1:]))
    assert f"{size}, {model.input.dtype}" in shown
    assert f"{model.output_shape[1]}, {model.output.dtype}" in shown
    layers = [type(layer) for layer in model.layers]
    drawn = [layers.index(each) for each in (keras.layers.Rescaling, keras.layers.Conv2D, keras.layers.Dense)]
    assert drawn == sorted(drawn) and layers[-1] is keras.layers.Dense
    assert f"divide by {1 / model.layers[1].scale:.0f}" in re.sub(r"(?<=:)(?=\w)", " ", shown)


def test_failures_in_the_picture_are_those_of_the_page():
    """Each failure of the page has one box, and the first thing to check is there."""
    page = (ROOT / "tutorial" / "en" / "08_when_it_fails.md").read_text("utf-8").split("\n## In practice")[0]
    sections = re.findall(r"^## (?!See|What|Begin|The program|Find)(.*)$", page, re.M)
    drawn = re.findall(r'<rect class="(.*?)" .*? width="136"', SOURCES["failures"])
    # "Flip a bit of the weights" damages three files, each with a box, and "Kill a run" and "Lose a worker" have one each.
    assert len(drawn) == len(sections) + 2 == 15
    assert {"traps.md", "tfpar.check"} <= set(words("failures.svg").split())
    assert (ROOT / "tutorial" / "traps.md").exists() and (ROOT / "tfpar" / "check.py").exists()


def test_page_refuses_with_the_words_of_the_library():
    for replicas in range(1, 9):
        for shards in (shards for shards in range(1, 13) if shards % replicas):
            with pytest.raises(errors.SettingsError) as refused:
                settings.Settings(shards=shards).resolved(replicas)
            numbers = {"shards": shards, "replicas": replicas, "next": -(-shards // replicas) * replicas}
            assert str(refused.value) == LABELS["en"]["try_reason"].format(**numbers)


def test_numbers_of_the_input_pictures():
    tf = pytest.importorskip("tensorflow")
    from tfpar import engine
    from tfpar.engine import batches

    order = engine.order(tf.range(4, 8, dtype=tf.int64), examples=5, seed=0).numpy().tolist()
    shown = [int(number) for number in re.findall(r"\b\d\b", words("pipeline.svg").split("page 3")[1])]
    assert order == [1, 0, 3, 2]
    assert all(pair in " ".join(map(str, shown)) for pair in ("4 5 1 0", "6 7 3 2"))
    assert (batches.INFERENCE_CHUNK, 4 * 64 - 179, 3 * 64 - 179) == (64, 77, 13)
    assert "77 dropped" in words("padding.svg") and "13 times image 178" in words("padding.svg")
