"""Run by Triton's own Python (nvidia-pytriton), not ours: models of a flower's four numbers. PORT is the argument."""

import sys

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

NAMES = np.array([b"setosa", b"versicolor", b"virginica"], dtype=object)


@batch
def both(x):
    """Label: the first of the numbers modulo three. An embedding, which nobody wants, comes first."""
    labels = x[:, 0].astype(int) % 3
    return {"embedding": x[:, :3], "probabilities": np.eye(3, dtype=np.float32)[labels] * 0.5 + np.float32(1 / 6)}


@batch
def classes(x):
    return {"class": (x[:, :1].astype(np.int64) % 3)}


@batch
def names(x):
    return {"name": NAMES[x[:, :1].astype(int) % 3]}


if __name__ == "__main__":
    port = int(sys.argv[1])
    config = TritonConfig(grpc_port=port, grpc_address="127.0.0.1", allow_http=False, allow_metrics=False)
    x = [Tensor(name="x", dtype=np.float32, shape=(4,))]
    outputs = {
        both: [Tensor(name=name, dtype=np.float32, shape=(3,)) for name in ("embedding", "probabilities")],
        classes: [Tensor(name="class", dtype=np.int64, shape=(1,))],
        names: [Tensor(name="name", dtype=bytes, shape=(1,))],
    }
    with Triton(config=config) as triton:
        for function, gives in outputs.items():
            how = ModelConfig(max_batch_size=64, batcher=DynamicBatcher())
            triton.bind(model_name=function.__name__, infer_func=function, inputs=x, outputs=gives, config=how)
        triton.serve()
