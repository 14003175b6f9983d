"""Loading the samples that a recipe names."""

from compress_onnx.pipeline.data.sources import load_samples

TEXT_INPUTS = ("input_ids", "attention_mask")


def load(spec, tmp_path, input_names, **options):
    arguments = {"tokenizer_dir": None, "mask": None, "seed": 0} | options
    return load_samples(spec, base_dir=tmp_path, input_names=input_names, **arguments)
