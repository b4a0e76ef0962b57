"""The families in transformers, with the weights of `traits.py` under their names there: logits beside logits.

Run by `traits.py --transformers`. Each configuration has the keys that a checkpoint of trine has.
"""

import importlib.metadata
import json
import os
import pathlib
import tempfile

import torch
from safetensors.torch import save_file

os.environ["HF_HUB_OFFLINE"] = "1"

# transformers computes norms, softmax and angles in f32 whatever type a model has. Here f32 is f64.
torch.float32 = torch.float = torch.float64
torch.Tensor.float = torch.Tensor.double
torch.set_default_dtype(torch.float64)

import traits  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

# The largest difference of two logits, beside the largest logit.
BOUND = 1e-9

KINDS = {"gpt": "gpt2", "gpt-neox": "gpt_neox"}
ACTIVATIONS = {"gelu-tanh": "gelu_pytorch_tanh"}
PLACES = {
    "llama": {
        "embedding.token": "model.embed_tokens",
        "block": {
            "norm1": "input_layernorm",
            "attention": "self_attn",
            "norm2": "post_attention_layernorm",
            "mlp": "mlp",
        },
        "parts": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "output": "o_proj", "q_norm": "q_norm",
                  "k_norm": "k_norm", "gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
        "blocks": "model.layers",
        "head.norm": "model.norm",
        "head.output": "lm_head",
    },
    "gpt": {
        "embedding.token": "transformer.wte",
        "embedding.position": "transformer.wpe",
        "block": {"norm1": "ln_1", "attention": "attn", "norm2": "ln_2", "mlp": "mlp"},
        "parts": {"qkv": "c_attn", "output": "c_proj", "up": "c_fc", "down": "c_proj"},
        "blocks": "transformer.h",
        "head.norm": "transformer.ln_f",
        "head.output": "lm_head",
    },
    "gpt-neox": {
        "embedding.token": "gpt_neox.embed_in",
        "block": {
            "norm1": "input_layernorm",
            "attention": "attention",
            "norm2": "post_attention_layernorm",
            "mlp": "mlp",
        },
        "parts": {"qkv": "query_key_value", "output": "dense", "up": "dense_h_to_4h", "down": "dense_4h_to_h"},
        "blocks": "gpt_neox.layers",
        "head.norm": "gpt_neox.final_layer_norm",
        "head.output": "embed_out",
    },
}  # fmt: skip
# What blocks with norms behind their branches call them.
BEHIND = {
    "norm1_after": "post_attention_layernorm",
    "norm2": "pre_feedforward_layernorm",
    "norm2_after": "post_feedforward_layernorm",
}


def cases():
    """Each family, and what its description can say beside that."""
    for family, changes in traits.families():
        yield family, changes
    rotary = ["llama", "mistral", "qwen2", "qwen3", "gpt-neox", "olmo2", "gemma2"]
    for family in rotary:
        for changes in traits.WAYS.values():
            kv_heads = changes.get("heads", 4) if family == "gpt-neox" else changes.get("kv_heads", 2)
            head_dim = {"hidden": 32, "head_dim": 32 // changes.get("heads", 4)} if family == "gpt-neox" else {}
            yield family, {**changes, "kv_heads": kv_heads, **head_dim}
    yield "llama", traits.BIASES
    yield "llama", {"qkv_bias": True, "output_bias": True, "tied": True, "activation": "gelu"}
    for kv_heads in [1, 4]:
        yield "llama", {"kv_heads": kv_heads, "rope_scaling": "yarn 0.5 4 1 64"}
    yield "mistral", {"window": "none", "activation": "gelu-tanh"}
    for family in ["qwen2", "qwen3"]:
        yield family, {"layers": 3, "window": ["none", "none", 2]}
        yield family, {"activation": "relu", "window": 5}
    yield "qwen3", {"qkv_bias": True, "output_bias": True}
    yield "olmo2", {"qkv_bias": True, "output_bias": True, "kv_heads": 4, "tied": True}
    yield "gemma2", {"layers": 3, "score_cap": "none", "logit_cap": "none", "qkv_bias": True, "output_bias": True}
    yield "gemma2", {"window": [2, "none"], "kv_heads": 1, "activation": "gelu"}
    neox = dict(traits.families())["gpt-neox"]
    yield "gpt-neox", {**neox, "parallel": False, "activation": "gelu-tanh", "tied": True}
    yield "gpt-neox", {**neox, "rope_fraction": 1.0, "qkv_bias": False, "output_bias": False}
    gpt = dict(traits.families())["gpt"]
    yield "gpt", {**gpt, "activation": "relu", "tied": False}
    yield "gpt", {**gpt, "activation": "gelu"}


def rope(model):
    """What says how positions turn, in the words of transformers before and since version 5."""
    kind, *numbers = model["rope_scaling"].split()
    names = {
        "none": [],
        "linear": ["factor"],
        "llama3": ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
        "yarn": ["factor", "beta_fast", "beta_slow", "original_max_position_embeddings"],
    }[kind]
    scaling = {"rope_type": "default" if kind == "none" else kind}
    scaling |= {name: int(number) if name.startswith("original") else float(number) for name, number in zip(names, numbers)}
    parameters = {**scaling, "rope_theta": model["rope_theta"]}
    if model["rope_fraction"] != 1.0:
        parameters["partial_rotary_factor"] = model["rope_fraction"]
    before = {} if kind == "none" else {"rope_scaling": scaling}
    return {"rope_theta": model["rope_theta"], "rope_parameters": parameters, **before}


def description(model):
    """A model as a `config.json` of its family."""
    family, first = model["family"], traits.of_block(model, 0)
    activation = ACTIVATIONS.get(first["activation"], first["activation"])
    if family == "gpt":
        return {
            "vocab_size": model["vocab"], "n_positions": model["seq_max"], "n_embd": model["hidden"],
            "n_layer": model["layers"], "n_head": model["heads"], "n_inner": model["ffn"],
            "activation_function": "gelu_new" if activation == "gelu_pytorch_tanh" else activation,
            "layer_norm_epsilon": model["norm_eps"], "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
            "tie_word_embeddings": model["tied"],
        }  # fmt: skip
    described = {
        "vocab_size": model["vocab"], "max_position_embeddings": model["seq_max"], "hidden_size": model["hidden"],
        "intermediate_size": model["ffn"], "num_hidden_layers": model["layers"],
        "num_attention_heads": model["heads"], "attention_dropout": 0.0, "tie_word_embeddings": model["tied"],
        "hidden_activation" if family == "gemma2" else "hidden_act": activation,
        **rope(model),
    }  # fmt: skip
    if family == "gpt-neox":
        return described | {
            "layer_norm_eps": model["norm_eps"], "rotary_pct": model["rope_fraction"],
            "rotary_emb_base": model["rope_theta"], "use_parallel_residual": model["parallel"],
            "attention_bias": model["qkv_bias"], "hidden_dropout": 0.0,
        }  # fmt: skip
    described |= {
        "rms_norm_eps": model["norm_eps"], "num_key_value_heads": model["kv_heads"], "head_dim": model["head_dim"],
    }  # fmt: skip
    if family in ["llama", "qwen3", "olmo2", "gemma2"]:
        described["attention_bias"] = model["qkv_bias"]
    if family == "llama":
        described["mlp_bias"] = model["mlp_bias"]
    if family in ["mistral", "qwen2", "qwen3", "gemma2"]:
        windows = [traits.of_block(model, index)["window"] for index in range(model["layers"])]
        width = max((window for window in windows if window != "none"), default=None)
        kinds = ["full_attention" if window == "none" else "sliding_attention" for window in windows]
        described |= {"sliding_window": width}
        if family != "mistral":  # Where a "mistral" has kinds of blocks, transformers takes it for another model.
            described["layer_types"] = kinds
        if family in ["qwen2", "qwen3"]:
            first_window = next((at for at, window in enumerate(windows) if window != "none"), model["layers"])
            described |= {"use_sliding_window": width is not None, "max_window_layers": first_window}
    if family == "gemma2":
        score_dim = model["head_dim"] if model["score_dim"] == "none" else model["score_dim"]
        caps = {key: None if model[key] == "none" else model[key] for key in ["score_cap", "logit_cap"]}
        described |= {
            "query_pre_attn_scalar": score_dim, "attn_logit_softcapping": caps["score_cap"],
            "final_logit_softcapping": caps["logit_cap"],
        }  # fmt: skip
    return described


def joined(model, w):
    """Queries, keys and values in one tensor, for those who have them so."""
    family, heads = model["family"], model["heads"]
    if family not in ["gpt", "gpt-neox"]:
        return w
    found = {name: tensor for name, tensor in w.items() if name.split(".")[-2] not in ["q", "k", "v"]}
    for index in range(model["layers"]):
        for kind in ["weight", "bias"]:
            name = f"block.{index}.attention"
            if f"{name}.q.{kind}" not in w:
                continue
            parts = [w[f"{name}.{part}.{kind}"] for part in "qkv"]
            if family == "gpt-neox":
                # Those of the first head, then those of the second.
                parts = [torch.stack([part.reshape(heads, model["head_dim"], -1) for part in parts], 1)]
            joint = torch.cat(parts)
            found[f"{name}.qkv.{kind}"] = joint.reshape(-1, model["hidden"]) if kind == "weight" else joint.reshape(-1)
    return found


def their_name(model, name):
    family = model["family"]
    places = PLACES.get(family, PLACES["llama"])
    if name.startswith("embedding"):
        return f"{places[name]}.weight"
    whole, kind = name.rsplit(".", 1)
    if whole.startswith("head"):
        return f"{places[whole]}.{kind}"
    _, index, module, *part = whole.split(".")
    module = BEHIND.get(module) if family in ["olmo2", "gemma2"] and module in BEHIND else places["block"][module]
    return ".".join([places["blocks"], index, module, *(places["parts"][p] for p in part), kind])


def their_weights(model, w):
    """The weights under the names of transformers."""
    found = {}
    for name, tensor in joined(model, w).items():
        theirs = their_name(model, name)
        is_conv = model["family"] == "gpt" and name.startswith("block") and tensor.dim() == 2
        found[theirs] = tensor.T.contiguous() if is_conv else tensor
    return found


def difference(family, changes, folder):
    """How far apart the logits are, beside the largest."""
    model = traits.completed(traits.described(family, **changes))
    w = {name: tensor.detach() for name, tensor in traits.weights(model).items()}
    config = {"model_type": KINDS.get(family, family), **description(model)}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(their_weights(model, w), folder / "model.safetensors", {"format": "pt"})
    theirs, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    tokens, _, _ = traits.batch(family, model["vocab"])
    ours = traits.logits(model, w, tokens, None)
    with torch.no_grad():
        given = theirs(torch.tensor(tokens).reshape(traits.SAMPLES, traits.SEQ)).logits
    return ((given.reshape(ours.shape) - ours).abs().max() / ours.abs().max()).item()


def compare():
    """Prints all differences; 1 if one is too large."""
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ["torch", "transformers"]))
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for family, changes in cases():
            found = difference(family, changes, pathlib.Path(folder))
            worst = max(worst, found)
            print(f"{found:.1e} {family} {json.dumps(changes)}", flush=True)
    print(f"the largest difference is {worst:.1e}, and {BOUND} is allowed")
    return int(not worst <= BOUND)
