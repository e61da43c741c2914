"""The public attributes and arguments of Keras that no row of `keras_rows` is about, by the reason why none is needed."""

SAVING = "saving: run.model() and Keras' own load and save"
ASKING = "tells something, or serves Keras itself; the step does not ask"
BUILDING = "makes or describes the layer before the step sees it"
OWN = "Keras' own evaluate, predict and steps on a batch, which stay as they are"

UNTOUCHED = {
    "Model": {
        SAVING: "save save_weights load_weights export to_json compile_from_config get_compile_config get_state_tree set_state_tree",
        ASKING: "summary layers get_layer metrics_names compiled_loss compiled_metrics loss jit_compile",
        OWN: "evaluate predict test_on_batch predict_on_batch reset_metrics",
        "Keras' reductions over replicas; the step has one order of its own": "distribute_reduction_method distribute_strategy",
        "quantized models are for inference": "get_quantization_layer_structure",
        "refused: it has no batches of the engine (test_steps)": "train_on_batch",
    },
    "Layer": {
        SAVING: "from_config get_config get_build_config build_from_config load_own_variables save_own_variables",
        ASKING: "count_params path input output input_dtype input_spec metrics_variables get_weights set_weights "
        "trainable_variables non_trainable_variables trainable_weights non_trainable_weights variables weights variable_dtype",
        BUILDING: "build add_variable compute_dtype dtype_policy compute_output_shape compute_output_spec symbolic_call",
        "masks inside the model; one at its end is refused": "compute_mask supports_masking",
        "what the step calls": "stateless_call",
        "raises in Keras": "add_metric",
        "recomputed activations: plain Keras 3.15 fails on them under tf.function, too": "rematerialized_call",
        "quantized layers are for inference": "quantize quantization_mode quantized_build quantized_call",
    },
    "Loss": {SAVING: "from_config get_config"},
    "Metric": {
        SAVING: "from_config get_config",
        BUILDING: "add_variable dtype variables",
        "what a run calls for the validation split": "stateless_reset_state stateless_result stateless_update_state",
    },
    "Optimizer": {
        SAVING: "from_config get_config load_own_variables save_own_variables set_weights",
        BUILDING: "add_optimizer_variables add_variable add_variable_from_reference build variables",
        "what update_step calls": "assign assign_add assign_sub",
        "of JAX": "stateless_apply",
    },
    "Callback": {
        "of predict, which fit does not call": "on_predict_batch_begin on_predict_batch_end on_predict_begin on_predict_end",
        "sets Callback.model": "set_model",
    },
    "compile": {},
    "fit": {
        "of arrays; batches come from the engine": "y batch_size shuffle validation_split",
        "the rows of callbacks": "callbacks",
    },
    "Optimizer of": {"with use_ema alone": "ema_overwrite_frequency", ASKING: "name"},
    "optimizers": {"the base, and a part of MultiOptimizer": "Optimizer OptimizerMap"},
    "callbacks": {
        "the bases": "Callback CallbackList",
        "added by fit itself": "ProgbarLogger",
        "needs a server, or a package beside": "RemoteMonitor OrbaxCheckpoint",
    },
}  # fmt: skip
