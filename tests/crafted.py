"""Files made by hand: a valid `.keras` file with another config, and configs of tf_keras that run code when loaded."""

import json
import zipfile


def parts_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, parts, **members):
    """A `.keras` file of these parts, some of them replaced; what is not bytes is written as JSON."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**parts, **members}.items():
            archive.writestr(name, data if isinstance(data, bytes) else json.dumps(data))
    return path


def rewrite(path, source, config=None, version=None):
    parts = parts_of(source)
    if config is not None:
        parts["config.json"] = json.dumps(config).encode()
    if version is not None:
        parts["metadata.json"] = json.dumps({"keras_version": version}).encode()
    return write(path, parts)


def entry(module, name, config=None, **more):
    return {"module": module, "class_name": name, "config": {} if config is None else config, **more}


def layer(name, /, **config):
    return entry("keras.layers", name, config, registered_name=None)


def function(module, name, registered_name=None):
    """A function that tf_keras finds in any module: this registered name passes for an object of the user's own."""
    return entry(module, "function", name, registered_name=registered_name or "PruneLowMagnitude")


def operation(name, /, **config):
    return entry("keras.src.layers.core.tf_op_layer", name, {"name": "called", **config}, registered_name=name)


def sequential(*layers, **more):
    inputs = layer("InputLayer", batch_input_shape=[None, 4], dtype="float32", name="inputs")
    return entry("keras", "Sequential", {"name": "net", "layers": [inputs, *layers]}, registered_name=None, **more)


def functional(called, constant, /, **arguments):
    """A model in which tf_keras calls `called(constant, **arguments)` as one of the layers."""
    inputs = layer("InputLayer", batch_input_shape=[None, 4], dtype="float32", name="inputs")
    inputs |= {"name": "inputs", "inbound_nodes": []}
    called = {**called, "name": "called", "inbound_nodes": [["_CONSTANT_VALUE", -1, constant, arguments]]}
    ends = {"input_layers": [["inputs", 0, 0]], "output_layers": [["called", 0, 0]]}
    return entry("keras.src.engine.functional", "Functional", {"name": "net", "layers": [inputs, called], **ends})


def hostile(mark, module):
    """Configs of tf_keras that make the file `mark`, by running a program, or by importing `module`, which does."""
    name, folder = mark.name, str(mark.parent)
    source = mark.with_name("source")
    imported = function(module, "anything")
    dense = layer("Dense", units=3)
    schedule = {"class_name": "ConstantSparsity", "config": {"target_sparsity": 0.5, "begin_step": 0}}
    pruned = {"layer": dense, "pruning_schedule": schedule}
    wrapper = "tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper"
    command = f"touch {mark}"
    return {
        "a layer that is os.system": functional(function("os", "system"), command),
        "os.system as the module that it comes from": functional(function("posix", "system"), command),
        "subprocess.call": functional(function("subprocess", "call"), ["touch", str(mark)]),
        "get_file as a layer": functional(
            function("keras.utils", "get_file"), name, origin=source.as_uri(), cache_dir=folder, cache_subdir=""
        ),
        "get_file by a name with dots": functional(
            function("keras", "utils.get_file"), name, origin=source.as_uri(), cache_dir=folder, cache_subdir=""
        ),
        "an operation that writes": functional(
            operation("TFOpLambda", function="io.write_file"), str(mark), contents="x"
        ),
        "an operation that makes folders": functional(operation("TFOpLambda", function="io.gfile.makedirs"), str(mark)),
        "an operation that writes, said to slice": functional(
            operation("SlicingOpLambda", function="io.write_file"), str(mark), contents="x"
        ),
        "a method of a class": functional(
            operation("ClassMethod", cls_symbol="io.TFRecordWriter", method_name="__call__"),
            [str(mark)],
            kwargs={},
        ),
        "the top is a function": imported,
        "the top is a class": entry(module, "Anything", registered_name="builtins>Anything"),
        "a wrapper's layer's initializer": sequential(
            layer("TimeDistributed", layer=layer("Dense", units=3, kernel_initializer=imported))
        ),
        "a pruning wrapper's layer": sequential(
            entry(wrapper, "PruneLowMagnitude", {**pruned, "layer": imported}, registered_name="PruneLowMagnitude")
        ),
        "a pruning wrapper's schedule": sequential(
            entry(wrapper, "PruneLowMagnitude", {**pruned, "pruning_schedule": imported})
        ),
        "the way back of a Bidirectional": sequential(
            layer("Bidirectional", layer=layer("LSTM", units=3), backward_layer=imported)
        ),
        "a cell": sequential(layer("RNN", cell=[layer("LSTMCell", units=3), imported])),
        "an initializer": sequential(layer("Dense", units=3, kernel_initializer=imported)),
        "an activation": sequential(layer("Dense", units=3, activation=imported)),
        "a regularizer": sequential(layer("Dense", units=3, bias_regularizer=imported)),
        "a constraint": sequential(layer("Dense", units=3, kernel_constraint=imported)),
        "a number": sequential(layer("Embedding", input_dim=imported, output_dim=3)),
        "a value in an initializer": sequential(
            layer("Dense", units=3, kernel_initializer=entry("keras.initializers", "Constant", {"value": imported}))
        ),
        "a type": sequential(
            layer(
                "InputLayer",
                type_spec=entry(module, "__typespec__", [], spec_name="Anything", registered_name=None),
                name="typed",
            )
        ),
        "what a model is compiled with, in a number's place": sequential(
            layer("Embedding", input_dim={**sequential(dense), "compile_config": {"loss": imported}}, output_dim=3)
        ),
    }
