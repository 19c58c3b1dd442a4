"""The reference models: their shapes, their weights, and the road between transformers and GGUF.

Used by make_families.py, make_gradients.py, make_curves.py and cross_check.py; the versions are in requirements.txt.

A model is a folder holding `config.json` (transformers) and one or more `TYPE.gguf`. The transformers model is always
rebuilt from a GGUF file with `load`, so the three scripts agree on the weights to the bit, and a quantized file has a
reference of its own: transformers in fp32 over the weights that gguf-py dequantizes from that file.

All numbers come from numpy's PCG64, seeded per model and purpose, so they do not depend on the version of PyTorch.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # PEFT would look the base's name up on a hub
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_num_threads(1)  # one order of summation, so that a rerun gives the same bits


# ---------------------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------------------

TINY = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
            max_position_embeddings=256)
WIDE = dict(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
            intermediate_size=256, max_position_embeddings=256)


def rope(theta, **scaling):
    return dict(rope_parameters=dict(rope_theta=theta, rope_type="default") | scaling)


# text: which tokenizer goes into the file ("llama-bpe" and "qwen2" are GGUF pre-tokenizer names of kind gpt2).
# gguf: the files kept. gradients: whether make_gradients.py uses it. curves: the files that make_curves.py trains over, and how.
MODELS = {
    # Grouped heads, llama3 frequency factors (wavelengths in all three bands), untied head.
    "llama": dict(
        architecture="LlamaForCausalLM", text="llama-bpe", vocab=272, gguf=["F32", "F16"], gradients=True,
        curves={"F32": dict(b="zero", weight_decay=0.0)},
        config=TINY | dict(head_dim=16, rms_norm_eps=1e-5, tie_word_embeddings=False)
        | rope(20000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=32)),
    # A bias on every product, tied head, linear frequency scaling, an epsilon large enough to be seen.
    "llama-tied-bias": dict(
        architecture="LlamaForCausalLM", text="spm", vocab=112, gguf=["F32", "F16"], gradients=True,
        config=TINY | dict(head_dim=16, rms_norm_eps=1e-3, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
        | rope(10000.0, rope_type="linear", factor=4.0)),
    # Heads wider than hidden/heads, one KV head.
    "mistral": dict(
        architecture="MistralForCausalLM", text="spm", vocab=112, gguf=["F32", "F16"],
        config=TINY | dict(head_dim=32, num_key_value_heads=1, intermediate_size=96, rms_norm_eps=1e-5,
                           sliding_window=None, tie_word_embeddings=False) | rope(8000.0)),
    # Biases on q, k, v only; tied head; four rows of the embedding belong to no token.
    "qwen2": dict(
        architecture="Qwen2ForCausalLM", text="qwen2", vocab=272, unused=4, gguf=["F32", "F16"], gradients=True,
        curves={"F32": dict(b="random", weight_decay=0.0)},
        config=TINY | dict(rms_norm_eps=1e-6, tie_word_embeddings=True, use_sliding_window=False) | rope(1000000.0)),
    # Head norms, heads wider than hidden/heads, untied head.
    "qwen3": dict(
        architecture="Qwen3ForCausalLM", text="qwen2", vocab=272, gguf=["F32", "F16"], gradients=True,
        curves={"F32": dict(b="zero", weight_decay=0.1)},
        config=TINY | dict(head_dim=32, intermediate_size=96, rms_norm_eps=1e-6, tie_word_embeddings=False,
                           use_sliding_window=False) | rope(1000000.0)),
    # Rows of 256, so that the k-quants fit. Only the quantized files are kept.
    "llama-wide": dict(
        architecture="LlamaForCausalLM", text="spm", vocab=160, gguf=["Q8_0", "Q6_K", "Q4_K", "Q4_0"],
        curves={"Q8_0": dict(b="zero", weight_decay=0.0), "Q4_K": dict(b="zero", weight_decay=0.0)},
        config=WIDE | dict(rms_norm_eps=1e-5, tie_word_embeddings=False) | rope(10000.0)),
    "qwen3-wide": dict(
        architecture="Qwen3ForCausalLM", text="qwen2", vocab=272, gguf=["Q8_0", "Q4_K"],
        config=WIDE | dict(rms_norm_eps=1e-6, tie_word_embeddings=False, use_sliding_window=False) | rope(1000000.0)),
}

# Standard deviations of the matrices in units of 1/sqrt(inputs), 1 where not named; of the untied embedding in units. Sharp
# enough that every part of a family moves the scores by far more than the tolerances, tame enough that rounding does not: what
# 8-bit activations alone cost llama.cpp on the wide files is in README.md.
GAINS = {"q_proj": 1.2, "k_proj": 1.2, "o_proj": 0.5, "down_proj": 0.5, "lm_head": 2.0, "tied": 2.0,
         "lm_head llama-wide": 1.6, "lm_head qwen3-wide": 1.6}

LENGTHS = (1, 17, 70)  # of the three sequences of every vector file


def numbers(*purpose):
    """The generator of one purpose, e.g. numbers("llama", "weights")."""
    seed = hashlib.sha256("/".join(purpose).encode()).digest()[:8]
    return np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))


def config_of(name):
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
    spec = MODELS[name]
    kind = {"Llama": LlamaConfig, "Mistral": MistralConfig, "Qwen2": Qwen2Config, "Qwen3": Qwen3Config}[
        spec["architecture"].removesuffix("ForCausalLM")]
    last = spec["vocab"] - spec.get("unused", 0) - 1
    bos, eos = {"llama-bpe": (last - 1, last), "qwen2": (None, last)}.get(spec["text"], (1, 2))
    config = kind(vocab_size=spec["vocab"], bos_token_id=bos, eos_token_id=eos, **spec["config"])
    config.architectures = [spec["architecture"]]
    return config


def build(name):
    """The model with weights that make an error visible: sharp attention, no zero bias, no norm weight of one,
    logits spread over several nats."""
    config = config_of(name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    draw = numbers(name, "weights")
    with torch.no_grad():
        for key, weight in sorted(dict(model.named_parameters()).items()):
            normal = draw.standard_normal(tuple(weight.shape)).astype(np.float32)
            if "norm" in key:
                value = 1.0 + 0.25 * normal
            elif key.endswith("bias"):
                value = 0.3 * normal
            else:
                site = "tied" if "embed_tokens" in key and config.tie_word_embeddings else key.split(".")[-2]
                deviation = GAINS.get(f"{site} {name}", GAINS.get(site, 1.0))
                value = deviation * normal / np.sqrt(1 if site == "embed_tokens" else weight.shape[1])
            weight.copy_(torch.from_numpy(value.astype(np.float32)))
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers
# ---------------------------------------------------------------------------------------------------------------------

WORDS = """
the river bends slowly under the old stone bridge and nobody counts the boats
a small lamp burns in the window of the mill until the morning comes
she wrote three letters and kept the longest one in the drawer
rain fell on the tin roof while the children were sleeping
they carried bread and salt and seven apples over the hill
the clock in the hall strikes nine and the dog lifts its head
every summer the swallows return to the same dark barn
he mends nets with a wooden needle and sings about the sea
winter leaves its signature on the glass of the kitchen door
the road to the north is long and the wind knows all its turns
""".strip().split("\n")

LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def write_tokenizer(name, folder):
    """A valid small tokenizer of the kind the family uses, in the files that the converter reads."""
    kind, size = MODELS[name]["text"], MODELS[name]["vocab"] - MODELS[name].get("unused", 0)
    if kind == "spm":
        write_sentencepiece(folder, size)
    else:
        write_byte_level_bpe(folder, size, kind)


def write_sentencepiece(folder, size):
    import sentencepiece
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS), model_prefix=str(folder / "tokenizer"), vocab_size=size, model_type="bpe",
        character_coverage=1.0, num_threads=1, bos_id=1, eos_id=2, unk_id=0, pad_id=-1,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2)
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(
        add_bos_token=True, add_eos_token=False, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        tokenizer_class="LlamaTokenizer")))


def write_byte_level_bpe(folder, size, kind):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    special = (["<|begin_of_text|>", "<|end_of_text|>"] if kind == "llama-bpe"
               else ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT if kind == "llama-bpe" else QWEN2_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(WORDS, trainers.BpeTrainer(
        vocab_size=size - len(special), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False))
    tokenizer.add_special_tokens(special)
    assert tokenizer.get_vocab_size() == size
    llama = kind == "llama-bpe"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0] if llama else None,
                            eos_token=special[-1], add_bos_token=llama,
                            chat_template=None if llama else TEMPLATE).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(add_bos_token=llama)))


# ---------------------------------------------------------------------------------------------------------------------
# llama.cpp's converters
# ---------------------------------------------------------------------------------------------------------------------

# The converter names the pre-tokenizer by a hash over known vocabularies; ours is known to nobody, so it is told.
RUN_CONVERTER = """
import runpy, sys
root, pre = sys.argv[1:3]
sys.path[:0] = [root, root + "/gguf-py"]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
script, sys.argv = root + "/" + sys.argv[3], sys.argv[3:]
runpy.run_path(script, run_name="__main__")
"""


def convert(llama_cpp, script, *arguments, pre=""):
    """Runs convert_hf_to_gguf.py or convert_lora_to_gguf.py of a llama.cpp source folder."""
    quiet = dict(os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    done = subprocess.run([sys.executable, "-c", RUN_CONVERTER, str(Path(llama_cpp).resolve()), pre, script,
                           *map(str, arguments)], capture_output=True, text=True, env=quiet)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# From GGUF back to transformers
# ---------------------------------------------------------------------------------------------------------------------

PLAIN = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
         "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
         "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def hf_name(name):
    stem, suffix = name.rsplit(".", 1)
    if layer := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem):
        return f"model.layers.{layer[1]}.{LAYER[layer[2]]}.{suffix}"
    return f"{PLAIN[stem]}.{suffix}"


def unpermute(rows, heads):
    """Undoes the order in which arch llama stores q and k: rows 2i, 2i+1 of a head are i, i+half in transformers."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def read_gguf(path):
    """(architecture, {transformers name: f32 array}, {GGUF name: type}) of a GGUF file, dequantized by gguf-py."""
    reader = GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    arch = field("general.architecture")
    heads = {"attn_q": field(f"{arch}.attention.head_count"), "attn_k": field(f"{arch}.attention.head_count_kv")}
    weights, types = {}, {}
    for tensor in reader.tensors:
        types[tensor.name] = tensor.tensor_type.name
        if tensor.name == "rope_freqs.weight":
            continue  # transformers computes these itself, from config.json
        value = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        site = re.fullmatch(r"blk\.\d+\.(attn_q|attn_k)\.(weight|bias)", tensor.name)
        if arch == "llama" and site:
            value = unpermute(value, heads[site[1]])
        weights[hf_name(tensor.name)] = np.ascontiguousarray(value)
    return arch, weights, types


def load(folder, file):
    """transformers in fp32 with eager attention over the weights of `folder/file.gguf`."""
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    _, weights, _ = read_gguf(Path(folder) / f"{file}.gguf")
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    assert not unexpected and missing == (["lm_head.weight"] if config.tie_word_embeddings else []), (missing, unexpected)
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Vectors
# ---------------------------------------------------------------------------------------------------------------------

def log_softmax(logits):
    """In f64, of f32 logits."""
    wide = np.asarray(logits, dtype=np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def logits_of(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(map(int, tokens))])).logits[0].float().numpy()


def describe(logits, tokens):
    """(log-probability of each token after the first, given those before it; f32)"""
    scores = log_softmax(logits)
    return scores[np.arange(len(tokens) - 1), tokens[1:]].astype(np.float32)


def save(path, tensors, made_by):
    """A safetensors file with sorted keys. One line of text in its header, not more: the order of several is not fixed."""
    save_file({key: np.ascontiguousarray(tensors[key]) for key in sorted(tensors)}, path, metadata={"made_by": made_by})


def write_json(path, value):
    Path(path).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def save_adapter(model, folder, embeddings="auto"):
    """PEFT's own files, without the page it writes for a hub, and with its sets in a fixed order."""
    model.save_pretrained(folder, save_embedding_layers=embeddings)
    (Path(folder) / "README.md").unlink(missing_ok=True)
    path = Path(folder) / "adapter_config.json"
    config = json.loads(path.read_text())
    names = lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v)  # not token indices: they have an order
    write_json(path, {k: sorted(v) if names(v) else v for k, v in config.items()})
