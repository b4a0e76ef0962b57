"""One training step of a transformer in PyTorch on the CPU, timed: the peer of `trine bench step`.

Run by `cargo xtask bench torch --python PATH`, which alternates it with trine. By hand:

    python benches/peers/torch_step.py --model gpt2-124m --batch 2 --seq 256 --precision bf16

The model is written as users of PyTorch write it: fused scaled-dot-product attention, `autocast` to bf16 over
f32 weights, clipping by the global norm, fused AdamW. One JSON object goes to standard output, with --turns
another one for every line of the input.
"""

import argparse
import json
import math
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

MODELS = {
    # name: vocab, layers, hidden, heads, kv_heads, ffn, longest sequence, family
    "gpt2-124m": (50304, 12, 768, 12, 12, 3072, 1024, "gpt"),
    "char": (65, 6, 384, 6, 6, 1536, 1024, "gpt"),
    "llama-110m": (32000, 12, 768, 12, 4, 2048, 1024, "llama"),
}


class Attention(nn.Module):
    def __init__(self, hidden, heads, kv_heads, bias, rope):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, hidden // heads
        self.qkv = nn.Linear(hidden, (heads + 2 * kv_heads) * self.head_dim, bias=bias)
        self.output = nn.Linear(hidden, hidden, bias=bias)
        self.rope = rope

    def forward(self, x, cos, sin):
        batch, seq, hidden = x.shape
        sizes = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]
        q, k, v = self.qkv(x).split(sizes, dim=2)
        q, k, v = (t.view(batch, seq, -1, self.head_dim).transpose(1, 2) for t in (q, k, v))
        if self.rope:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        grouped = self.kv_heads != self.heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return self.output(y.transpose(1, 2).reshape(batch, seq, hidden))


def rotate(x, cos, sin):
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Gelu(nn.Module):
    def __init__(self, hidden, ffn):
        super().__init__()
        self.up, self.down = nn.Linear(hidden, ffn), nn.Linear(ffn, hidden)

    def forward(self, x):
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class SwiGlu(nn.Module):
    def __init__(self, hidden, ffn):
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, hidden, heads, kv_heads, ffn, llama):
        super().__init__()
        norm = nn.RMSNorm if llama else nn.LayerNorm
        self.norm1, self.norm2 = norm(hidden, eps=1e-5), norm(hidden, eps=1e-5)
        self.attention = Attention(hidden, heads, kv_heads, not llama, llama)
        self.mlp = SwiGlu(hidden, ffn) if llama else Gelu(hidden, ffn)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, vocab, layers, hidden, heads, kv_heads, ffn, seq_max, family):
        super().__init__()
        llama = family == "llama"
        self.token = nn.Embedding(vocab, hidden)
        self.position = None if llama else nn.Embedding(seq_max, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads, kv_heads, ffn, llama) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden, eps=1e-5) if llama else nn.LayerNorm(hidden, eps=1e-5)
        self.head = nn.Linear(hidden, vocab, bias=False)
        if not llama:
            self.head.weight = self.token.weight
        head_dim = hidden // heads
        frequency = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        angle = torch.outer(torch.arange(seq_max), frequency)
        self.register_buffer("cos", torch.cat((angle, angle), -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((angle, angle), -1).sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids, targets):
        seq = ids.shape[1]
        x = self.token(ids)
        if self.position is not None:
            x = x + self.position(torch.arange(seq))
        cos, sin = self.cos[:seq], self.sin[:seq]
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="gpt2-124m")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0, help="of timed steps; one at least is timed")
    parser.add_argument("--turns", action="store_true", help="time as many steps again for every line of the input")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    shape = list(MODELS[args.model])
    shape[6] = max(shape[6], args.seq)
    model = Model(*shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if args.compile else model
    ids = torch.randint(0, shape[0], (args.batch, args.seq + 1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            loss = forward(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    for _ in range(3):
        step()
    while True:
        print(json.dumps(turn(step, args)), flush=True)
        if not args.turns or not sys.stdin.readline():
            break


def turn(step, args):
    """Times steps; what is known of them."""
    times = []
    start = time.perf_counter()
    while not times or time.perf_counter() - start < args.seconds:
        before = time.perf_counter()
        loss = step()
        times.append((time.perf_counter() - before) * 1e3)
    if not math.isfinite(loss):
        sys.exit(f"the loss is {loss}")
    step_ms = statistics.median(times)
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "steps": len(times),
        "step_ms": step_ms,
        "tokens_per_s": args.batch * args.seq / step_ms * 1e3,
        "loss": loss,
    }


if __name__ == "__main__":
    main()
