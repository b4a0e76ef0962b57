"""What the Python library transformers makes of a checkpoint, as one line of JSON.

versions                        the versions of all libraries
evaluate CHECKPOINT DATASET SEQ nats per token over the validation tokens of a prepared dataset, in f32
generate CHECKPOINT PROMPT      the likeliest continuation, and whether it ended by itself
lm-eval CHECKPOINT TASKS        accuracy of lm-eval on the task `words` of a folder
"""

import importlib.metadata
import json
import os
import struct
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# At most; a model that has learned where a text ends takes fewer.
NEW_TOKENS_MAX = 40


def versions():
    found = {}
    for name in ["torch", "transformers", "tokenizers", "safetensors", "lm_eval", "accelerate"]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def opened(checkpoint):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def evaluate(checkpoint, dataset, seq):
    import torch

    model, seq = opened(checkpoint), int(seq)
    index = json.load(open(os.path.join(dataset, "index.json")))
    raw = open(os.path.join(dataset, index["validation"]["tokens"]["file"]), "rb").read()
    width = {"u16": ("H", 2), "u32": ("I", 4)}[index["dtype"]]
    tokens = list(struct.unpack(f"<{len(raw) // width[1]}{width[0]}", raw))
    # The token before the first is the end of another text.
    inputs = [index["end_of_text"]] + tokens[:-1]
    total = 0.0
    for start in range(0, len(tokens), seq):
        with torch.no_grad():
            logits = model(torch.tensor([inputs[start : start + seq]])).logits[0].double()
        targets = torch.tensor(tokens[start : start + seq])
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return {"loss": total / len(tokens), "tokens": len(tokens)}


def generate(checkpoint, prompt):
    from transformers import AutoTokenizer

    model, tokenizer = opened(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    given = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**given, max_new_tokens=NEW_TOKENS_MAX, do_sample=False)[0].tolist()
    ended = made[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
    return {"text": tokenizer.decode(made, skip_special_tokens=True), "ended": ended}


def lm_eval(checkpoint, tasks):
    import lm_eval
    from lm_eval.tasks import TaskManager

    os.chdir(tasks)
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": checkpoint, "dtype": "float32"},
        tasks=["words"],
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
    )
    return {"accuracy": found["results"]["words"]["acc,none"]}


COMMANDS = {"versions": versions, "evaluate": evaluate, "generate": generate, "lm-eval": lm_eval}

if __name__ == "__main__":
    print("\n" + json.dumps(COMMANDS[sys.argv[1]](*sys.argv[2:])))
