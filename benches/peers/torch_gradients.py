"""Gradients of one training step in PyTorch beside those that `trine bench gradients` has written.

Run by `cargo xtask bench gradients --python PATH`. By hand:

    trine bench gradients --preset gpt2-124m --tp 1 --pp 1 --dp 1 --write DIR
    python benches/peers/torch_gradients.py --model gpt2-124m --written DIR

The model is that of `torch_step.py`, with the weights and the tokens of DIR, in f64 and in the type that trine has
computed in (bf16: `autocast` over f32 weights). One JSON object goes to standard output: the losses, and for each
parameter the norm of PyTorch's f64 gradient and of the difference of the others from it.
"""

import argparse
import json
import mmap
import pathlib
import struct
import sys

import torch
from torch_step import MODELS, Model

DTYPES = {"F32": torch.float32, "F64": torch.float64}

# Part of a parameter's name here: what Hugging Face calls it, or those that lie one behind another in it.
GPT = {
    "attention.qkv": ["attn.c_attn"],
    "attention.output": ["attn.c_proj"],
    "norm1": ["ln_1"],
    "norm2": ["ln_2"],
    "mlp.up": ["mlp.c_fc"],
    "mlp.down": ["mlp.c_proj"],
    "token": ["transformer.wte"],
    "position": ["transformer.wpe"],
    "norm": ["transformer.ln_f"],
}
LLAMA = {
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.output": ["self_attn.o_proj"],
    "norm1": ["input_layernorm"],
    "norm2": ["post_attention_layernorm"],
    "mlp.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.down": ["mlp.down_proj"],
    "token": ["model.embed_tokens"],
    "norm": ["model.norm"],
    "head": ["lm_head"],
}
FAMILIES = {"gpt": ("transformer.h.", GPT), "llama": ("model.layers.", LLAMA)}


class Written:
    """The tensors of a safetensors file, under the names of `Model`."""

    def __init__(self, path, family, suffix=""):
        with open(path, "rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        length, = struct.unpack("<Q", self.bytes[:8])
        self.header = json.loads(self.bytes[8:8 + length])
        self.start = 8 + length
        self.blocks, self.names = FAMILIES[family]
        self.suffix = suffix

    def tensor(self, name):
        entry = self.header[name + self.suffix]
        dtype, (start, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
        count = (end - start) // dtype.itemsize
        return torch.frombuffer(self.bytes, dtype=dtype, count=count, offset=self.start + start).view(entry["shape"])

    def __getitem__(self, name):
        module, kind = name.rsplit(".", 1)
        prefix = ""
        if module.startswith("blocks."):
            _, index, module = module.split(".", 2)
            prefix = f"{self.blocks}{index}."
        parts = [self.tensor(f"{prefix}{part}.{kind}") for part in self.names[module]]
        # GPT-2 stores the matrices of its blocks as [in, out].
        transposed = kind == "weight" and ".c_" in self.names[module][0]
        return parts[0].t() if transposed else torch.cat(parts)


def gradients(shape, weights, inputs, targets, autocast, dtype):
    """Loss and gradients of the step; what is no weight, such as the table of rotations, is computed in `dtype` too."""
    torch.set_default_dtype(dtype)
    model = Model(*shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model(inputs, targets)
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--written", type=pathlib.Path, required=True, help="folder that trine has written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    step = json.loads((args.written / "step.json").read_text())
    ours, exact = step["steps"]
    if ours["compute"] not in ("bf16", "f32") or exact["compute"] != "f64":
        sys.exit(f"cannot compare {ours['compute']} with {exact['compute']}")
    family = MODELS[args.model][7]

    def written(of, file, suffix=""):
        return Written(args.written / of["checkpoint"] / file, family, suffix)

    weights = written(ours, "model.safetensors")
    shape = list(MODELS[args.model])
    # The script pads GPT-2's vocabulary with rows that take part in the softmax; trine's padding does not.
    shape[0] = weights["token.weight"].shape[0]
    inputs, targets = (torch.tensor(step[key]).view(-1, step["seq"]) for key in ("inputs", "targets"))
    reference_loss, reference = gradients(shape, weights, inputs, targets, False, torch.float64)
    loss, torch_gradients = gradients(shape, weights, inputs, targets, ours["compute"] == "bf16", torch.float32)

    trine, trine_f64 = (written(of, "optimizer.safetensors", ".gradient") for of in (ours, exact))
    parameters = []
    for name, gradient in reference.items():
        def distance(other):
            return (other.double() - gradient).norm().item()

        parameters.append({
            "name": name,
            "norm": gradient.norm().item(),
            "trine": distance(trine[name]),
            "torch": distance(torch_gradients[name]),
            "trine_f64": distance(trine_f64[name]),
        })
    json.dump({
        "loss": {"f64": reference_loss, "trine": ours["loss"], "torch": loss, "trine_f64": exact["loss"]},
        "parameters": parameters,
    }, sys.stdout)
    print()


if __name__ == "__main__":
    main()
