"""The commands: each checks what it was given, calls the library, and prints what follows."""

import dataclasses
import json
import os
import resource
import sys
from pathlib import Path

from tfpar import compiling, errors, files, validate
from tfpar.arguments import SETTINGS, check_not_empty, parser
from tfpar.screen import quiet, say, stderr_silenced

OF_BOTH_FORMS = ("command", "arguments", "usage", "verbose", "data", "devices", "all_reduce")  # of `scaling`
PREDICTED_TOGETHER = 64  # pictures
LEAST_TO_IMPORT = 3 << 30  # bytes of address space; with less TensorFlow crashes


def _prepare(given) -> None:
    from tfpar import prepare

    if given.source != "digits" and not Path(given.source).exists():
        _import_tensorflow(given)  # TensorFlow Datasets will
    with stderr_silenced(not given.verbose, but_python=True):  # libtiff tells of damaged pictures in its own words
        data = prepare.dataset(**_options(given))
    _print_data(data)


def _train(given) -> None:
    _import_tensorflow(given)
    import keras

    from tfpar import results, signals, train
    from tfpar.diagnose import profiling
    from tfpar.workers.group import WorkerGroup, check_connection

    run = validate.path("run", given.run or f"runs/{files.name_of(given.data)}")
    strategy = _strategy(given)
    group = WorkerGroup(strategy)
    # After the strategy: TensorFlow takes SIGTERM for itself when several workers start.
    with signals.StopSignal(), group.worker_loss_as_error(), quiet(not group.chief):
        check_connection(strategy)
        continues = (run / "run.json").exists() and not given.fresh
        known = results.Run(run).facts["data"]["verified"] if continues else {}
        settings = {name: getattr(given, name) for name in SETTINGS}
        if not given.solver:
            begins = not (continues or given.dry_run or given.profile)
            settings["stages"] = compiling.stages(given, begins=begins)
        with group.chief_first(), stderr_silenced(not given.verbose, but_python=True):
            data = _data(given.data, known)
        keras.config.set_dtype_policy(given.precision)
        keras.utils.set_random_seed(given.seed)
        with strategy.scope():
            model, by_solver = compiling.compiled(given, data)
        settings |= by_solver
        if given.dry_run:
            print(f"{profiling.dry_run(model, data, **settings)}\nnothing was trained")
            return
        if given.profile:
            place = f"{run}.profile"
            print(profiling.profile(model, data, place, **settings))
            print(f"nothing was trained; the picture is {place}/profile.png, the trace: tensorboard --logdir {place}")
            return
        metrics = train.run(model, data, run, **settings, weights=compiling.weights_name(given.weights)).metrics()
        found = f"accuracy {metrics['accuracy']:.4f} on {metrics['examples']} validation images"
        print(f"finished: {found}, {run / 'report.html'}")
        run = files.word(run)
        print(f"next: tfpar predict {run} IMAGE, or tfpar export {run} --to saved_model")


def _predict(given) -> int:
    import numpy as np

    from tfpar import results
    from tfpar.prepare import folders, pictures
    from tfpar.results import predictions

    run = results.Run(given.run)
    height, width, channels = run.facts["data"]["image_shape"]
    paths = [path for image in given.images for path in (folders.pictures(image) if Path(image).is_dir() else [image])]
    answers, unreadable, model = [], 0, None
    for start in range(0, len(paths), PREDICTED_TOGETHER):
        pixels, readable = [], []
        for path in paths[start : start + PREDICTED_TOGETHER]:
            try:
                with pictures.quiet(), stderr_silenced(not given.verbose):
                    pixels.append(pictures.load(path, (height, width), channels=channels))
                readable.append(files.printable(path))
            except pictures.BadPicture as reason:
                if path in given.images:
                    raise errors.InputNotFound(f"{files.printable(path)}: {reason}") from reason
                say(f"{files.printable(path)}: {reason}")
                unreadable += 1
        if not pixels:
            continue
        _import_tensorflow(given)
        from tfpar.steps import normalization

        with stderr_silenced(not given.verbose), normalization.computed(run.settings["batch_norm"], training=False):
            model = model or _model_of(run)
            probabilities = predictions.softmax(model.predict(np.stack(pixels), verbose=0))
        for path, row in zip(readable, probabilities, strict=True):
            best = {run.class_names[i]: float(row[i]) for i in (-row).argsort(kind="stable")[: given.top]}
            answer = {"label": next(iter(best)), "confidence": float(row.max()), "probabilities": best}
            answers.append({"image": path} | answer)
            if not given.json:
                shown = [f"{name} ({share:.1%})" for name, share in best.items()][: given.top or 1]
                print(f"{path}: {', '.join(shown)}")
    if given.json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
    if unreadable:
        say(f"tfpar: {unreadable} of {len(paths)} pictures cannot be read; the others are labelled")
    return errors.DataError.exit_code if unreadable else 0


def _model_of(run):
    """Return the final model of a run, which predicts with XLA where it was trained so."""
    from tfpar.steps import accepted

    model = accepted.check_dtypes(run.model(compile=False))
    model.jit_compile = run.settings.get("jit_compile")
    return model


def _evaluate(given) -> None:
    from tfpar import results
    from tfpar.results import predictions, tables

    run = results.Run(given.run)
    _import_tensorflow(given)
    from tfpar import prepare
    from tfpar.train import inference

    data = prepare.load(given.data or run.data_directory)
    split = inference.split_for(run, data, given.split)
    logits, losses = inference.Inference(run.model(), batch_norm=run.settings["batch_norm"])(split)
    found = predictions.table(logits, split)
    computed = predictions.metrics(found, losses, data.class_names)
    if sys.stdout.isatty():
        print(tables.text(tables.of_classes(found, data.class_names)))
        computed.pop("per_class")
    print(json.dumps(computed, indent=1, ensure_ascii=False))


def _compare(given) -> None:
    from tfpar import results
    from tfpar.results import report, tables

    runs = {name: results.Run(name) for name in given.runs}
    page = Path(given.out, "compare.html") if Path(given.out).is_dir() else Path(given.out)
    report.write_comparison(runs, page)
    print(f"{tables.text(tables.of_runs(runs))}\ntheir curves: {page}")


def _export(given) -> None:
    _import_tensorflow(given)
    from tfpar import export

    with stderr_silenced(not given.verbose, but_python=True):
        written = export.write(given.run, given.to, given.out)
    print(f"{written}: validation images get the probabilities of the run's model")


def _platforms(given) -> None:
    _import_tensorflow(given)
    from tfpar import platforms

    with stderr_silenced(not given.verbose, but_python=True):
        rows = platforms.compare(given.run, batch=given.batch)
    print(f"{platforms.table(rows)}\ntheir picture: {Path(given.run) / 'platforms.png'}")


def _caffe_check(given) -> None:
    _import_tensorflow(given)
    from tfpar.diagnose import caffe_check

    first, bound = None, f"{caffe_check.BOUND:g}"
    with stderr_silenced(not given.verbose):
        for layer, difference in caffe_check.differences(given.net, given.weights, given.image):
            print(f"{layer:32} {difference:.1e}")
            first = first or (None if difference <= caffe_check.BOUND else layer)  # NaN differs
    if first:
        raise errors.DataError(f"layer {first} is the first that differs from OpenCV by more than {bound}")
    print(f"every layer equals OpenCV's to {bound} of its largest value")


def _fpga(given) -> None:
    _import_tensorflow(given)
    from tfpar import fpga
    from tfpar.fpga import tools
    from tfpar.results import tables

    tools.require(simulation=True)
    with stderr_silenced(not given.verbose, but_python=True):
        twin, data = fpga.load(given.twin), _data(given.data)
        found = fpga.measure(twin, data.validation, given.directory, device=given.device, routed=not given.no_route)
    print(f"{tables.text(fpga.rows(found))}\nthe circuit: {given.directory}")


def _doctor(given) -> int:
    from tfpar.diagnose import doctor

    found = doctor.examine()
    print(json.dumps([finding._asdict() for finding in found], indent=1) if given.json else doctor.table(found))
    return 0 if doctor.works(found) else errors.Unavailable.exit_code


def _launch(given) -> int:
    from tfpar.results import writing
    from tfpar.workers import launcher

    train = parser(COMMANDS).parse_args(given.words)
    if train.command is not _train or train.profile or train.dry_run:
        rule = "launch runs several workers that train, without --profile and --dry-run"
        raise errors.SettingsError(f"{rule}; given was {' '.join(given.words)}")
    check_not_empty(train)
    run, words = validate.path("run", train.run or f"runs/{files.name_of(train.data)}"), list(given.words)
    if train.fresh:  # here, once: workers that start again continue
        words.remove("--fresh")
        writing.keep_earlier_run(run)
    return launcher.launch(
        words, **_options(given, "words") | {"logs": validate.path("logs", given.logs or run / "workers")}
    )


def _kubernetes(given) -> None:
    from tfpar import kubernetes

    options = _options(given, "dockerfile", "words")
    print(kubernetes.text(kubernetes.manifests(given.words, **options)), end="")


def _scaling(given) -> None:
    from tfpar import scaling

    words = {name for name, value in vars(given).items() if value is not None and value is not False}
    of_measuring = words & {"model", "global_batch_size", "seconds", "out"}
    wrong = words - of_measuring - set(OF_BOTH_FORMS) if given.data else of_measuring
    if wrong:
        todo = f"belongs to a prediction; leave {given.data} out" if given.data else "needs DATA to measure"
        raise errors.SettingsError(f"scaling: --{min(wrong).replace('_', '-')} {todo}")
    if not given.data:
        _predict_scaling(given)
        return
    require_tensorflow()
    _import_tensorflow(given)
    data = _data(given.data)
    report = scaling.measure(
        given.model or "small_cnn", data, given.out or f"runs/{files.name_of(given.data)}.scaling", devices=given.devices,
        global_batch_size=given.global_batch_size, all_reduce=given.all_reduce or "ordered",
        seconds=120 if given.seconds is None else given.seconds,
    )  # fmt: skip
    print(report)


def _predict_scaling(given) -> None:
    from tfpar import scaling
    from tfpar.results import tables

    figures, own = (given.step_ms, given.batch, given.gradient_mb), (given.per_machine, given.inside, given.outside)
    if figures.count(None) != (3 if given.predict else 0) or not given.devices:
        todo = "--devices and either --predict DIR or --step-ms, --batch and --gradient-mb"
        raise errors.SettingsError(f"scaling: give DATA to measure; to predict, give {todo}")
    if (given.machine is None) == (own == (None, None, None)):
        raise errors.SettingsError("scaling: give --machine NAME, or --per-machine, --inside and --outside of yours")
    if given.predict:
        measured = scaling.load(given.predict).measured()
    else:
        measured = scaling.Measured(given.step_ms / 1e3, given.batch, given.gradient_mb * 1e6)
    steps = {**measured.steps, **dict(given.also or ())}
    inside = measured.one_machine and not given.also
    all_reduce = given.all_reduce or measured.all_reduce
    measured = dataclasses.replace(measured, steps=steps, all_reduce=all_reduce, one_machine=inside)
    machine, costs = given.machine or scaling.Machine(*own), ("price", "images", "epochs")
    found = scaling.predict(measured, machine, given.devices, **{name: getattr(given, name) for name in costs})
    knee, rows = int(found.schema.metadata[b"knee"]), found.to_pylist()
    if given.json:
        print(json.dumps({"knee": knee, "predictions": rows}, indent=1))
        return
    shown = [[f"{cell:,.3f}" if isinstance(cell, float) else cell for cell in row.values()] for row in rows]
    print(tables.text([found.column_names, *shown]))
    print(f"knee: {knee} devices, the last doubling that still saves a quarter of the time")


def _dockerfile() -> str:
    from tfpar import kubernetes

    return kubernetes.dockerfile()


# ---- their parts


def _options(given, *others: str) -> dict:
    """Return the options that a command hands on under their own names: all but these others and those of every command."""
    others = {"command", "arguments", "usage", "verbose", *others}
    return {name: value for name, value in vars(given).items() if name not in others}


def _strategy(given):
    """Meet the other workers where there are some, otherwise take this machine's devices."""
    from tfpar import devices, signals, workers
    from tfpar.workers import group

    if given.deterministic:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    if given.simulate is None and workers.cluster():
        return group.strategy(command=given.arguments)
    with signals.StopSignal(), stderr_silenced(not given.verbose):
        return devices.strategy(simulate=given.simulate)  # before TensorFlow Datasets starts TensorFlow


def _data(source: str, known: dict | None = None):
    """Load a prepared directory, or prepare the source into data/NAME and find it there the next time; print what it holds."""
    from tfpar import prepare

    if (Path(source) / "dataset.json").exists():
        data = prepare.load(source, known=known)
    else:
        data = prepare.dataset(source, Path("data") / files.name_of(source), known=known)
    _print_data(data)
    return data


def _print_data(data) -> None:
    shape = "x".join(map(str, data.image_shape))
    splits = " and ".join(f"{len(split.labels):,} {name}" for name, split in data.splits.items())
    print(f"{data.directory}: {splits} images {shape}, {data.num_classes} classes")


def require_tensorflow() -> None:
    """Refuse another Keras backend before Keras is imported: it may be one that is not installed."""
    from tfpar.diagnose import doctor

    _, _, backend, remedy = doctor.backend()
    if remedy:
        raise errors.SettingsError(f"Keras' backend is {backend}, tfpar needs tensorflow; {remedy}")


def _import_tensorflow(given) -> None:
    """Import TensorFlow and keep its start-up chatter off the screen."""
    if 0 < resource.getrlimit(resource.RLIMIT_AS)[0] < LEAST_TO_IMPORT:
        raise errors.Unavailable(
            "out of memory: TensorFlow cannot start in this address space; raise the limit (ulimit -v)"
        )
    if not given.verbose:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow turns oneDNN on by itself on some processors only; on others its convolutions are as much faster.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with stderr_silenced(not given.verbose):
        import tensorflow as tf
    if not given.verbose:
        tf.get_logger().setLevel("ERROR")


# By name: the same parser reads the command that `launch` runs.
COMMANDS = {
    "prepare": _prepare, "train": _train, "predict": _predict, "evaluate": _evaluate, "export": _export, "caffe": _caffe_check, "fpga": _fpga, "launch": _launch, "kubernetes": _kubernetes,
    "doctor": _doctor, "compare": _compare, "scaling": _scaling, "platforms": _platforms, "--dockerfile": _dockerfile,
}  # fmt: skip
