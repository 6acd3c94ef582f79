"""Worker: ONNX Runtime, with the graph fused by its own optimizer for Transformers, fp32 or dynamically quantised."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from protocol import Embed, Rows, Sequences, drop_padding, pad, serve


def convert(model: Path, out: Path) -> None:
    """Writes fp32.onnx and int8.onnx. The optimizer finds attention only in the legacy exporter's graph."""
    import onnx
    import torch
    from headed import load_module
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    module = load_module(model, attention="eager")
    example = torch.full((2, 16), 1000), torch.ones(2, 16, dtype=torch.long)
    names = ["input_ids", "attention_mask"]
    with torch.inference_mode():
        num_dims = module(*example).dim()
    axes = {0: "sequences", 1: "length"}
    torch.onnx.export(
        module,
        example,
        str(out / "exported.onnx"),
        input_names=names,
        output_names=["rows"],
        dynamic_axes=dict.fromkeys(names, axes) | {"rows": axes if num_dims == 3 else {0: "sequences"}},
        opset_version=17,
        dynamo=False,
    )
    fused = optimize_model(
        str(out / "exported.onnx"),
        model_type="bert",
        num_heads=module.config.num_attention_heads,
        hidden_size=module.config.hidden_size,
    )
    print("fused:", fused.get_fused_operator_statistics())
    fused.save_model_to_file(str(out / "fp32.onnx"))
    quantize_dynamic(
        out / "fp32.onnx",
        out / "int8.onnx",
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=not has_vnni(),
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def has_vnni() -> bool:
    """Without these instructions products of 8-bit numbers saturate in 16 bits, unless weights keep to 7 bits."""
    return "vnni" in Path("/proc/cpuinfo").read_text()


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Embed:
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        converted / f"{options['precision']}.onnx", session_options, providers=["CPUExecutionProvider"]
    )

    def embed(batches: Sequence[Sequences]) -> list[Rows]:
        return [run(batch) for batch in batches]

    def run(batch: Sequences) -> np.ndarray:
        input_ids, mask = pad(batch)
        return drop_padding(session.run(None, {"input_ids": input_ids, "attention_mask": mask})[0], mask)

    return embed


if __name__ == "__main__":
    serve(load, convert)
