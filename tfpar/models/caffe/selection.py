"""Which layers of a prototxt are built, on what input, and which preprocessing it states."""

import os
from pathlib import Path

import numpy as np

from tfpar import errors, validate
from tfpar.models.caffe import files

DATA = ("Data", "ImageData", "MemoryData", "HDF5Data", "WindowData", "DummyData", "Input")
WEIGHTED = {"Convolution": "convolution_param", "InnerProduct": "inner_product_param"}
RESHAPING = ("Slice", "Reshape")  # their outputs are not those of the layer before
JUDGES = ("SoftmaxWithLoss", "Accuracy")  # of one number a class
PHASES = ("TRAIN", "TEST")
SIDES = ("channels", "height", "width")


class Selection:
    """The layers of one phase of a network.

    Attributes:
        net: from `files.read_net`.
        layers: those that compute, in the order of the file.
        source: the data layer that feeds them, or of another phase where this one has none.
        input: name of the input.
        image_shape: height, width, channels.
        batch_size: of the data layer for training, if there is one.
        notes: lines about what was left out or assumed.
    """

    def __init__(self, path: str | os.PathLike, phase: str, image_shape: tuple[int, int, int] | None):
        validate.choice("phase", phase, PHASES)
        path = validate.path("net", path)
        self.net, self.notes = files.read_net(path), []
        there = [layer for layer in self.net.layers if self._takes_part(layer, phase)]
        sources = [layer for layer in [*there, *self.net.layers] if layer.type in DATA]
        tops = [(layer, number) for layer in sources for number in range(len(layer.top))]
        if not tops:
            raise errors.DataError(f"{path}: neither an input nor a data layer; add `input` and `input_shape`")
        self.layers = [layer for layer in there if layer.type not in DATA]
        self.source, number = max(tops, key=lambda it: self._reads(it[0].top[it[1]]))  # the images, not the labels
        if all(is_loss(layer) for layer in self.layers):
            raise errors.DataError(f"{path}: no layer of phase {phase} computes anything; correct the file")
        given = {top for layer in there if layer.type in DATA for top in layer.top}
        for layer in self.layers:
            if not is_loss(layer) and (not layer.top or given & {*layer.top} - {*layer.bottom}):
                todo = "give it one that no other layer has"
                raise errors.DataError(f"{self.where(layer)} has the tops {[*layer.top]}; {todo}")
            given |= {*layer.top}
        self.input, self.image_shape = self._input(number, image_shape)

    def _reads(self, blob: str) -> int:
        """Return how many layers with weights, or else whether any, depend on a blob."""
        reached, count, read = {blob}, 0, False
        for layer in self.layers:
            if reached & {*layer.bottom} and not is_loss(layer):
                reached, count, read = reached | {*layer.top}, count + (layer.type in WEIGHTED), True
        return count or read

    @property
    def batch_size(self) -> int | None:
        sources = [layer for layer in self.net.layers if layer.type in DATA and self._takes_part(layer, "TRAIN")]
        sizes = [getattr(layer, name).batch_size for layer in sources for name in files.DATA_PARAMS]
        return next(filter(None, sizes), None)

    def where(self, layer) -> str:
        """Return file, line, name and type of a layer, for a message."""
        return f"{self.net.path}:{self.net.lines[id(layer)]}: layer {layer.name} of type {layer.type}"

    def last(self) -> tuple[int, str]:
        """Return the number and the blob of the last layer that is no loss."""
        number = max(number for number, layer in enumerate(self.layers) if not is_loss(layer))
        return number, self.layers[number].top[0]

    def logits(self) -> tuple[int, str]:
        """Return the blob of the logits, and the number of the layer that reads it: of several losses that of the largest weight."""
        judges = [layer for layer in self.net.layers if layer.type in JUDGES and layer.bottom]  # of every phase
        weights = {it.bottom[0]: [*it.loss_weight, 1.0][0] for it in judges if it.type != "Accuracy"}
        judged = {it.bottom[0] for it in judges if it.type == "Accuracy"}

        def rank(layer) -> tuple:
            return layer.type != "Accuracy", weights.get(layer.bottom[0], 1.0), layer.bottom[0] in judged

        judge = max((layer for layer in reversed(self.layers) if layer in judges), key=rank, default=None)
        if judge is not None and judge.type != "Accuracy":
            if judge.loss_param.HasField("ignore_label") or judge.loss_param.normalization == files.NO_NORMALIZATION:
                why = "ignore_label and normalization NONE are not supported; leave them out"
                raise errors.DataError(f"{self.where(judge)}: {why}")
            if len(weights) == 1 and judge.loss_weight[:1] not in ([], [1]):
                self.notes.append(f"loss_weight {judge.loss_weight[0]:g} is not used; multiply the learning rate by it")
            return self.layers.index(judge), judge.bottom[0]
        others = {layer.type for layer in self.layers if layer.type.endswith("Loss")} - {"MultinomialLogisticLoss"}
        if others:
            self.notes.append(f"{', '.join(sorted(others))} is not used; tfpar trains with the cross-entropy")
        number, blob = self.last()
        if judge is not None:
            end, blob = self.layers.index(judge), judge.bottom[0]
            number = max((n for n in range(end) if blob in self.layers[n].top), default=end)
        layer = self.layers[number]
        return (number, layer.bottom[0]) if layer.type == "Softmax" and layer.bottom else (number + 1, blob)

    def needed(self, end: int, blob: str) -> list:
        """Return the layers before layer `end` that a blob depends on."""
        wanted, kept = {blob}, []
        for layer in reversed(self.layers[:end]):
            if wanted & {*layer.top} and not is_loss(layer):
                kept.insert(0, layer)
                wanted = (wanted - {*layer.top}) | {*layer.bottom}
        if missing := wanted - {self.input}:
            layer, blob = next((it, blob) for it in self.layers for blob in it.bottom if blob in missing)
            todo = "correct it, or give one input alone"
            raise errors.DataError(f"{self.where(layer)} reads {blob}, which no layer before it gives; {todo}")
        left = [layer for layer in self.layers if layer not in kept and layer.type != "Silence"]
        if left:
            self.notes.append(f"left out: {', '.join(f'{layer.name} ({layer.type})' for layer in left)}")
        return kept

    def head(self, needed: list, num_classes: int | None):
        """Return the last layer with weights before the logits, with as many outputs as there are classes, and whether that is new."""
        ends = [layer for layer in needed if layer.type in (*WEIGHTED, *RESHAPING) or len(layer.bottom) > 1]
        head = ends[-1] if ends and ends[-1].type in WEIGHTED else None
        if num_classes is None or head is None:
            return head, False
        validate.integer("num_classes", num_classes, 1, validate.MOST_CLASSES)
        parameters = getattr(head, WEIGHTED[head.type])
        before, parameters.num_output = parameters.num_output, num_classes
        if before != num_classes:
            self.notes.append(f"layer {head.name} gets {num_classes} outputs instead of {before}, and is initialized")
        return head, before != num_classes

    def preprocessing(self, scale: float | None, mean, order: str, *, trained: bool) -> tuple[float, np.ndarray]:
        """Return scale and mean: as given, else as the data layer states them, else 1 and 0, which is noted.

        Args:
            scale, mean, order: as for `conversion.load`.
            trained: whether there are weights, which a missing mean would spoil.

        Returns:
            The mean as one number, one for each channel, or a picture `[height, width, channels]`.
        """
        states = self.source.type != "Input"  # a data layer without a scale means 1
        stated = self.source.transform_param  # of an Input it is empty, which means 1 and 0
        assumed = [] if states else [word for word, value in (("scale 1", scale), ("mean 0", mean)) if value is None]
        scale = stated.scale if scale is None else scale
        if mean is None and stated.mean_file and not stated.mean_value:
            mean = self._beside(stated.mean_file, trained)
        named = f"{self.net.path}: mean_value" if mean is None else "mean"
        mean = [*stated.mean_value] or 0.0 if mean is None else mean
        if self.image_shape[2] == 3 and order == "bgr":
            assumed.append("channels in the order bgr")
        if stated.mirror or stated.crop_size:
            self.notes.append("mirror and crop_size of the data layer are not used; see --augment and --image-size")
        if assumed:
            found = f"no file states the preprocessing, {', '.join(assumed)} assumed"
            self.notes.append(f"{found}; see scale, mean and order")
        scale = validate.number("scale", scale, -1e30, 1e30)
        if isinstance(mean, (str, os.PathLike)):
            return scale, self._middle(files.read_mean(mean), mean)
        try:
            values = np.atleast_1d(np.asarray(mean, np.float64))
        except (TypeError, ValueError):
            values = np.array([np.nan])
        if values.shape not in ((1,), (self.image_shape[2],)) or not np.isfinite(values).all():
            rule = f"one number, {self.image_shape[2]}, or the path of a .binaryproto"
            validate.reject(named, mean, rule)
        return scale, values

    # ---- their parts

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

    def _input(self, number: int, given: tuple[int, int, int] | None) -> tuple[str, tuple[int, int, int]]:
        """Return the name of the input, which is a top of the data layer, and the shape of the images."""
        source, dummy = self.source, self.source.dummy_data_param
        sides = [[*getattr(dummy, side), getattr(source.memory_data_param, side)][0] for side in SIDES]
        shapes = [it.dim for it in source.input_param.shape or dummy.shape] or [[1, *sides]]
        name, dims = source.top[number], shapes[min(number, len(shapes) - 1)]
        stated = (*dims[2:], dims[1]) if len(dims) == 4 and min(dims[1:]) > 0 else None
        if given is None and stated is None:
            why = f"the shape of its input {name} is {[*dims]}, which says no size of images"
            raise errors.SettingsError(
                f"{self.net.path}: {why}; give image_shape=(height, width, channels), or a file with its input"
            )
        shape = stated if given is None else validate.image_shape(given)
        if stated not in (None, shape):
            self.notes.append(f"images of {shape} instead of {stated}")
        return name, shape

    def _beside(self, named: str, needed: bool) -> Path | None:
        if path := files.beside(self.net.path, named):
            return path
        missing = f"its mean_file {named} is not there; put it beside the prototxt, or give mean"
        if needed:
            raise errors.InputNotFound(f"{self.net.path}: {missing}")
        self.notes.append(missing)
        return None

    def _middle(self, mean: np.ndarray, path) -> np.ndarray:
        """Return the middle of a mean picture: Caffe subtracts it before it crops."""
        height, width, channels = self.image_shape
        top, left = (mean.shape[0] - height) // 2, (mean.shape[1] - width) // 2
        if min(top, left) < 0 or mean.shape[2] != channels:
            both = f"a mean of {mean.shape} for images of {self.image_shape}"
            raise errors.SettingsError(f"{path}: {both}; give the mean of such images")
        return mean[top : top + height, left : left + width]


def is_loss(layer) -> bool:
    """Tell whether a layer judges the network instead of being a part of it."""
    return layer.type in ("Accuracy", "Silence", "HDF5Output") or layer.type.endswith("Loss")


def is_by_batch(layer) -> bool:
    """Tell whether a layer takes the statistics of the batch even in prediction, by `use_global_stats: false`."""
    return layer.batch_norm_param.HasField("use_global_stats") and not layer.batch_norm_param.use_global_stats
