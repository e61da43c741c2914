"""Which layers of a prototxt are built, on what input, and which preprocessing it states."""

import os

import numpy as np

from tfpar import errors, validate
from tfpar.models.caffe import files
from tfpar.models.caffe.files import refuse
from tfpar.models.caffe.layers import TABLE

DATA = ("Data", "ImageData", "MemoryData", "HDF5Data", "WindowData", "DummyData", "Input")
WEIGHTED = ("Convolution", "InnerProduct")
RESHAPING = ("Slice", "Reshape")  # their outputs are not those of the layer before
PASSING = ("Dropout", "Flatten", "Reshape", "Split")  # give the numbers that they read
JUDGES = ("SoftmaxWithLoss", "Accuracy")  # of one number a class
PHASES = ("TRAIN", "TEST")
SIDES = ("channels", "height", "width")


class Selection:
    """The layers of one phase of a network.

    Attributes:
        net: from `files.read_net`.
        there: the layers of the phase, in the order of the file.
        layers: those that compute; after `logits`, those before what judges the network.
        source: the data layer that feeds them, or of another phase where this one has none; after `needed`.
        input: name of the input, a top of the source; after `needed`.
        notes: lines about what was left out or assumed.
    """

    def __init__(self, path: files.File, phase: str):
        validate.choice("phase", phase, PHASES)
        self.net, self.notes = files.read_net(validate.path("net", path)), []
        self.there = [layer for layer in self.net.layers if self._takes_part(layer, phase)]
        self.layers = [*filter(computes, self.there)]
        refuse(not self.layers, f"{path}: no layer of phase {phase} computes anything; give the prototxt of a network")
        given = set()
        for layer in self.there:
            odd = not layer.top or given & {*layer.top} - {*layer.bottom[:1]}
            why = f"has the tops {[*layer.top]}; give it one that no other layer has"
            refuse(odd and computes(layer), f"{self.net.where(layer)} {why}")
            given |= {*layer.top}

    @property
    def batch_size(self) -> int | None:
        """The batch size of the data layer for training, if there is one."""
        sources = [layer for layer in self.net.layers if layer.type in DATA and self._takes_part(layer, "TRAIN")]
        sizes = [getattr(layer, name).batch_size for layer in sources for name in files.DATA_PARAMS]
        return next(filter(None, sizes), None)

    def logits(self) -> str:
        """Return the blob of the logits, and let the values pass a Softmax at its end.

        It is what the loss with the largest weight reads, else an Accuracy, else the last blob. Losses of other phases count too: in
        GoogLeNet they alone say which of three accuracies is that of the whole network.
        """
        judges = [layer for layer in self.net.layers if layer.type in JUDGES and layer.bottom]
        weights = {it.bottom[0]: [*it.loss_weight, 1.0][0] for it in judges if it.type == "SoftmaxWithLoss"}
        judged = {it.bottom[0] for it in judges if it.type == "Accuracy"}
        here, blob = [layer for layer in reversed(self.there) if layer in judges], self.layers[-1].top[0]
        if here:
            judge = max(here, key=lambda it: (weights.get(it.bottom[0], 0.0), it.bottom[0] in judged))
            blob, loss = judge.bottom[0], judge.loss_param
            self.layers = [*filter(computes, self.there[: self.there.index(judge)])]
            why = "ignore_label and normalization NONE are not supported; leave them out"
            refuse(loss.HasField("ignore_label") or loss.normalization == loss.NONE, f"{self.net.where(judge)}: {why}")
            if len(weights) == 1 and judge.loss_weight[:1] not in ([], [1]):
                self.notes.append(f"loss_weight {judge.loss_weight[0]:g} is not used; multiply the learning rate by it")
        others = {it.type for it in self.there if it.type.endswith("Loss")} - {*JUDGES, "MultinomialLogisticLoss"}
        if others:
            self.notes.append(f"{', '.join(sorted(others))} is not used; tfpar trains with the cross-entropy")
        passed = blob
        for layer in (layer for layer in reversed(self.layers) if passed in layer.top):
            if layer.type == "Softmax":
                self.notes.append(f"left out: {layer.name} (Softmax)")
                layer.type = "Split"
            if layer.type not in PASSING or not layer.bottom:
                break
            passed = layer.bottom[0]
        return blob

    def needed(self, blob: str) -> list:
        """Return the layers that a blob depends on, note those that are left out, and find the input."""
        wanted, kept = {blob}, []
        for layer in reversed(self.layers):
            if wanted & {*layer.top}:
                kept.insert(0, layer)
                wanted = (wanted - {*layer.top}) | {*layer.bottom}
        sources = [layer for layer in (*self.there, *self.net.layers) if layer.type in DATA]
        tops = [(layer, top) for layer in sources for top in layer.top if top in wanted]
        refuse(
            not tops and not wanted,
            f"{self.net.path}: neither an input nor a data layer; add `input` and `input_shape`",
        )
        self.source, self.input = [*tops, (None, None)][0]
        for layer, missing in ((it, blob) for it in self.there for blob in it.bottom if blob in wanted - {self.input}):
            why = f"reads {missing}, which no layer before it gives; correct it, or give one input alone"
            raise errors.DataError(f"{self.net.where(layer)} {why}")
        left = [it for it in self.there if it not in kept and it.type not in (*DATA, "Silence")]
        if left:
            self.notes.append(f"left out: {', '.join(f'{layer.name} ({layer.type})' for layer in left)}")
        return kept

    def image_shape(self, given: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """Return height, width and channels: those given, else those that the data layer states."""
        dummy, memory = self.source.dummy_data_param, self.source.memory_data_param
        sides = [[*getattr(dummy, side), getattr(memory, side)][0] for side in SIDES]
        shapes = [it.dim for it in self.source.input_param.shape or dummy.shape] or [[1, *sides]]
        dims = shapes[min([*self.source.top].index(self.input), len(shapes) - 1)]
        stated = (*dims[2:], dims[1]) if len(dims) == 4 and min(dims[1:]) > 0 else None
        why = f"the shape of its input {self.input} is {[*dims]}, which says no size of images"
        todo = "give image_shape=(height, width, channels), or a file with its input"
        refuse(given is None and stated is None, f"{self.net.path}: {why}; {todo}", errors.SettingsError)
        shape = stated if given is None else validate.image_shape(given)
        if stated not in (None, shape):
            self.notes.append(f"images of {shape} instead of {stated}")
        return shape

    def head(self, needed: list, num_classes: int | None, blobs: dict):
        """Return the last layer with weights before the logits; with another number of classes, without its blobs of the file."""
        ends = [layer for layer in needed if layer.type in (*WEIGHTED, *RESHAPING) or len(layer.bottom) > 1]
        head = ends[-1] if ends and ends[-1].type in WEIGHTED else None
        if num_classes is not None and head is not None:
            validate.integer("num_classes", num_classes, 1, validate.MOST_CLASSES)
            parameters = getattr(head, TABLE[head.type][1])
            before, parameters.num_output = parameters.num_output, num_classes
            if before != num_classes:
                blobs.pop(head.name, None)
                why = f"gets {num_classes} outputs instead of {before}, and is initialized"
                self.notes.append(f"layer {head.name} {why}")
        return head

    def preprocessing(
        self, shape: tuple, scale: float | None, mean, order: str, *, trained: bool
    ) -> tuple[float, np.ndarray]:
        """Return scale and mean: as given, else as the data layer states them, else 1 and 0, which is noted.

        Args:
            shape: of the images.
            scale, mean, order: as for `conversion.load`.
            trained: whether there are weights, which a missing mean would spoil.

        Returns:
            The mean as one number, one for each channel, or a picture `[height, width, channels]`.
        """
        stated = self.source.transform_param  # of an Input it is empty, which means 1 and 0
        unstated = self.source.type == "Input"  # a data layer without a scale means 1
        assumed = [word for word, value in (("scale 1", scale), ("mean 0", mean)) if unstated and value is None]
        assumed += ["channels in the order bgr"] * (shape[2] == 3 and order == "bgr")
        named = "mean" if mean is not None else f"{self.net.path}: mean_value"
        if mean is None:
            mean = [*stated.mean_value] or self._mean_file(stated.mean_file, trained) or [0.0]
        if stated.mirror or stated.crop_size:
            self.notes.append("mirror and crop_size of the data layer are not used; see --augment and --image-size")
        if assumed:
            found = f"no file states the preprocessing, {', '.join(assumed)} assumed"
            self.notes.append(f"{found}; see scale, mean and order")
        rule = f"{named}={mean}: give one number, {shape[2]}, or the path of a .binaryproto of such images {shape}"
        if isinstance(mean, (str, os.PathLike)):
            mean = _middle(files.read_mean(mean), shape)
        with errors.translated((TypeError, ValueError), errors.SettingsError, rule):
            mean = np.atleast_1d(np.float64(mean))
            np.broadcast_to(mean, shape)
            refuse(not np.isfinite(mean).all(), rule, ValueError)
        return validate.number("scale", stated.scale if scale is None else scale, -1e30, 1e30), mean

    def _mean_file(self, named: str, needed: bool):
        """Return the path of the mean that the data layer names, if it is there."""
        path = files.beside(self.net.path, named) if named else None
        if named and not path:
            missing = f"its mean_file {named} is not there; put it beside the prototxt, or give mean"
            refuse(needed, f"{self.net.path}: {missing}", errors.InputNotFound)
            self.notes.append(missing)
        return path

    def _takes_part(self, layer, phase: str) -> bool:
        """Tell whether a layer belongs to a phase, by Caffe's rules."""
        state = self.net.message.state

        def holds(rule) -> bool:
            return (
                (not rule.HasField("phase") or PHASES[rule.phase] == phase)
                and rule.min_level <= state.level <= rule.max_level
                and {*rule.stage} <= {*state.stage}
                and not {*rule.not_stage} & {*state.stage}
            )

        return any(map(holds, layer.include)) if layer.include else not any(map(holds, layer.exclude))


def _middle(mean: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the middle of a mean picture: Caffe subtracts it before it crops."""
    top, left = (max(0, (there - here) // 2) for there, here in zip(mean.shape[:2], shape[:2], strict=True))
    return mean[top : top + shape[0], left : left + shape[1]]


def computes(layer) -> bool:
    """Tell whether a layer is a part of the network, and neither gives it data nor judges it."""
    return layer.type not in (*DATA, "Accuracy", "Silence", "HDF5Output") and not layer.type.endswith("Loss")
