import onnx
import onnx_ir as ir
from tiny_models import samples, two_layers

from compress_onnx.pipeline.runtime.inner_values import expose, exposed
from compress_onnx.pipeline.runtime.session import open_session, run


def names(proto: onnx.ModelProto) -> list[str]:
    return [value.name for value in proto.graph.output]


def test_computed_values_become_outputs_once_and_nothing_else_does():
    proto, _ = two_layers()
    expose(proto, ["h1", "y", "x", "first.weight", "h1", "m2", "nowhere"])
    assert names(proto) == ["y", "h1", "m2"]
    values = run(open_session(proto.SerializeToString()), dict(samples(count=2).inputs))
    assert values["h1"].shape == (2, 3, 8)


def test_the_model_itself_stays_as_it_was():
    model = ir.from_proto(two_layers()[0])
    assert names(onnx.ModelProto.FromString(exposed(model, ["h1"]))) == ["y", "h1"]
    assert [value.name for value in model.graph.outputs] == ["y"]
