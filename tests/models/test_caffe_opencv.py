"""Known networks with random weights against OpenCV, which reads Caffe's files by itself, and against the rules in float64."""

import re

import caffe_rules
import caffe_write
import numpy as np
import pytest

from tfpar.models import caffe

cv2 = pytest.importorskip("cv2", reason="compares with OpenCV, which is not installed")
if not hasattr(cv2.dnn, "readNetFromCaffe"):
    pytest.skip("compares with OpenCV before 5, which still reads Caffe's files", allow_module_level=True)

pytestmark = pytest.mark.extra
TOLERANCE = 5e-6  # of the largest logit
LARGE = ("MobileNet", "AlexNet", "CaffeNet", "GoogLeNet", "ResNet-50")


def caffenet(text):
    """CaffeNet is AlexNet with each pooling before its normalization."""
    for i in (1, 2):
        norm, pool = (
            re.search(rf'layer {{\n  name: "{kind}{i}".*?\n}}\n', text, re.DOTALL)[0] for kind in ("norm", "pool")
        )
        swapped = pool.replace(f'"norm{i}"', f'"conv{i}"') + norm.replace(f'"conv{i}"', f'"pool{i}"')
        text = text.replace(norm, "").replace(pool, swapped)
    return text.replace('bottom: "pool1"\n  top: "conv2"', 'bottom: "norm1"\n  top: "conv2"').replace(
        'bottom: "pool2"\n  top: "conv3"', 'bottom: "norm2"\n  top: "conv3"'
    )


NETWORKS = {
    "LeNet": ("bvlc_mnist__lenet", None),
    "CIFAR-10 quick": ("bvlc_cifar10__cifar10_quick", None),
    "CIFAR-10 full": ("bvlc_cifar10__cifar10_full", None),
    "SqueezeNet 1.1": ("squeezenet_SqueezeNet_v1.1__deploy", None),
    "MobileNet": ("mobilenet_mobilenet_deploy", None),
    "AlexNet": ("bvlc_bvlc_alexnet__deploy", None),
    "CaffeNet": ("bvlc_bvlc_alexnet__deploy", caffenet),
    "GoogLeNet": ("bvlc_bvlc_googlenet__deploy", None),
    "ResNet-50": ("kaiming_ResNet-50-deploy", None),
}


def largest_difference(got, expected):
    return np.abs(got.reshape(expected.shape) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in NETWORKS]
)
def test_a_known_network(name, shared, tmp_path):
    if not (shared / "caffe").is_dir():
        pytest.skip("needs the collected Caffe networks beside the checkout, which are not there")
    file, change = NETWORKS[name]
    text = (shared / "caffe" / f"{file}.prototxt").read_text()
    text = (change or str)(text)
    text = re.sub(r"alpha: \S+", "alpha: 2", text)  # with the stock alpha normalization is almost the identity
    layers = caffe_write.read_layers(text)
    x = np.random.default_rng(0).standard_normal((1, *layers[0]["p"]["shape"]["dim"][1:]), np.float32)
    blobs = {}
    # Around 0 the biases after a BatchNorm make random networks amplify rounding: OpenCV is then 1e-5 from float64 itself.
    _, values = caffe_rules.forward(layers, blobs, x, caffe_rules.drawer(1, scale_bias=1.0))
    softmax = next(layer for layer in layers if layer["type"] == "Softmax")
    expected, before = (
        values[softmax["bottom"][0]],
        [each for each in layers if softmax["bottom"][0] in each["top"]][-1],
    )

    # Without the softmax the network's last blob is the logits.
    logits_text = caffe_write.prototxt([layer for layer in layers if layer is not softmax])
    (tmp_path / "n.prototxt").write_text(logits_text)
    types = {layer["name"]: layer["type"] for layer in layers}
    weights = caffe_write.caffemodel(blobs, types=types)
    (tmp_path / "n.caffemodel").write_bytes(weights)

    net = cv2.dnn.readNetFromCaffe(np.frombuffer(text.encode(), np.uint8), np.frombuffer(weights, np.uint8))
    net.enableWinograd(False)
    net.setInput(x)
    theirs = net.forward(before["name"])
    model = caffe.network(tmp_path / "n.prototxt", tmp_path / "n.caffemodel")
    ours = np.asarray(model(np.moveaxis(x, 1, -1), training=False))
    difference, tfpar_error, opencv_error = (
        largest_difference(*pair) for pair in ((ours, theirs), (ours, expected), (theirs, expected))
    )
    print(f"{name}: {difference:.1e} between them; from float64: tfpar {tfpar_error:.1e}, OpenCV {opencv_error:.1e}")
    assert np.abs(theirs).max() > 0.1
    assert difference <= TOLERANCE
    assert tfpar_error <= TOLERANCE
