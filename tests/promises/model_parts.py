"""Parts from which `test_random_models` puts small networks together: each takes images and returns images.

A part is called with a tensor `[batch, height, width, 4]` and with `bias`: whether a bias or scale of its own may follow. It may not
where a normalization comes next: it would cancel it, and the gradient would be noise.
"""

import functools

import keras
from keras_rows import Averaging, Penalized, Unused

layers, losses, metrics, optimizers = keras.layers, keras.losses, keras.metrics, keras.optimizers
CHANNELS = 4


def plain(make):
    """A layer that goes from images to images, and has no bias."""
    return lambda x, bias: make()(x)


def kernel(kind, *given, **options):
    return lambda x, bias: kind(*given, use_bias=bias, **options)(x)


def pair(kind):
    """A layer that takes two tensors: a residual connection."""
    return lambda x, bias: kind()([x, layers.Conv2D(CHANNELS, 3, padding="same", use_bias=False)(x)])


def joined(x, bias):
    both = layers.Concatenate()([x, layers.Conv2D(CHANNELS, 3, padding="same", use_bias=False)(x)])
    return layers.Conv2D(CHANNELS, 1, use_bias=bias)(both)


def rows(make):
    """A layer for sequences; the rows of an image are one. It keeps the features, or is given their number."""

    def part(x, bias):
        _, height, width, channels = x.shape
        sequence = layers.Reshape((height, width * channels))(x)
        made = make(sequence, width * channels, bias)
        return layers.Reshape((made.shape[1], width, channels))(made)

    return part


def of_rows(kind, **options):
    return rows(lambda x, size, bias: kind(**options)(x))


def recurrent(kind, **options):
    return rows(lambda x, size, bias: kind(size, return_sequences=True, **options)(x))


def convolved(kind):
    return rows(lambda x, size, bias: kind(size, 3, padding="same", use_bias=bias)(x))


def attention(kind):
    return rows(lambda x, size, bias: kind()([x, layers.Dense(size, use_bias=False)(x)]))


def cells(x, size, bias):
    several = [layers.LSTMCell(size), layers.GRUCell(size), layers.SimpleRNNCell(size)]
    return layers.RNN(layers.StackedRNNCells(several), return_sequences=True)(x)


def repeated(x, size, bias):
    whole = layers.RepeatVector(x.shape[1])(layers.GlobalMaxPooling1D()(x))
    return layers.Add()([x, whole, layers.RepeatVector(x.shape[1])(layers.GlobalAveragePooling1D()(x))])


def volume(make):
    """A layer for volumes: the channels are the third dimension."""

    def part(x, bias):
        made = make(bias)(layers.Reshape((*x.shape[1:], 1))(x))
        made = (
            made
            if made.shape[3] == CHANNELS
            else layers.ZeroPadding3D(((0, 0), (0, 0), (0, CHANNELS - made.shape[3])))(made)
        )
        return layers.Reshape(made.shape[1:4])(made)

    return part


def gated(make):
    """A layer that gives one number for each channel, which then weights it."""
    return lambda x, bias: layers.Multiply()([x, layers.Reshape((1, 1, CHANNELS))(make()(x))])


def similar(x, bias):
    flat = layers.Flatten()(x)
    number = layers.Dot(1, normalize=True)([flat, layers.Dense(flat.shape[1], use_bias=False)(flat)])
    return layers.Multiply()([x, layers.Reshape((1, 1, 1))(number)])


def over_time(kind, rank):
    """A convolutional recurrent layer; the rows of an image are the time."""

    def part(x, bias):
        _, height, width, channels = x.shape
        shape = {1: (height, width, channels), 2: (height, width, channels, 1), 3: (height, width, channels, 1, 1)}[
            rank
        ]
        filters = channels if rank == 1 else 1
        made = kind(filters, 3, padding="same", return_sequences=True, use_bias=bias)(layers.Reshape(shape)(x))
        return layers.Reshape((height, width, channels))(made)

    return part


small = {"padding": "same"}
# TensorFlow has no float16 kernel for these on CPUs: plain Keras fails under mixed_float16, too.
whole = {"dtype": "float32"}
WITH_WEIGHTS = {
    "Conv2D": kernel(layers.Conv2D, CHANNELS, 3, **small, kernel_regularizer="l2"),
    "Conv2DTranspose": kernel(layers.Conv2DTranspose, CHANNELS, 3, **small),
    "DepthwiseConv2D": kernel(layers.DepthwiseConv2D, 3, **small, depthwise_constraint="max_norm"),
    "SeparableConv2D": kernel(layers.SeparableConv2D, CHANNELS, 3, **small),
    "Dense": kernel(layers.Dense, CHANNELS),
    "EinsumDense": lambda x, bias: layers.EinsumDense(
        "abcd,de->abce", (*x.shape[1:3], CHANNELS), bias_axes="e" if bias else None,
    )(x),
    "TimeDistributed": lambda x, bias: layers.TimeDistributed(layers.Conv1D(CHANNELS, 3, **small, use_bias=bias))(x),
    "Conv1D": convolved(layers.Conv1D),
    "Conv1DTranspose": convolved(layers.Conv1DTranspose),
    "SeparableConv1D": convolved(layers.SeparableConv1D),
    "DepthwiseConv1D": rows(lambda x, size, bias: layers.DepthwiseConv1D(3, **small, use_bias=bias)(x)),
    "Conv3D": volume(lambda bias: layers.Conv3D(1, 3, **small, use_bias=bias)),
    "Conv3DTranspose": volume(lambda bias: layers.Conv3DTranspose(1, 3, **small, use_bias=bias)),
    "LSTM": recurrent(layers.LSTM),
    "GRU": recurrent(layers.GRU),
    "SimpleRNN": recurrent(layers.SimpleRNN),
    "RNN, StackedRNNCells, LSTMCell, GRUCell, SimpleRNNCell": rows(cells),
    "Bidirectional": rows(
        lambda x, size, bias: layers.Bidirectional(layers.GRU(size, return_sequences=True), merge_mode="ave")(x)
    ),
    "ConvLSTM1D": over_time(layers.ConvLSTM1D, 1),
    "ConvLSTM2D": over_time(layers.ConvLSTM2D, 2),
    "ConvLSTM3D": over_time(layers.ConvLSTM3D, 3),
    "MultiHeadAttention": rows(lambda x, size, bias: layers.MultiHeadAttention(2, 4, use_bias=False)(x, x)),
    "GroupQueryAttention": rows(lambda x, size, bias: layers.GroupQueryAttention(4, 4, 2, use_bias=False)(x, x)),
    "Attention": attention(layers.Attention),
    "AdditiveAttention": attention(functools.partial(layers.AdditiveAttention, use_scale=True)),
}  # fmt: skip
NORMALIZING = {
    "BatchNormalization": lambda x, bias: layers.BatchNormalization(momentum=0.9, center=bias, scale=bias)(x),
    "LayerNormalization": lambda x, bias: layers.LayerNormalization(center=bias, scale=bias)(x),
    "GroupNormalization": lambda x, bias: layers.GroupNormalization(2, center=bias, scale=bias)(x),
    "RMSNormalization": plain(layers.RMSNormalization),
    "UnitNormalization": plain(layers.UnitNormalization),
}
BENDING = {
    "Activation": plain(lambda: layers.Activation("gelu")),
    "ReLU": plain(layers.ReLU),
    "LeakyReLU": plain(layers.LeakyReLU),
    "PReLU": plain(lambda: layers.PReLU(shared_axes=[1, 2])),
    "ELU": plain(layers.ELU),
    "Softmax": plain(layers.Softmax),
    "Multiply": pair(layers.Multiply),
    "Lambda": plain(lambda: layers.Lambda(lambda x: keras.ops.tanh(x))),
}
# A bias before one of these is still one after it.
PASSING = {
    "Identity": plain(layers.Identity),
    "Rescaling": plain(lambda: layers.Rescaling(0.5)),
    "Normalization": plain(lambda: layers.Normalization(mean=0.1, variance=2.0)),
    "ActivityRegularization": plain(lambda: layers.ActivityRegularization(1e-3, 1e-3)),
    "add_loss": plain(Penalized),
    "float state": plain(Averaging),
    "a weight that the loss does not depend on": plain(Unused),
    "a frozen layer": plain(lambda: layers.Conv2D(CHANNELS, 3, **small, trainable=False)),
    "Permute": plain(lambda: layers.Permute((2, 1, 3))),
    "Reshape": lambda x, bias: layers.Reshape((x.shape[2], x.shape[1], CHANNELS))(x),
    "Masking": of_rows(layers.Masking),
    "MaxPooling2D": plain(lambda: layers.MaxPooling2D(2, 1)),
    "AveragePooling2D": plain(lambda: layers.AveragePooling2D(2, 1)),
    "AdaptiveAveragePooling2D": plain(lambda: layers.AdaptiveAveragePooling2D(5)),
    "AdaptiveMaxPooling2D": plain(lambda: layers.AdaptiveMaxPooling2D(5)),
    "GlobalAveragePooling2D": gated(layers.GlobalAveragePooling2D),
    "GlobalMaxPooling2D": gated(layers.GlobalMaxPooling2D),
    "UpSampling2D": plain(lambda: layers.UpSampling2D((2, 1))),
    "ZeroPadding2D": plain(lambda: layers.ZeroPadding2D(1)),
    "Cropping2D": plain(lambda: layers.Cropping2D(((1, 0), (0, 1)))),
    "CenterCrop": plain(lambda: layers.CenterCrop(6, 6)),
    "Resizing": plain(lambda: layers.Resizing(7, 6)),
    "MaxPooling1D": of_rows(layers.MaxPooling1D, pool_size=2, strides=1),
    "AveragePooling1D": of_rows(layers.AveragePooling1D, pool_size=2, strides=1),
    "AdaptiveAveragePooling1D": of_rows(layers.AdaptiveAveragePooling1D, output_size=5),
    "AdaptiveMaxPooling1D": of_rows(layers.AdaptiveMaxPooling1D, output_size=5),
    "UpSampling1D": of_rows(layers.UpSampling1D),
    "ZeroPadding1D": of_rows(layers.ZeroPadding1D),
    "Cropping1D": of_rows(layers.Cropping1D, cropping=(1, 0)),
    "RepeatVector, GlobalMaxPooling1D, GlobalAveragePooling1D": rows(repeated),
    "MaxPooling3D": volume(lambda bias: layers.MaxPooling3D(2, 1, **whole)),
    "AveragePooling3D": volume(lambda bias: layers.AveragePooling3D(2, 1, **whole)),
    "AdaptiveAveragePooling3D": volume(lambda bias: layers.AdaptiveAveragePooling3D((5, 5, 4), **whole)),
    "AdaptiveMaxPooling3D": volume(lambda bias: layers.AdaptiveMaxPooling3D((5, 5, 4), **whole)),
    "GlobalAveragePooling3D": lambda x, bias: layers.Multiply()(
        [x, layers.Reshape((1, 1, 1))(layers.GlobalAveragePooling3D()(layers.Reshape((*x.shape[1:], 1))(x)))]
    ),
    "GlobalMaxPooling3D": lambda x, bias: layers.Multiply()(
        [x, layers.Reshape((1, 1, 1))(layers.GlobalMaxPooling3D()(layers.Reshape((*x.shape[1:], 1))(x)))]
    ),
    "UpSampling3D": volume(lambda bias: layers.UpSampling3D((1, 2, 1))),
    "ZeroPadding3D": volume(lambda bias: layers.ZeroPadding3D((1, 1, 0))),
    "Cropping3D": volume(lambda bias: layers.Cropping3D((1, 1, 0))),
    "Add": pair(layers.Add),
    "Subtract": pair(layers.Subtract),
    "Average": pair(layers.Average),
    "Maximum": pair(layers.Maximum),
    "Minimum": pair(layers.Minimum),
    "Concatenate": joined,
    "Dot": similar,
    "Flatten": lambda x, bias: layers.Reshape(x.shape[1:])(layers.Flatten()(x)),
}  # fmt: skip
DETERMINISTIC = WITH_WEIGHTS | NORMALIZING | BENDING | PASSING

# With a seed and without: f(seed) gives the layer.
RANDOM = {
    "Dropout": lambda seed: layers.Dropout(0.3, seed=seed),
    "SpatialDropout2D": lambda seed: layers.SpatialDropout2D(0.3, seed=seed),
    "AlphaDropout": lambda seed: layers.AlphaDropout(0.3, seed=seed),
    "GaussianDropout": lambda seed: layers.GaussianDropout(0.3, seed=seed),
    "GaussianNoise": lambda seed: layers.GaussianNoise(0.3, seed=seed),
    "SpatialDropout1D": lambda seed: layers.TimeDistributed(layers.SpatialDropout1D(0.3, seed=seed)),
    "SpatialDropout3D": lambda seed: keras.Sequential([layers.Reshape((-1, 1, 1, CHANNELS)), layers.SpatialDropout3D(0.3, seed=seed)]),
}  # fmt: skip
# On images of 8 x 8 x 3 in [0, 255].
AUGMENTING = {
    "RandomFlip": lambda seed: layers.RandomFlip(seed=seed),
    "RandomCrop": lambda seed: layers.RandomCrop(7, 7, seed=seed),
    **{
        name: lambda seed, name=name: getattr(layers, name)(0.3, seed=seed)
        for name in ("RandomRotation", "RandomZoom", "RandomContrast", "RandomBrightness")
    },
    "RandomTranslation": lambda seed: layers.RandomTranslation(0.2, 0.2, seed=seed),
    "RandomShear": lambda seed: layers.RandomShear(0.3, 0.3, seed=seed),
    "RandomPerspective": lambda seed: layers.RandomPerspective(1.0, 0.3, seed=seed),
    "RandomElasticTransform": lambda seed: layers.RandomElasticTransform(1.0, 0.5, seed=seed, **whole),
    "RandomGaussianBlur": lambda seed: layers.RandomGaussianBlur(1.0, seed=seed, **whole),
    "RandomErasing": lambda seed: layers.RandomErasing(1.0, seed=seed, **whole),
    "RandomGrayscale": lambda seed: layers.RandomGrayscale(0.5, seed=seed),
    "RandomHue": lambda seed: layers.RandomHue(0.3, seed=seed),
    "RandomInvert": lambda seed: layers.RandomInvert(0.5, seed=seed),
    "RandomPosterization": lambda seed: layers.RandomPosterization(4, seed=seed),
    "RandomSaturation": lambda seed: layers.RandomSaturation(0.3, seed=seed),
    "RandomSharpness": lambda seed: layers.RandomSharpness(0.3, seed=seed),
    "RandomColorJitter": lambda seed: layers.RandomColorJitter(brightness_factor=0.3, contrast_factor=0.3, seed=seed),
    "RandomColorDegeneration": lambda seed: layers.RandomColorDegeneration(0.3, seed=seed),
    "RandAugment": lambda seed: layers.RandAugment(seed=seed),
    "MixUp": lambda seed: layers.MixUp(seed=seed),
    "CutMix": lambda seed: layers.CutMix(seed=seed, **whole),
    "AutoContrast": lambda seed: layers.AutoContrast(),
    "Solarization": lambda seed: layers.Solarization(0.3, seed=seed),
    "Pipeline": lambda seed: layers.Pipeline([layers.RandomFlip(seed=seed), layers.Rescaling(1.0)]),
}
NOT_DRAWN = {
    "bases, and layers of other frameworks": "Layer Wrapper InputLayer InputSpec FlaxLayer JaxLayer TFSMLayer TorchModuleWrapper",
    "of text, tables, sound and boxes": "CategoryEncoding Discretization Embedding HashedCrossing Hashing IntegerLookup "
    "MaxNumBoundingBoxes MelSpectrogram ReversibleEmbedding STFTSpectrogram StringLookup TextVectorization",
    "refused": "AugMix SpectralNormalization",
    "no layer of a functional model in Keras 3.15 (part of a cycle)": "Equalization",
    "without a gradient, for images of its own size": "ContrastLimitedAdaptiveHistogramEqualization",
}  # fmt: skip

SPARSE = {"SparseCategoricalCrossentropy": lambda: losses.SparseCategoricalCrossentropy(from_logits=True)}
ONE_HOT = {
    **{
        name: lambda name=name: getattr(losses, name)(from_logits=True)
        for name in ("CategoricalCrossentropy", "CategoricalFocalCrossentropy", "BinaryCrossentropy", "BinaryFocalCrossentropy")
    },
    **{
        name: getattr(losses, name)
        for name in (
            "CategoricalHinge", "Hinge", "SquaredHinge", "MeanSquaredError", "MeanAbsoluteError", "MeanAbsolutePercentageError",
            "MeanSquaredLogarithmicError", "Huber", "LogCosh", "CosineSimilarity",
        )
    },
}  # fmt: skip
METRICS_OF_INTEGERS = {
    "accuracy": lambda: "accuracy",
    "SparseCategoricalAccuracy": metrics.SparseCategoricalAccuracy,
    "SparseTopKCategoricalAccuracy": lambda: metrics.SparseTopKCategoricalAccuracy(2),
    "SparseCategoricalCrossentropy": lambda: metrics.SparseCategoricalCrossentropy(from_logits=True),
    "MeanIoU": lambda: metrics.MeanIoU(5, sparse_y_pred=False),
    "IoU": lambda: metrics.IoU(5, [0, 1], sparse_y_pred=False),
}
METRICS_OF_ONE_HOT = {
    "CategoricalAccuracy": metrics.CategoricalAccuracy,
    "TopKCategoricalAccuracy": lambda: metrics.TopKCategoricalAccuracy(2),
    "CategoricalCrossentropy": lambda: metrics.CategoricalCrossentropy(from_logits=True),
    "BinaryCrossentropy": lambda: metrics.BinaryCrossentropy(from_logits=True),
    "BinaryAccuracy": lambda: metrics.BinaryAccuracy(threshold=0),
    "AUC": lambda: metrics.AUC(from_logits=True),
    "F1Score": metrics.F1Score,
    "FBetaScore": metrics.FBetaScore,
    "OneHotIoU": lambda: metrics.OneHotIoU(5, [0, 1], sparse_y_pred=False),
    "OneHotMeanIoU": lambda: metrics.OneHotMeanIoU(5, sparse_y_pred=False),
    **{
        name: getattr(metrics, name)
        for name in (
            "CategoricalHinge", "Hinge", "SquaredHinge", "MeanSquaredError", "RootMeanSquaredError", "MeanAbsoluteError",
            "MeanAbsolutePercentageError", "MeanSquaredLogarithmicError", "LogCoshError", "CosineSimilarity", "R2Score",
            "ConcordanceCorrelation", "PearsonCorrelation",
        )
    },
}  # fmt: skip
OPTIMIZERS = {
    "SGD": lambda: optimizers.SGD(0.01, momentum=0.9, nesterov=True, weight_decay=1e-3),
    **{
        name: lambda name=name: getattr(optimizers, name)(0.003)
        for name in (
            "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lamb", "Lion", "Muon", "Nadam", "RMSprop",
            "ScheduleFreeAdamW",
        )
        if hasattr(optimizers, name)
    },
}  # fmt: skip
