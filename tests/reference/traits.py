"""Every trait of a model in PyTorch's f64: losses, logits and gradients that trine is compared with.

    python3 tests/reference/traits.py                  writes traits.json beside this file
    python3 tests/reference/traits.py --transformers   compares with the models of transformers instead

The model is written from the formulas that its comments name. It knows nothing of trine but the names of parameters and
the words of a configuration. `tests/tests/reference.rs` reads the fixture. It needs torch, and the second form also
transformers. See docs/numerics.md.
"""

import json
import math
import pathlib
import platform
import random
import sys

import torch
from torch.nn.functional import cross_entropy

DOUBLE = torch.float64
FIXTURE = pathlib.Path(__file__).with_name("traits.json")

# ---- Models --------------------------------------------------------------------------------------------------------

# The traits of a Llama, and in what the other families differ from it, by their papers and released models.
LLAMA = {
    "norm": "rms", "norm_at": "before", "positions": "rotary", "rope_fraction": 1.0, "rope_scaling": "none",
    "qkv_bias": False, "output_bias": False, "mlp_bias": False, "qk_norm": "none", "activation": "silu", "gated": True,
    "parallel": False, "window": "none", "score_dim": "none", "score_cap": "none", "logit_cap": "none",
    "embedding_scale": "none",
}  # fmt: skip
BIASES = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
FAMILIES = {
    "gpt": {"norm": "layer", "positions": "learned", "activation": "gelu-tanh", "gated": False, **BIASES},
    "llama": {},
    "mistral": {"window": 4096},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "head"},
    "gpt-neox": {"norm": "layer", "rope_fraction": 0.25, "activation": "gelu", "gated": False, "parallel": True, **BIASES},
    "olmo2": {"norm_at": "after", "qk_norm": "all"},
    "gemma2": {"norm": "rms-one", "norm_at": "both", "activation": "gelu-tanh", "window": [4096, "none"],
               "score_cap": 50.0, "logit_cap": 30.0, "embedding_scale": "√hidden"},
}  # fmt: skip
SIZES = {
    "hidden": 12, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "ffn": 16, "vocab": 13, "seq_max": 10,
    "tied": False, "norm_eps": 1e-3, "rope_theta": 100.0, "dropout": 0.0, "init_std": 0.02,
}  # fmt: skip
SAMPLES, SEQ = 2, 8


def described(family="llama", **changes):
    """A model as it stands in a file: traits that are not given are the family's."""
    return {"family": family, **SIZES, **changes}


def completed(model):
    """The same with all traits."""
    model = {**LLAMA, **FAMILIES[model["family"]], **model}
    if model["embedding_scale"] == "√hidden":
        model["embedding_scale"] = math.sqrt(model["hidden"])
    return model


def of_block(model, index):
    """Its traits in one block: a list is repeated over the blocks."""
    return {key: value[index % len(value)] if isinstance(value, list) else value for key, value in model.items()}


# ---- Weights -------------------------------------------------------------------------------------------------------


def noise(name, index):
    """A multiple of 2⁻¹⁶ in [-½, ½) that anybody can compute: FNV-1a of the name, then SplitMix64."""
    word = (1 << 64) - 1
    mixed = 0xCBF29CE484222325
    for byte in name.encode():
        mixed = (mixed ^ byte) * 0x100000001B3 & word
    mixed = mixed + (index + 1) * 0x9E3779B97F4A7C15 & word
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & word
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & word
    return ((mixed ^ mixed >> 31) >> 48) / 65536 - 0.5


def shapes(model):
    """The shape of each parameter, and what its noise is added to: 1 for a gain that starts at 1."""
    hidden, found = model["hidden"], {}

    def matrix(name, rows, columns, bias=False):
        found[f"{name}.weight"] = ((rows, columns), 0)
        if bias:
            found[f"{name}.bias"] = ((rows,), 0)

    def norm(name, kind):
        found[f"{name}.weight"] = ((hidden,), 0 if kind == "rms-one" else 1)
        if kind == "layer":
            found[f"{name}.bias"] = ((hidden,), 0)

    found["embedding.token"] = ((model["vocab"], hidden), 0)
    if "learned" in model["positions"]:
        found["embedding.position"] = ((model["seq_max"], hidden), 0)
    for index in range(model["layers"]):
        traits, block = of_block(model, index), f"block.{index}"
        widths = {"q": traits["heads"] * traits["head_dim"], "k": traits["kv_heads"] * traits["head_dim"]}
        widths["v"] = widths["k"]
        for branch in ["norm1", "norm2"]:
            if traits["norm_at"] != "after":
                norm(f"{block}.{branch}", traits["norm"])
            if traits["norm_at"] != "before":
                norm(f"{block}.{branch}_after", traits["norm"])
        for part, width in widths.items():
            matrix(f"{block}.attention.{part}", width, hidden, traits["qkv_bias"])
        if traits["qk_norm"] != "none":
            for part in "qk":
                width = traits["head_dim"] if traits["qk_norm"] == "head" else widths[part]
                found[f"{block}.attention.{part}_norm.weight"] = ((width,), 1)
        matrix(f"{block}.attention.output", hidden, widths["q"], traits["output_bias"])
        for part in ["gate", "up"] if traits["gated"] else ["up"]:
            matrix(f"{block}.mlp.{part}", traits["ffn"], hidden, traits["mlp_bias"])
        matrix(f"{block}.mlp.down", hidden, traits["ffn"], traits["mlp_bias"])
    norm("head.norm", of_block(model, model["layers"] - 1)["norm"])
    if not model["tied"]:
        matrix("head.output", model["vocab"], hidden)
    return found


def weights(model):
    """All parameters by name."""

    def made(name, shape, start):
        values = [start + noise(name, index) for index in range(math.prod(shape))]
        return torch.tensor(values, dtype=DOUBLE).reshape(shape).requires_grad_()

    return {name: made(name, *row) for name, row in shapes(model).items()}


# ---- The forward pass ----------------------------------------------------------------------------------------------


def root_mean_square(x, eps):
    """Zhang & Sennrich, 1910.07467, before the gain."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def normed(x, w, name, traits):
    """Ba et al., 1607.06450, or the above; Gemma's gain is 1 + weight."""
    kind, eps, weight = traits["norm"], traits["norm_eps"], w[f"{name}.weight"]
    if kind == "layer":
        centred = x - x.mean(-1, keepdim=True)
        return root_mean_square(centred, eps) * weight + w[f"{name}.bias"]
    return root_mean_square(x, eps) * (1 + weight if kind == "rms-one" else weight)


def linear(x, w, name):
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def frequencies(traits, turned):
    """Su et al., 2104.09864: θ^(-2i/d); stretched to longer texts by `rope_scaling`. With a factor of amplitudes."""
    theta = traits["rope_theta"]
    plain = [theta ** (-2 * i / turned) for i in range(turned // 2)]
    kind, *numbers = traits["rope_scaling"].split()
    numbers = [float(number) for number in numbers]
    if kind == "none":
        return plain, 1.0
    if kind == "linear":  # Chen et al., 2306.15595: positions divided by the factor.
        return [frequency / numbers[0] for frequency in plain], 1.0
    if kind == "llama3":  # Llama 3.1's released code, by wave lengths.
        factor, low, high, original = numbers

        def stretched(frequency):
            wave = 2 * math.pi / frequency
            if wave < original / high:
                return frequency
            if wave > original / low:
                return frequency / factor
            smooth = (original / wave - low) / (high - low)
            return (1 - smooth) * frequency / factor + smooth * frequency

        return [stretched(frequency) for frequency in plain], 1.0
    # Peng et al., 2309.00071, "NTK-by-parts", as in their released code: the ramp between the two numbers of turns
    # runs over whole indices of frequencies. Scores get √(1/t) = 0.1 ln s + 1 twice, once from queries and once from
    # keys (their equation 22).
    assert kind == "yarn", kind
    factor, fast, slow, original = numbers

    def index(turns):  # Where original · θ^(-2i/d) / 2π = turns.
        return turned * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(math.floor(index(fast)), 0), min(math.ceil(index(slow)), turned - 1)
    ramp = [min(max((i - first) / max(last - first, 0.001), 0), 1) for i in range(turned // 2)]
    blended = [f / factor * part + f * (1 - part) for f, part in zip(plain, ramp)]
    return blended, 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def rotated(x, traits):
    """Turns the first part of each head of `[.., seq, heads, head_dim]`: element i with element i + turned/2."""
    turned = int(traits["rope_fraction"] * traits["head_dim"])
    theta, amplitude = frequencies(traits, turned)
    angles = torch.arange(x.shape[-3], dtype=DOUBLE)[:, None, None] * torch.tensor(theta, dtype=DOUBLE)
    cos, sin = amplitude * torch.cos(angles), amplitude * torch.sin(angles)
    real, imaginary, rest = x[..., : turned // 2], x[..., turned // 2 : turned], x[..., turned:]
    return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos, rest], -1)


def visible(traits, starts):
    """Which keys each query sees: from its document's start, within its window, up to itself. `[samples, seq, seq]`"""
    query, key = torch.arange(SEQ)[:, None], torch.arange(SEQ)[None, :]
    seen = (key <= query).expand(SAMPLES, SEQ, SEQ)
    if traits["window"] != "none":
        seen = seen & (query - key < traits["window"])
    if starts is not None:
        seen = seen & (key >= torch.tensor(starts).reshape(SAMPLES, SEQ, 1))
    return seen


def attention(x, w, name, traits, starts):
    """Vaswani et al., 1706.03762; query heads share key heads in runs (Ainslie et al., 2305.13245)."""
    q, k, v = (linear(x, w, f"{name}.{part}") for part in "qkv")
    heads = {"q": traits["heads"], "k": traits["kv_heads"]}

    def prepared(y, part):
        gain = w.get(f"{name}.{part}_norm.weight")
        if traits["qk_norm"] == "all":
            y = root_mean_square(y, traits["norm_eps"]) * gain
        y = y.reshape(SAMPLES, SEQ, heads[part], traits["head_dim"])
        if traits["qk_norm"] == "head":
            y = root_mean_square(y, traits["norm_eps"]) * gain
        return rotated(y, traits) if traits["positions"] == "rotary" else y

    shared = traits["heads"] // traits["kv_heads"]
    q, k = prepared(q, "q"), prepared(k, "k").repeat_interleave(shared, 2)
    v = v.reshape(SAMPLES, SEQ, traits["kv_heads"], -1).repeat_interleave(shared, 2)
    score_dim = traits["head_dim"] if traits["score_dim"] == "none" else traits["score_dim"]
    scores = capped(torch.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(score_dim), traits["score_cap"])
    scores = scores.masked_fill(~visible(traits, starts)[:, None], -math.inf)
    read = torch.einsum("nhqk,nkhd->nqhd", torch.softmax(scores, -1), v)
    return linear(read.reshape(SAMPLES, SEQ, -1), w, f"{name}.output")


def capped(x, cap):
    """Gemma 2, 2408.00118."""
    return x if cap == "none" else cap * torch.tanh(x / cap)


ACTIVATIONS = {
    "relu": lambda x: torch.clamp(x, min=0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    # Hendrycks & Gimpel, 1606.08415: x · Φ(x), and their approximation of it.
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu-tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


def mlp(x, w, name, traits):
    """With a gate: Shazeer, 2002.05202."""
    function, up = ACTIVATIONS[traits["activation"]], linear(x, w, f"{name}.up")
    inner = function(linear(x, w, f"{name}.gate")) * up if traits["gated"] else function(up)
    return linear(inner, w, f"{name}.down")


def block(x, w, index, traits, starts):
    name = f"block.{index}"

    def branch(read, norm, inner):
        if traits["norm_at"] != "after":
            read = normed(read, w, f"{name}.{norm}", traits)
        given = inner(read)
        return given if traits["norm_at"] == "before" else normed(given, w, f"{name}.{norm}_after", traits)

    after = x + branch(x, "norm1", lambda y: attention(y, w, f"{name}.attention", traits, starts))
    # Side by side (GPT-NeoX, 2204.06745): both read what enters the block.
    return after + branch(x if traits["parallel"] else after, "norm2", lambda y: mlp(y, w, f"{name}.mlp", traits))


def logits(model, w, tokens, starts):
    """`[samples · seq, vocab]`"""
    x = w["embedding.token"][torch.tensor(tokens).reshape(SAMPLES, SEQ)]
    if model["embedding_scale"] != "none":
        x = x * model["embedding_scale"]
    if "embedding.position" in w:
        x = x + w["embedding.position"][:SEQ]
    for index in range(model["layers"]):
        x = block(x, w, index, of_block(model, index), starts)
    x = normed(x, w, "head.norm", of_block(model, model["layers"] - 1))
    output = w["embedding.token" if model["tied"] else "head.output.weight"]
    return capped(x @ output.T, model["logit_cap"]).reshape(SAMPLES * SEQ, -1)


# ---- Cases ---------------------------------------------------------------------------------------------------------

# What stretched frequencies show themselves with: eight of them, some kept, some divided and some between.
LONG = {"head_dim": 16, "heads": 2, "kv_heads": 1, "rope_theta": 100.0}
WAYS = {
    "linear": {"rope_scaling": "linear 4"},
    "llama3": {**LONG, "rope_scaling": "llama3 8 1 4 64"},
    "yarn": {**LONG, "rope_scaling": "yarn 4 4 1 64"},
}


def single_traits():
    """Each value of each trait beside those of a Llama."""
    yield "plain", {}
    for key in ["norm", "norm_at", "qk_norm"]:
        for value in {"norm": ["layer", "rms-one"], "norm_at": ["after", "both"], "qk_norm": ["head", "all"]}[key]:
            yield f"{key} {value}", {key: value}
    yield "layer norms after", {"norm": "layer", "norm_at": "after"}
    yield "norms of 1 + weight on both sides", {"norm": "rms-one", "norm_at": "both"}
    yield "positions learned", {"positions": "learned"}
    yield "positions none", {"positions": "none"}
    yield "half of each head turned", {"rope_fraction": 0.5}
    yield "base of rotary frequencies", {"rope_theta": 10000.0, "head_dim": 8, "heads": 2, "kv_heads": 1}
    for way, changes in WAYS.items():
        yield f"rope_scaling {way}", changes
    yield "rope_scaling yarn of a quarter", {**WAYS["yarn"], "rope_fraction": 0.25}
    yield "rope_scaling yarn without a ramp", {**LONG, "rope_scaling": "yarn 2 32 1 8"}
    yield "rope_scaling yarn below 1", {**LONG, "rope_scaling": "yarn 0.5 4 1 64"}
    for bias in BIASES:
        yield bias, {bias: True}
    yield "all biases, no gate", {"gated": False, **BIASES}
    for activation in ACTIVATIONS:
        yield f"activation {activation}", {"activation": activation, "gated": [True, False]}
    yield "parallel", {"parallel": True}
    yield "parallel, norms on both sides", {"parallel": True, "norm_at": "both"}
    for window in [1, 3, SEQ - 1, 64]:
        yield f"window {window}", {"window": window}
    yield "score_dim", {"score_dim": 9}
    yield "score_cap", {"score_cap": 0.75}
    yield "logit_cap", {"logit_cap": 1.5}
    yield "logit_cap, tied", {"logit_cap": 1.5, "tied": True}
    yield "embedding_scale", {"embedding_scale": 2.5}
    yield "embedding_scale, learned positions, tied", {"embedding_scale": 2.5, "positions": "learned", "tied": True}
    yield "tied", {"tied": True}
    yield "as many KV heads as heads", {"kv_heads": 4}
    yield "one KV head", {"heads": 4, "kv_heads": 1, "head_dim": 8}


def lists():
    """Traits that differ from block to block."""
    yield "windows alternate", {"layers": 3, "window": [3, "none"]}
    yield "every third block without positions", {"layers": 3, "positions": ["rotary", "rotary", "none"]}
    yield "gates alternate", {"layers": 3, "gated": [False, True], "mlp_bias": [True, True, False]}
    yield "kinds of norms", {"layers": 3, "norm": ["rms", "layer"], "norm_at": ["before", "after", "both"]}
    yield "the head's norm is the last block's", {"norm": ["layer", "rms-one"]}
    yield "norms of queries and keys", {"layers": 3, "qk_norm": ["none", "head", "all"], "qkv_bias": [True, False]}
    yield "parts of heads turned", {"rope_fraction": [0.5, 1.0], "parallel": [True, False]}
    yield "caps and scales", {"score_cap": [0.5, "none"], "score_dim": ["none", 7], "output_bias": [False, True]}


def families():
    """Each family as trine has it. Its sizes are small, and so are its windows and caps, so that they bound something."""
    yield "gpt", {"kv_heads": 4, "hidden": 16, "tied": True, "norm_eps": 1e-5}
    yield "llama", {"norm_eps": 1e-5}
    yield "mistral", {"window": 3, "norm_eps": 1e-5}
    yield "qwen2", {"tied": True, "norm_eps": 1e-6}
    yield "qwen3", {"tied": True, "norm_eps": 1e-6}
    yield "gpt-neox", {"hidden": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "norm_eps": 1e-5}
    yield "olmo2", {"norm_eps": 1e-6}
    yield "gemma2", {"window": [3, "none"], "score_dim": 7, "score_cap": 1.5, "logit_cap": 2.5, "tied": True}


# What a mixture takes from: most values at least once in a dozen of them.
CHOICES = {
    "norm": ["layer", "rms", "rms-one"], "norm_at": ["before", "after", "both"], "rope_fraction": [0.5, 1.0],
    "qkv_bias": [False, True], "output_bias": [False, True], "mlp_bias": [False, True],
    "qk_norm": ["none", "head", "all"], "activation": list(ACTIVATIONS), "gated": [False, True],
    "parallel": [False, True], "window": ["none", 2, 5], "score_dim": ["none", 3], "score_cap": ["none", 0.8],
}  # fmt: skip


def mixtures():
    """Traits drawn for each block by itself."""
    draw = random.Random(20)
    for number in range(8):
        layers = draw.choice([2, 3])
        changes = {key: [draw.choice(values) for _ in range(layers)] for key, values in CHOICES.items()}
        learned = draw.random() < 0.25
        changes["positions"] = "learned" if learned else [draw.choice(["rotary", "none"]) for _ in range(layers)]
        changes["rope_scaling"] = draw.choice(["none", "linear 3", "llama3 8 1 4 64", "yarn 4 4 1 64"])
        changes["logit_cap"] = draw.choice(["none", 1.5])
        changes["embedding_scale"] = draw.choice(["none", 2.5])
        documents = draw.choice(["", " of documents"])
        yield f"mixture {number}{documents}", {"layers": layers, "tied": draw.random() < 0.5, **changes}


def documents():
    """Several in a sample. Positions count on from one to the next."""
    yield "documents", {}
    yield "documents and a window", {"window": 3}
    yield "documents and learned positions", {"positions": "learned"}


def models():
    """The name and the model of each case; where the name has documents, these are cut apart."""
    for name, changes in [*single_traits(), *lists(), *documents(), *mixtures()]:
        yield name, described(**changes)
    for family, changes in families():
        yield f"family {family}", described(family, **changes)


def batch(name, vocab):
    """Tokens; targets, some of which are none; and the first position of each token's document."""
    tokens = [int((noise(f"{name} tokens", at) + 0.5) * vocab) for at in range(SAMPLES * (SEQ + 1))]
    rows = [tokens[sample * (SEQ + 1) :][: SEQ + 1] for sample in range(SAMPLES)]
    targets = [token for row in rows for token in row[1:]]
    for nothing in [2, *range(SAMPLES * SEQ - 3, SAMPLES * SEQ)]:
        targets[nothing] = None
    starts = [0] * 3 + [3] * (SEQ - 3) + [0] * 5 + [5] * 2 + [7] * (SEQ - 7) if "documents" in name else None
    return [token for row in rows for token in row[:-1]], targets, starts


# ---- The fixture ---------------------------------------------------------------------------------------------------


def held(tensor):
    """What the fixture holds of a tensor: a vector as it is; of a matrix each row's product with weights in [½, 1½),
    so that every element counts, and differently from its neighbours. In 15 digits."""
    tensor = tensor.detach()
    if tensor.dim() == 2:
        columns = [1 + noise("columns", at) for at in range(tensor.shape[1])]
        tensor = tensor @ torch.tensor(columns, dtype=DOUBLE)
    return [float(f"{value:.15g}") for value in tensor.tolist()]


def case(name, model):
    whole = completed(model)
    w = weights(whole)
    tokens, targets, starts = batch(name, whole["vocab"])
    found = logits(whole, w, tokens, starts)
    at = [at for at, target in enumerate(targets) if target is not None]
    loss = cross_entropy(found[at], torch.tensor([targets[place] for place in at]))
    loss.backward()
    return {
        "name": name,
        "model": model,
        "seq": SEQ,
        "tokens": tokens,
        "targets": targets,
        "document_starts": starts,
        "loss": loss.item(),
        "logits": held(found),
        "gradients": {name: {"shape": list(w.shape), "held": held(w.grad)} for name, w in w.items()},
    }


def write():
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    cases = [json.dumps(case(*row)) for row in models()]
    head = json.dumps({"versions": versions})[:-1]
    FIXTURE.write_text(head + ', "cases": [\n' + ",\n".join(cases) + "\n]}\n")
    print(f"{FIXTURE}: {len(cases)} cases, {FIXTURE.stat().st_size} bytes")


if __name__ == "__main__":
    if sys.argv[1:] == ["--transformers"]:
        import of_transformers

        sys.exit(of_transformers.compare())
    write()
